//! Where a campaign stands: everything that its rounds and follow-ups read and change.

use std::collections::{BTreeMap, BTreeSet};

use super::baselines::Baselines;
use super::config::CampaignConfig;
use super::deadline::{Deadline, StopSignal};
use super::events::Progress;
use super::proposals::Proposer;
use super::subject::Subject;
use super::summary::{
    CurvePoint, KindCount, MutatorYield, NEXT_EVALUATIONS, SCHEMA_VERSION, Summary, Unseen,
    kinds_seen,
};
use super::triage::Triage;
use crate::error::Result;
use crate::novelty::NoveltyMap;
use crate::oracle::OracleKind;
use crate::replicate;
use crate::stats::Estimate;
use crate::stats::evidence::Lond;

pub(super) struct Campaign<'a> {
    pub config: &'a CampaignConfig,
    pub subject: &'a Subject<'a>,
    pub deadline: Deadline<'a>,
    /// The oracles of the campaign that apply to the model, each once.
    pub kinds: Vec<OracleKind>,
    pub proposer: Proposer,
    pub baselines: Baselines,
    /// Scores that a trial must exceed to be judged, by mutator and oracle.
    pub thresholds: BTreeMap<(&'static str, OracleKind), f64>,
    pub map: NoveltyMap,
    pub triage: Triage,
    /// The findings tested in new prompts, a stream of hypotheses.
    pub stream: Lond,
    pub summary: Summary,
    /// Tokens of the loop's trials.
    pub tokens: u64,
    pub rounds: u64,
}

impl<'a> Campaign<'a> {
    /// A campaign before its first round, not yet calibrated.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) for an unknown group of mutators, and for an
    /// oracle that would score nothing on the model.
    pub fn new(
        config: &'a CampaignConfig,
        subject: &'a Subject<'a>,
        signal: &'a StopSignal<'a>,
    ) -> Result<Self> {
        let mut mutators = config.mutators()?;
        mutators.retain(|mutator| mutator.applies(subject.config));
        let yields = mutators.iter().map(|mutator| MutatorYield {
            mutator: mutator.name().into(),
            trials: 0,
            new_behaviours: 0,
            findings: 0,
        });
        let kinds: BTreeSet<OracleKind> = config.oracles_on(subject.config)?.into_iter().collect();
        Ok(Self {
            config,
            subject,
            deadline: Deadline::new(signal, config.max_time),
            kinds: kinds.into_iter().collect(),
            baselines: Baselines::default(),
            thresholds: BTreeMap::new(),
            map: NoveltyMap::default(),
            triage: Triage::new(config.search),
            stream: Lond::new(replicate::FALSE_DISCOVERY),
            summary: Summary {
                schema_version: SCHEMA_VERSION,
                model: subject.model.clone(),
                against: subject.against.clone(),
                seed: config.seed,
                batch_size: config.batch_size,
                evaluations: 0,
                follow_up_evaluations: 0,
                behaviours: 0,
                queue: 0,
                findings_raw: 0,
                findings_confirmed: 0,
                findings_minimized: 0,
                null: config.null,
                extreme: 0,
                judged: 0,
                replicated: 0,
                consistent: 0,
                controls: 0,
                controls_flagged: 0,
                mutators: yields.collect(),
                kinds: Vec::new(),
                unseen: None,
                curve: Vec::new(),
                interactions: subject.interactions.clone(),
                cases: Vec::new(),
                stopped_by: String::new(),
                timing: None,
            },
            proposer: Proposer::new(mutators, &subject.seeds, config.search, config.seed),
            tokens: 0,
            rounds: 0,
        })
    }

    /// Returns why the campaign must stop now, if it must: all reasons but its evaluations.
    pub fn stopped(&self) -> Option<&'static str> {
        if self.deadline.interrupted() {
            Some("interrupted")
        } else if self.config.exit_on_find && !self.summary.cases.is_empty() {
            Some("exit-on-find")
        } else if self.deadline.leaves_no_round() {
            Some("max-time")
        } else if self.is_stable() {
            Some("stable")
        } else {
            None
        }
    }

    /// Returns whether a new kind is as improbable as the campaign is to go on for.
    fn is_stable(&self) -> bool {
        let enough = self.summary.evaluations >= NEXT_EVALUATIONS;
        self.config
            .until_stable
            .is_some_and(|most| enough && self.chance_of_new(&self.triage.kinds()).high <= most)
    }

    /// Returns the probability that the next evaluations show a kind besides these.
    fn chance_of_new(&self, kinds: &[KindCount]) -> Estimate {
        Unseen::new(self.summary.evaluations, kinds).chance_of_new
    }

    /// Returns whether to begin another follow-up.
    pub fn may_follow_up(&self) -> bool {
        self.stopped().is_none() && !self.deadline.leaves_no_follow_up()
    }

    /// Trials whose judgement, controls included, costs about as much as a batch of the loop.
    pub fn judged_per_batch(&self) -> usize {
        self.config.batch_size / (self.config.controls_per_trial + 1)
    }

    pub fn progress(&self) -> Progress {
        let summary = &self.summary;
        let mut yields = summary.mutators.clone();
        yields.sort_by_key(|m| std::cmp::Reverse((m.findings, m.new_behaviours)));
        let kinds = self.triage.kinds();
        Progress {
            kinds: kinds_seen(&kinds),
            chance_of_new: self.chance_of_new(&kinds).value,
            evaluations: summary.evaluations,
            follow_up_evaluations: summary.follow_up_evaluations,
            tokens: self.tokens,
            queue: self.proposer.parents.len() as u64,
            behaviours: self.map.len() as u64,
            raw: summary.findings_raw,
            confirmed: summary.findings_confirmed,
            minimized: summary.findings_minimized,
            yields,
        }
    }

    /// Brings the counts up to date and puts a point on the curve.
    pub fn add_point(&mut self) {
        self.summary.behaviours = self.map.len() as u64;
        self.summary.queue = self.proposer.parents.len() as u64;
        self.summary.curve.push(CurvePoint {
            evaluations: self.summary.evaluations,
            behaviours: self.summary.behaviours,
            findings_raw: self.summary.findings_raw,
            findings_confirmed: self.summary.findings_confirmed,
        });
    }
}
