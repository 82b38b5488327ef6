//! The campaign itself.
//!
//! Everything here is a function of the seed, the batch size and the number of evaluations; the
//! clock is looked at only to stop: between rounds, between follow-ups, and between the batches of
//! a reduction.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::calibrate::{Baselines, PreThresholds, calibrate};
use super::config::CampaignConfig;
use super::events::{Event, Follow, Progress, Sink};
use super::finding::{reduced, signature};
use super::scheduler::{Bandit, Queue};
use super::subject::{Control, Seed, Subject};
use super::summary::{CurvePoint, MutatorYield, SCHEMA_VERSION, Summary};
use crate::case::Lineage;
use crate::edit::Trial;
use crate::error::{Error, Result};
use crate::minimize;
use crate::mutate::{self, Mutator};
use crate::novelty::NoveltyMap;
use crate::oracle::Judge as _;
use crate::oracle::{self, ModelJudge, OracleKind, Verdict};
use crate::rng::{self, Rng};

/// A trial of a round, with where it came from.
struct Proposal {
    trial: Trial,
    arm: usize,
    lineage: Lineage,
}

struct Campaign<'a> {
    config: &'a CampaignConfig,
    subject: &'a Subject<'a>,
    control: &'a Control<'a>,
    mutators: Vec<&'static dyn Mutator>,
    kinds: Vec<OracleKind>,
    splices: Vec<Arc<[u32]>>,
    queue: Queue,
    bandit: Bandit,
    map: NoveltyMap,
    baselines: Baselines,
    thresholds: PreThresholds,
    /// Raw findings not yet followed up.
    pending: VecDeque<(Trial, Verdict, Lineage)>,
    /// Signatures judged, and signatures of findings: neither is judged again.
    judged: BTreeSet<(OracleKind, BTreeSet<String>)>,
    known: Vec<(OracleKind, BTreeSet<String>)>,
    summary: Summary,
    tokens: u64,
    rounds: u64,
    /// The longest round so far, and the longest follow-up: with less time than that none is begun.
    slowest_round: Duration,
    slowest: Duration,
    /// The longest explanation so far: the time that a reduction leaves free.
    slowest_explanation: Duration,
}

/// Runs a campaign to the end of its budget. What was found went to the sink when it was found, so
/// an error or an interruption loses nothing.
pub fn run(
    config: &CampaignConfig,
    subject: &Subject,
    follow: &dyn Follow,
    sink: &mut dyn Sink,
    control: &Control,
) -> Result<Summary> {
    config.check().map_err(|(field, message)| Error::request(format!("{field}: {message}")))?;
    if subject.seeds.is_empty() {
        return Err(Error::request(super::setup::NO_SEEDS));
    }
    let mut mutators = mutate::select(&config.mutate)?;
    mutators.retain(|mutator| mutator.applies(subject.config));
    let entry = |seed: &Seed| (seed.name.clone(), seed.trial.clone());
    let yields = mutators.iter().map(|m| MutatorYield {
        mutator: m.name().into(),
        trials: 0,
        new_behaviours: 0,
        findings: 0,
    });
    let mut campaign = Campaign {
        config,
        subject,
        control,
        kinds: {
            let kinds: BTreeSet<_> = config.oracles_on(subject.config)?.into_iter().collect();
            kinds.into_iter().collect()
        },
        splices: subject.seeds.iter().map(|seed| seed.trial.base.clone()).collect(),
        queue: Queue::new(subject.seeds.iter().map(entry)),
        bandit: Bandit::new(mutators.len()),
        map: NoveltyMap::default(),
        baselines: Baselines::default(),
        thresholds: PreThresholds::new(),
        pending: VecDeque::new(),
        judged: BTreeSet::new(),
        known: Vec::new(),
        summary: Summary {
            schema_version: SCHEMA_VERSION,
            model: subject.model.clone(),
            seed: config.seed,
            batch_size: config.batch_size,
            evaluations: 0,
            follow_up_evaluations: 0,
            behaviours: 0,
            queue: 0,
            findings_raw: 0,
            findings_confirmed: 0,
            findings_minimized: 0,
            controls: 0,
            controls_flagged: 0,
            mutators: yields.collect(),
            curve: Vec::new(),
            interactions: subject.interactions.clone(),
            cases: Vec::new(),
            stopped_by: String::new(),
            timing: None,
        },
        mutators,
        tokens: 0,
        rounds: 0,
        slowest_round: Duration::ZERO,
        slowest: Duration::ZERO,
        slowest_explanation: Duration::ZERO,
    };
    campaign.run(follow, sink)?;
    Ok(campaign.summary)
}

impl<'a> Campaign<'a> {
    fn run(&mut self, follow: &dyn Follow, sink: &mut dyn Sink) -> Result<()> {
        let seeds: Vec<Trial> = self.subject.seeds.iter().map(|seed| seed.trial.clone()).collect();
        let (subject, splices) = (self.subject, self.splices.clone());
        let context = subject.context(&splices);
        let (thresholds, calls) = calibrate(
            &self.mutators,
            &self.kinds,
            &seeds,
            &context,
            subject,
            &mut self.baselines,
            self.config.seed,
        )?;
        self.thresholds = thresholds;
        self.summary.follow_up_evaluations += calls;
        let mut rng = rng::stream(self.config.seed, "campaign");
        let stopped_by = loop {
            if let Some(reason) = self.stopped() {
                break reason;
            }
            if self.config.max_evals.is_some_and(|most| self.summary.evaluations >= most) {
                // What was found is followed up whatever it takes: the evaluations of the loop are
                // spent.
                while !self.pending.is_empty() && self.may_follow_up() {
                    self.follow_up(follow, sink)?;
                }
                break self.stopped().unwrap_or("max-evals");
            }
            let started = Instant::now();
            let proposed = self.round(&mut rng, sink)?;
            self.slowest_round = self.slowest_round.max(started.elapsed());
            if !proposed {
                break "exhausted";
            }
            for _ in 0..self.config.follow_ups_per_round {
                if !self.may_follow_up() {
                    break;
                }
                self.follow_up(follow, sink)?;
            }
            sink.event(Event::Round(self.progress()))?;
        };
        self.point();
        self.summary.stopped_by = stopped_by.into();
        Ok(())
    }

    fn stopped(&self) -> Option<&'static str> {
        if self.control.interrupted.load(Ordering::Relaxed) {
            Some("interrupted")
        } else if self.config.exit_on_find && !self.summary.cases.is_empty() {
            Some("exit-on-find")
        } else if self.late(self.slowest_round) {
            Some("max-time")
        } else {
            None
        }
    }

    /// Whether to begin another follow-up.
    fn may_follow_up(&self) -> bool {
        self.stopped().is_none() && !self.late(self.slowest.mul_f64(1.5))
    }

    /// Whether less time is left than something takes.
    fn late(&self, needed: Duration) -> bool {
        self.config.max_time.is_some_and(|most| self.control.started.elapsed() + needed >= most)
    }

    /// Whether a follow-up that goes on must come to its end.
    fn hurried(&self, needed: Duration) -> bool {
        self.control.interrupted.load(Ordering::Relaxed) || self.late(needed)
    }

    /// Proposes, observes and screens a batch; whether there was anything to propose.
    fn round(&mut self, rng: &mut Rng, sink: &mut dyn Sink) -> Result<bool> {
        let proposals = self.propose(rng);
        let trials: Vec<&Trial> = proposals.iter().map(|proposal| &proposal.trial).collect();
        self.summary.follow_up_evaluations +=
            self.baselines.prepare(&trials, &self.kinds, self.subject)?;
        // Some oracles cost many forwards: only now and then.
        let generates = self.rounds.is_multiple_of(self.config.generate_every);
        self.rounds += 1;
        let kinds: Vec<OracleKind> = self
            .kinds
            .iter()
            .copied()
            .filter(|kind| generates || !kind.oracle().is_costly())
            .collect();
        let reference = |trial: &Trial| {
            self.baselines.of(trial).and_then(|baseline| baseline.distributions.as_ref())
        };
        let requests: Vec<_> =
            trials.iter().map(|trial| oracle::request(&kinds, trial, reference(trial))).collect();
        let observations = self.subject.evaluator.observe(&requests)?;

        let mut candidates: Vec<(f64, OracleKind, usize)> = Vec::new();
        if observations.len() != requests.len() {
            return Err(Error::internal("the evaluator did not answer every request"));
        }
        for (index, (proposal, observation)) in proposals.iter().zip(&observations).enumerate() {
            let mutator = self.mutators[proposal.arm];
            let Some(baseline) = self.baselines.of(&proposal.trial) else { continue };
            self.summary.evaluations += 1;
            self.tokens += (proposal.trial.len() + proposal.trial.edits.len()) as u64;
            self.summary.mutators[proposal.arm].trials += 1;
            let mut best = (0.0, 0.0, 1.0);
            for &kind in kinds.iter().filter(|kind| mutator.oracles().contains(kind)) {
                let score = kind.oracle().score(observation, baseline);
                let scale =
                    self.thresholds.get(&(mutator.name(), kind)).copied().unwrap_or(f64::MAX);
                if score > scale {
                    candidates.push((score / scale, kind, index));
                }
                if score / scale > best.0 {
                    best = (score / scale, score, scale);
                }
            }
            let new = self.map.insert(observation, baseline, best.1, best.2);
            self.bandit
                .reward(proposal.arm, if new { 0.2 } else { 0.0 } + f64::min(best.0, 4.0) * 0.2);
            if new {
                self.summary.mutators[proposal.arm].new_behaviours += 1;
                // An echo trial edits the continuation too, which the other oracles cannot read.
                if !mutator.oracles().contains(&OracleKind::Echo) {
                    let (seed, mutators) =
                        (proposal.lineage.parent.clone(), proposal.lineage.mutators.clone());
                    self.queue.push(
                        proposal.trial.clone(),
                        seed,
                        mutators,
                        0.25 + f64::min(best.0, 4.0),
                    );
                }
            }
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        self.judge(&candidates, &proposals, sink)?;
        if self.rounds % 4 == 1 {
            self.point();
        }
        Ok(!proposals.is_empty())
    }

    fn propose(&mut self, rng: &mut Rng) -> Vec<Proposal> {
        let context = self.subject.context(&self.splices);
        let left = self
            .config
            .max_evals
            .map_or(u64::MAX, |most| most.saturating_sub(self.summary.evaluations));
        let size = self.config.batch_size.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut proposals = Vec::with_capacity(size);
        // However well an arm pays, it gets no more than half of a batch: what is paid is an
        // estimate, and a map with one region is not what a campaign is for. Unless nothing else
        // can propose anything.
        let mut counts = vec![0; self.mutators.len()];
        // Bounded: mutators that can propose nothing (no suspects, say) must not hang the loop.
        for attempt in 0..size * 20 {
            if proposals.len() == size {
                break;
            }
            let arm =
                self.bandit.pick(|arm| counts[arm] < size.div_ceil(2) || attempt > size * 10, rng);
            let Some(parent) = self.queue.pick(rng) else { break };
            let Some(trial) = self.mutators[arm].propose(&parent.trial, &context, rng) else {
                self.bandit.reward(arm, 0.0);
                continue;
            };
            let mut mutators = parent.mutators.clone();
            mutators.push(self.mutators[arm].name().into());
            let lineage = Lineage {
                seed: self.config.seed,
                evaluation: self.summary.evaluations + proposals.len() as u64,
                mutators,
                parent: parent.seed.clone(),
            };
            counts[arm] += 1;
            proposals.push(Proposal { trial, arm, lineage });
        }
        proposals
    }

    /// Judges the most promising candidates against matched controls; at most as many as cost about
    /// as much as the batch they came from.
    fn judge(
        &mut self,
        candidates: &[(f64, OracleKind, usize)],
        proposals: &[Proposal],
        sink: &mut dyn Sink,
    ) -> Result<()> {
        let most = (self.config.batch_size / (self.config.controls_per_trial + 1)).max(1);
        let mut chosen: BTreeMap<OracleKind, Vec<usize>> = BTreeMap::new();
        let mut count = 0;
        for &(_, kind, index) in candidates {
            let signature = signature(&proposals[index].trial);
            let explained =
                self.known.iter().any(|(k, known)| *k == kind && known.is_subset(&signature));
            if count < most && !explained && self.judged.insert((kind, signature)) {
                chosen.entry(kind).or_default().push(index);
                count += 1;
            }
        }
        for (kind, indices) in chosen {
            let judge = self.judge_of(kind);
            let trials: Vec<Trial> =
                indices.iter().map(|&index| proposals[index].trial.clone()).collect();
            let verdicts = judge.judge(&trials)?;
            self.summary.follow_up_evaluations += judge.calls();
            for (&index, verdict) in indices.iter().zip(verdicts) {
                self.summary.controls += verdict.controls.len() as u64;
                self.summary.controls_flagged += verdict.controls_flagged() as u64;
                if verdict.fails() {
                    let Proposal { trial, arm, lineage } = &proposals[index];
                    self.summary.findings_raw += 1;
                    self.summary.mutators[*arm].findings += 1;
                    self.bandit.reward(*arm, 1.0);
                    let (trial, lineage) = (trial.clone(), lineage.clone());
                    sink.event(Event::Raw {
                        trial: trial.clone(),
                        verdict: verdict.clone(),
                        lineage: lineage.clone(),
                    })?;
                    self.pending.push_back((trial, verdict, lineage));
                }
            }
        }
        Ok(())
    }

    fn judge_of(&self, kind: OracleKind) -> ModelJudge<'a> {
        let subject = self.subject;
        let floor = subject.noise_floors.get(&kind).copied().unwrap_or(1e-4);
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

    /// Confirms, minimizes and explains the next raw finding that is not explained by a known one.
    fn follow_up(&mut self, follow: &dyn Follow, sink: &mut dyn Sink) -> Result<()> {
        let started = Instant::now();
        let done = self.follow_up_next(follow, sink);
        self.slowest = self.slowest.max(started.elapsed());
        done
    }

    fn follow_up_next(&mut self, follow: &dyn Follow, sink: &mut dyn Sink) -> Result<()> {
        if self.summary.cases.len() >= self.config.max_findings {
            self.pending.clear();
        }
        let known = |kind: OracleKind,
                     signature: &BTreeSet<String>,
                     known: &[(OracleKind, BTreeSet<String>)]| {
            known.iter().any(|(k, s)| *k == kind && s.is_subset(signature))
        };
        let next = loop {
            match self.next_pending() {
                Some((trial, verdict, _))
                    if known(verdict.oracle, &signature(&trial), &self.known) =>
                {
                    continue;
                }
                next => break next,
            }
        };
        let Some((trial, verdict, lineage)) = next else { return Ok(()) };
        let kind = verdict.oracle;
        let judge = self.judge_of(kind);
        let confirmed = judge.judge_alone(&trial)?;
        let holds = confirmed.fails();
        sink.event(Event::Confirmed { verdict: confirmed.clone(), holds })?;
        if !holds {
            self.summary.follow_up_evaluations += judge.calls();
            return Ok(());
        }
        self.summary.findings_confirmed += 1;
        let subject = self.subject;
        let stop = || self.hurried(self.slowest_explanation.mul_f64(1.5));
        let options = minimize::MinimizeOptions {
            max_calls: self.config.minimize_calls,
            // A judged trial is a batch of itself and its controls.
            batch: (self.config.batch_size / (self.config.controls_per_trial + 1)).max(4),
            neutral: subject.vocabulary.ordinary.last().copied(),
            keep_first: trial.first_editable(subject.config.bos_token_id),
            stop: Some(&stop),
            ..Default::default()
        };
        let (finding, others) = reduced(trial, confirmed, &judge, &options, lineage.clone())?;
        self.summary.follow_up_evaluations += judge.calls();
        let key = signature(&finding.trial);
        if known(kind, &key, &self.known) {
            return Ok(());
        }
        self.known.push((kind, key));
        self.summary.findings_minimized += u64::from(finding.minimization.is_some());
        sink.event(Event::Minimized { finding: Box::new(finding.clone()) })?;
        let started = Instant::now();
        let (case, calls) = follow.follow(&finding, !self.hurried(Duration::ZERO))?;
        self.slowest_explanation = self.slowest_explanation.max(started.elapsed());
        self.summary.follow_up_evaluations += calls;
        self.summary.cases.push(case.id.clone());
        sink.event(Event::Case(Box::new(case)))?;
        self.take_others(kind, others, &lineage)
    }

    /// The raw finding to follow up: of the oracle with the fewest findings so far, so that one
    /// easy kind does not crowd out the others; of those the one that stands out most, relative to
    /// its threshold.
    fn next_pending(&mut self) -> Option<(Trial, Verdict, Lineage)> {
        let found = |kind: OracleKind| self.known.iter().filter(|(k, _)| *k == kind).count();
        let excess = |v: &Verdict| v.margin / v.threshold.abs().max(f64::MIN_POSITIVE);
        let better = |a: &Verdict, b: &Verdict| {
            found(b.oracle).cmp(&found(a.oracle)).then(excess(a).total_cmp(&excess(b)))
        };
        let mut best: Option<usize> = None;
        for (i, (_, verdict, _)) in self.pending.iter().enumerate() {
            if best.is_none_or(|b| better(verdict, &self.pending[b].1).is_gt()) {
                best = Some(i);
            }
        }
        best.and_then(|i| self.pending.remove(i))
    }

    /// Other failures that the reduction met become raw findings of their own.
    fn take_others(
        &mut self,
        kind: OracleKind,
        others: Vec<Trial>,
        lineage: &Lineage,
    ) -> Result<()> {
        let fresh: Vec<Trial> = others
            .into_iter()
            .filter(|trial| self.judged.insert((kind, signature(trial))))
            .collect();
        let judge = self.judge_of(kind);
        let verdicts = judge.judge(&fresh)?;
        self.summary.follow_up_evaluations += judge.calls();
        let failing = fresh.into_iter().zip(verdicts).filter(|(_, verdict)| verdict.fails());
        self.pending.extend(failing.map(|(trial, verdict)| (trial, verdict, lineage.clone())));
        Ok(())
    }

    fn progress(&self) -> Progress {
        let summary = &self.summary;
        let mut yields = summary.mutators.clone();
        yields.sort_by_key(|m| std::cmp::Reverse((m.findings, m.new_behaviours)));
        Progress {
            evaluations: summary.evaluations,
            follow_up_evaluations: summary.follow_up_evaluations,
            tokens: self.tokens,
            queue: self.queue.len() as u64,
            behaviours: self.map.len() as u64,
            raw: summary.findings_raw,
            confirmed: summary.findings_confirmed,
            minimized: summary.findings_minimized,
            yields,
        }
    }

    /// Brings the counts up to date and puts a point on the curve.
    fn point(&mut self) {
        self.summary.behaviours = self.map.len() as u64;
        self.summary.queue = self.queue.len() as u64;
        self.summary.curve.push(CurvePoint {
            evaluations: self.summary.evaluations,
            behaviours: self.summary.behaviours,
            findings_raw: self.summary.findings_raw,
            findings_confirmed: self.summary.findings_confirmed,
        });
    }
}
