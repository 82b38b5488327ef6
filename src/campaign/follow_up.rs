//! Raw findings on their way to cases.

use std::time::Instant;

use super::deadline::Deadline;
use super::events::{Event, Sink};
use super::state::Campaign;
use super::subject::Subject;
use super::summary::Summary;
use super::triage::{RawFinding, Triage};
use crate::case::Lineage;
use crate::edit::Trial;
use crate::error::Result;
use crate::minimize;
use crate::oracle::{Judge as _, OracleKind, Verdict};
use crate::pipeline::{
    Explainer, Explanation, Finding, FollowUp, Followed, Steps, confirmation_seed,
};
use crate::replicate::Replicator;
use crate::stats::evidence::Lond;

/// Trials in one batch of a reduction, at least.
const SMALLEST_BATCH: usize = 4;

/// Counts the steps of a follow-up, tells the sink, and passes over what is known.
struct Recorder<'c, 'd> {
    kind: OracleKind,
    subject: &'c Subject<'c>,
    triage: &'c mut Triage,
    stream: &'c mut Lond,
    summary: &'c mut Summary,
    sink: &'c mut dyn Sink,
    deadline: &'c Deadline<'d>,
    /// When the explanation began, if it did.
    explaining: Option<Instant>,
}

impl Steps for Recorder<'_, '_> {
    fn confirmed(&mut self, verdict: &Verdict, holds: bool) -> Result<()> {
        self.sink.event(Event::Confirmed { verdict: verdict.clone(), holds })?;
        self.summary.findings_confirmed += u64::from(holds);
        Ok(())
    }

    fn minimized(&mut self, finding: &Finding) -> Result<Explanation> {
        let kind = self.subject.describe(&finding.trial, self.kind);
        if self.triage.is_known(self.kind, &finding.trial) || self.triage.is_enough(&kind) {
            return Ok(Explanation::Skipped);
        }
        self.triage.know(self.kind, &finding.trial, kind);
        self.summary.findings_minimized += u64::from(finding.minimization.is_some());
        self.sink.event(Event::Minimized { finding: Box::new(finding.clone()) })?;
        self.explaining = Some(Instant::now());
        Ok(match self.deadline.ends_explanation() {
            true => Explanation::Described,
            false => Explanation::Localized,
        })
    }

    fn is_discovery(&mut self, e_value: f64) -> bool {
        self.summary.replicated += 1;
        self.stream.test(e_value)
    }
}

impl Campaign<'_> {
    /// Follows up the next raw finding that no known one explains.
    pub fn follow_up(&mut self, explainer: &dyn Explainer, sink: &mut dyn Sink) -> Result<()> {
        let started = Instant::now();
        let done = self.follow_up_next(explainer, sink);
        self.deadline.follow_up_took(started.elapsed());
        done
    }

    fn follow_up_next(&mut self, explainer: &dyn Explainer, sink: &mut dyn Sink) -> Result<()> {
        if self.summary.cases.len() >= self.config.max_findings {
            self.triage.clear();
        }
        let Some(RawFinding { trial, verdict, lineage, .. }) = self.triage.next() else {
            return Ok(());
        };
        let kind = verdict.oracle;
        let judge = self.judge(kind);
        let (subject, deadline) = (self.subject, &self.deadline);
        let stop = || deadline.ends_reduction();
        let options = minimize::MinimizeOptions {
            max_calls: self.config.minimize_calls,
            // A judged trial is a batch of itself and its controls.
            batch: self.judged_per_batch().max(SMALLEST_BATCH),
            prompt: minimize::PromptReduction::Text { token: subject.token },
            keep_first: trial.first_editable(subject.config.bos_token_id),
            stop: Some(&stop),
            ..Default::default()
        };
        let mut recorder = Recorder {
            kind,
            subject,
            triage: &mut self.triage,
            stream: &mut self.stream,
            summary: &mut self.summary,
            sink: &mut *sink,
            deadline,
            explaining: None,
        };
        let replicator = Some(Replicator { prompts: &subject.new_prompts, null: self.config.null });
        let follow_up = FollowUp { judge: &judge, options, replicator, explainer };
        let followed = follow_up.run(trial, Some(verdict), lineage.clone(), &mut recorder)?;
        let explaining = recorder.explaining;
        self.summary.follow_up_evaluations += judge.calls();
        let Followed::Case { case, calls, others } = followed else { return Ok(()) };
        if let Some(explaining) = explaining {
            self.deadline.explanation_took(explaining.elapsed());
        }
        self.summary.follow_up_evaluations += calls;
        let consistent = case.replication.as_ref().is_some_and(|found| found.consistent);
        self.summary.consistent += u64::from(consistent);
        self.summary.cases.push(case.id.clone());
        sink.event(Event::Case(case))?;
        self.take_others(kind, others, &lineage)
    }

    /// Keeps a raw finding; one of the sample by which the count of its kind is checked is
    /// confirmed.
    pub fn keep(&mut self, finding: RawFinding) -> Result<()> {
        let (oracle, kind) = (finding.verdict.oracle, finding.kind.clone());
        let trial = finding.trial.clone();
        if self.triage.push(finding) {
            let judge = self.judge(oracle);
            let (_, holds) = judge.confirm(&trial, confirmation_seed(self.config.seed, &trial))?;
            self.summary.follow_up_evaluations += judge.calls();
            self.triage.sampled(&kind, holds);
        }
        Ok(())
    }

    /// Other failures that the reduction met become raw findings of their own.
    fn take_others(
        &mut self,
        kind: OracleKind,
        others: Vec<Trial>,
        lineage: &Lineage,
    ) -> Result<()> {
        let subject = self.subject;
        let mut admit =
            |trial: &Trial| self.triage.admit(kind, trial, &subject.describe(trial, kind));
        let fresh: Vec<Trial> = others.into_iter().filter(|trial| admit(trial)).collect();
        let judge = self.judge(kind);
        let verdicts = judge.judge(&fresh)?;
        self.summary.follow_up_evaluations += judge.calls();
        for (trial, verdict) in fresh.into_iter().zip(verdicts) {
            if verdict.fails() {
                let (lineage, kind) = (lineage.clone(), subject.describe(&trial, kind));
                self.keep(RawFinding { trial, verdict, lineage, kind })?;
            }
        }
        Ok(())
    }
}
