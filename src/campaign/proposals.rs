//! Proposes the next trials: parents from the archive, mutators from the bandit.

use std::sync::Arc;

use super::archive::Archive;
use super::bandit::Bandit;
use super::config::Search;
use super::parents::Parents;
use super::queue::Queue;
use super::subject::{Seed, Subject};
use crate::case::Lineage;
use crate::edit::Trial;
use crate::mutate::{Context, Mutator};
use crate::rng::Rng;

/// A trial of a round, with where it came from.
pub(super) struct Proposal {
    pub trial: Trial,
    /// The mutator, by its place in [`Proposer::mutators`].
    pub arm: usize,
    pub lineage: Lineage,
}

/// Proposals that are tried for each one wanted: mutators that can propose nothing (no suspects,
/// say) must not hang the loop.
const ATTEMPTS: usize = 20;

/// Proposes batches of trials.
pub(super) struct Proposer {
    pub mutators: Vec<&'static dyn Mutator>,
    pub parents: Box<dyn Parents>,
    pub bandit: Bandit,
    /// Prompts to splice from.
    splices: Vec<Arc<[u32]>>,
    /// Seed of the campaign, for the lineage of what is proposed.
    seed: u64,
}

impl Proposer {
    pub fn new(
        mutators: Vec<&'static dyn Mutator>,
        seeds: &[Seed],
        search: Search,
        seed: u64,
    ) -> Self {
        let named = seeds.iter().map(|seed| (seed.name.clone(), seed.trial.clone()));
        Self {
            parents: match search {
                Search::Kinds => Box::new(Archive::new(named)),
                Search::Score => Box::new(Queue::new(named)),
            },
            bandit: Bandit::new(mutators.len()),
            splices: seeds.iter().map(|seed| seed.trial.base.clone()).collect(),
            mutators,
            seed,
        }
    }

    /// Returns what mutators draw on.
    pub fn context<'s>(&'s self, subject: &'s Subject<'s>) -> Context<'s> {
        subject.context(&self.splices)
    }

    /// Proposes up to `size` trials, numbered from `first` on.
    pub fn propose(
        &mut self,
        subject: &Subject,
        size: usize,
        first: u64,
        rng: &mut Rng,
    ) -> Vec<Proposal> {
        let context = subject.context(&self.splices);
        let mut proposals = Vec::with_capacity(size);
        // However well an arm pays, it gets no more than half of a batch: what is paid is an
        // estimate, and a map with one region is not what a campaign is for. Unless nothing else
        // can propose anything.
        let mut counts = vec![0; self.mutators.len()];
        for attempt in 0..size * ATTEMPTS {
            if proposals.len() == size {
                break;
            }
            let alone = attempt > size * ATTEMPTS / 2;
            let arm = self.bandit.pick(|arm| counts[arm] < size.div_ceil(2) || alone, rng);
            let Some(parent) = self.parents.pick(rng) else { break };
            let Some(trial) = self.mutators[arm].propose(&parent.trial, &context, rng) else {
                self.bandit.reward(arm, 0.0);
                continue;
            };
            let mut mutators = parent.mutators.clone();
            mutators.push(self.mutators[arm].name().into());
            let lineage = Lineage {
                seed: self.seed,
                evaluation: first + proposals.len() as u64,
                mutators,
                parent: parent.seed.clone(),
            };
            counts[arm] += 1;
            proposals.push(Proposal { trial, arm, lineage });
        }
        proposals
    }
}
