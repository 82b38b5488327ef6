//! The campaign itself: rounds and follow-ups, until a budget is spent.
//!
//! Everything here is a function of the seed, the batch size and the number of evaluations; the
//! clock is looked at only to stop: between rounds, between follow-ups, and between the batches of
//! a reduction.

use std::time::Instant;

use super::config::CampaignConfig;
use super::deadline::StopSignal;
use super::events::{Event, Sink};
use super::setup::NO_SEEDS;
use super::state::Campaign;
use super::subject::Subject;
use super::summary::{Summary, Unseen};
use crate::error::{Error, Result};
use crate::pipeline::Explainer;
use crate::rng;

/// Runs a campaign to the end of its budget. What was found went to the sink when it was found, so
/// an error or an interruption loses nothing.
///
/// # Errors
/// [`Error::Request`] for a definition or seeds that make no campaign; what the evaluator, the
/// explainer and the sink refuse.
pub fn run(
    config: &CampaignConfig,
    subject: &Subject,
    explainer: &dyn Explainer,
    sink: &mut dyn Sink,
    signal: &StopSignal,
) -> Result<Summary> {
    config.check().map_err(|(field, message)| Error::request(format!("{field}: {message}")))?;
    if subject.seeds.is_empty() {
        return Err(Error::request(NO_SEEDS));
    }
    let mut campaign = Campaign::new(config, subject, signal)?;
    campaign.run(explainer, sink)?;
    Ok(campaign.summary)
}

impl Campaign<'_> {
    fn run(&mut self, explainer: &dyn Explainer, sink: &mut dyn Sink) -> Result<()> {
        self.calibrate()?;
        let mut rng = rng::stream(self.config.seed, "campaign");
        let stopped_by = loop {
            if let Some(reason) = self.stopped() {
                break reason;
            }
            if self.config.max_evals.is_some_and(|most| self.summary.evaluations >= most) {
                // What was found is followed up whatever it takes: the evaluations of the loop are
                // spent.
                while !self.triage.is_empty() && self.may_follow_up() {
                    self.follow_up(explainer, sink)?;
                }
                break self.stopped().unwrap_or("max-evals");
            }
            let started = Instant::now();
            let proposed = self.round(&mut rng, sink)?;
            self.deadline.round_took(started.elapsed());
            if !proposed {
                break "exhausted";
            }
            for _ in 0..self.config.follow_ups_per_round {
                if !self.may_follow_up() {
                    break;
                }
                self.follow_up(explainer, sink)?;
            }
            sink.event(Event::Round(self.progress()))?;
        };
        self.add_point();
        self.summary.kinds = self.triage.kinds();
        self.summary.unseen = Some(Unseen::new(self.summary.evaluations, &self.summary.kinds));
        self.summary.stopped_by = stopped_by.into();
        Ok(())
    }
}
