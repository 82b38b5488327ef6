//! One round: a batch is proposed, observed, scored and, where it stands out, judged.

use std::collections::{BTreeMap, BTreeSet};

use super::bandit;
use super::cell::Cell;
use super::events::{Event, Sink};
use super::parents::{Entry, Offer};
use super::proposals::Proposal;
use super::state::Campaign;
use super::triage::RawFinding;
use crate::edit::{Edit, Trial};
use crate::error::Result;
use crate::evaluate::Observation;
use crate::oracle::{Judge as _, ModelJudge, OracleKind, controls};
use crate::rng::Rng;
use crate::species::Descriptor;

/// Rounds between two points of the summary's curve.
const ROUNDS_PER_POINT: u64 = 4;

/// A proposal whose score under one oracle is beyond its pre-threshold.
struct Candidate {
    /// The score over the pre-threshold.
    excess: f64,
    oracle: OracleKind,
    kind: Descriptor,
    /// That of its kind ([`Triage::familiarity`](super::triage::Triage::familiarity)).
    familiarity: u32,
    /// Its place among the proposals of the round.
    index: usize,
}

/// A proposal's score under the oracle that it exceeds the most.
struct Best {
    oracle: Option<OracleKind>,
    excess: f64,
    score: f64,
    /// The pre-threshold.
    scale: f64,
}

impl<'a> Campaign<'a> {
    /// Proposes, observes and screens a batch; returns whether there was anything to propose.
    pub fn round(&mut self, rng: &mut Rng, sink: &mut dyn Sink) -> Result<bool> {
        let evaluations = self.summary.evaluations;
        let left = self.config.max_evals.map_or(u64::MAX, |most| most.saturating_sub(evaluations));
        let size = self.config.batch_size.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut proposals = self.proposer.propose(self.subject, size, evaluations, rng);
        if self.config.null {
            let (config, vocabulary) = (self.subject.config, self.subject.vocabulary);
            for proposal in &mut proposals {
                proposal.trial = controls::control(&proposal.trial, config, vocabulary, rng);
            }
        }
        let trials: Vec<&Trial> = proposals.iter().map(|proposal| &proposal.trial).collect();
        self.summary.follow_up_evaluations +=
            self.baselines.prepare(&trials, &self.kinds, self.subject)?;
        // Some oracles cost many forwards: only now and then.
        let generates = self.rounds.is_multiple_of(self.config.generate_every);
        self.rounds += 1;
        let mut kinds = self.kinds.clone();
        kinds.retain(|kind| generates || !kind.oracle().is_costly());
        let requests: Vec<_> =
            trials.iter().map(|trial| self.baselines.request(&kinds, trial)).collect();
        let observations = self.subject.observe(&requests)?;
        let mut candidates = Vec::new();
        for (index, (proposal, observation)) in proposals.iter().zip(&observations).enumerate() {
            self.score(proposal, index, observation, &kinds, &mut candidates);
        }
        let extreme: BTreeSet<usize> = candidates.iter().map(|found| found.index).collect();
        self.summary.extreme += extreme.len() as u64;
        // What was seldom judged comes first; of what was judged as often, what stands out most.
        candidates.sort_by(|a, b| {
            (a.familiarity.cmp(&b.familiarity))
                .then(b.excess.total_cmp(&a.excess))
                .then(a.oracle.cmp(&b.oracle))
                .then(a.index.cmp(&b.index))
        });
        self.judge_candidates(&candidates, &proposals, sink)?;
        if self.rounds % ROUNDS_PER_POINT == 1 {
            self.add_point();
        }
        Ok(!proposals.is_empty())
    }

    /// Scores a proposal: offers it as a parent, rewards its mutator, and adds it to the candidates
    /// of each oracle under which it stands out.
    fn score(
        &mut self,
        proposal: &Proposal,
        index: usize,
        observation: &Observation,
        kinds: &[OracleKind],
        candidates: &mut Vec<Candidate>,
    ) {
        let Proposal { trial, arm, lineage } = proposal;
        let mutator = self.proposer.mutators[*arm];
        let Some(baseline) = self.baselines.get(trial) else { return };
        let yielded = &mut self.summary.mutators[*arm];
        self.summary.evaluations += 1;
        let added: usize = trial.edits.iter().map(Edit::added_tokens).sum();
        self.tokens += (trial.len() + added) as u64;
        yielded.trials += 1;
        let mut best = Best { oracle: None, excess: 0.0, score: 0.0, scale: 1.0 };
        for &kind in kinds.iter().filter(|kind| mutator.oracles().contains(kind)) {
            let score = kind.oracle().score(observation, baseline);
            let threshold = self.thresholds.get(&(mutator.name(), kind));
            let scale = threshold.copied().unwrap_or(f64::MAX);
            let excess = score / scale;
            if score > scale {
                let (oracle, kind) = (kind, self.subject.describe(trial, kind));
                let familiarity = self.triage.familiarity(&kind);
                candidates.push(Candidate { excess, oracle, kind, familiarity, index });
            }
            if excess > best.excess {
                best = Best { oracle: Some(kind), excess, score, scale };
            }
        }
        let new = self.map.insert(observation, baseline, best.score, best.scale);
        yielded.new_behaviours += u64::from(new);
        let kind = best.oracle.map(|oracle| self.subject.describe(trial, oracle));
        let familiarity = kind.as_ref().map_or(0, |kind| self.triage.familiarity(kind));
        let cell = kind.map(|kind| Cell::new(&kind, observation, baseline));
        // An echo trial edits the continuation too, which the other oracles cannot read.
        let echo = mutator.oracles().iter().any(|kind| kind.oracle().judges_echoes());
        let entry = (!echo).then(|| Entry {
            trial: trial.clone(),
            seed: lineage.parent.clone(),
            mutators: lineage.mutators.clone(),
        });
        let (excess, edits) = (best.excess, trial.edits.len());
        let gain = self.proposer.parents.offer(Offer { entry, excess, edits, new, cell });
        let reward = f64::min(gain + bandit::excess_reward(excess, familiarity), 1.0);
        self.proposer.bandit.reward(*arm, reward);
    }

    /// Judges the most promising candidates against matched controls; at most as many as cost about
    /// as much as the batch they came from.
    fn judge_candidates(
        &mut self,
        candidates: &[Candidate],
        proposals: &[Proposal],
        sink: &mut dyn Sink,
    ) -> Result<()> {
        let most = self.judged_per_batch().max(1);
        let mut chosen: BTreeMap<OracleKind, Vec<&Candidate>> = BTreeMap::new();
        let mut count = 0;
        for candidate in candidates {
            let (oracle, trial) = (candidate.oracle, &proposals[candidate.index].trial);
            if count < most
                && !self.triage.is_known(oracle, trial)
                && self.triage.admit(oracle, trial, &candidate.kind)
            {
                chosen.entry(oracle).or_default().push(candidate);
                count += 1;
            }
        }
        for (oracle, chosen) in chosen {
            let judge = self.judge(oracle);
            let trials: Vec<Trial> =
                chosen.iter().map(|found| proposals[found.index].trial.clone()).collect();
            let verdicts = judge.judge(&trials)?;
            self.summary.judged += trials.len() as u64;
            self.summary.follow_up_evaluations += judge.calls();
            for (Candidate { kind, index, .. }, verdict) in chosen.into_iter().zip(verdicts) {
                self.summary.controls += verdict.controls.len() as u64;
                self.summary.controls_flagged += verdict.controls_flagged() as u64;
                if verdict.fails() {
                    let Proposal { trial, arm, lineage } = &proposals[*index];
                    self.summary.findings_raw += 1;
                    self.summary.mutators[*arm].findings += 1;
                    let reward = bandit::finding_reward(self.triage.raw_of(kind));
                    self.proposer.bandit.reward(*arm, reward);
                    let (trial, lineage, kind) = (trial.clone(), lineage.clone(), kind.clone());
                    sink.event(Event::Raw {
                        trial: trial.clone(),
                        verdict: verdict.clone(),
                        lineage: lineage.clone(),
                    })?;
                    self.keep(RawFinding { trial, verdict, lineage, kind })?;
                }
            }
        }
        Ok(())
    }

    /// Makes the judge of one oracle. It borrows the campaign's subject, not the campaign.
    pub fn judge(&self, kind: OracleKind) -> ModelJudge<'a> {
        let subject = self.subject;
        let floor = subject.noise_floors.get(&kind).copied().unwrap_or(DEFAULT_NOISE_FLOOR);
        ModelJudge::new(
            subject.evaluator,
            subject.config,
            subject.vocabulary,
            kind,
            self.config.seed,
            floor,
        )
        .with_controls(self.config.controls_per_trial)
    }
}

/// Noise floor of an oracle's score where none was measured.
const DEFAULT_NOISE_FLOOR: f64 = 1e-4;
