//! Generation that is sampled and not greedy. A verdict about greedy generation is about one text
//! of many, and the most probable token at each place is a knife's edge.

use rand::Rng as _;
use serde::{Deserialize, Serialize};

use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::Request;
use crate::oracle::ModelJudge;
use crate::rng;

/// Continuations sampled with and without the edits.
pub const SAMPLES: u64 = 32;

/// How many sampled continuations degenerate, with the edits and without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampled {
    /// Continuations sampled at temperature 1, with the edits and as many without.
    pub samples: u64,
    /// Degenerate ones with the edits.
    pub degenerate: u64,
    /// Degenerate ones without.
    pub degenerate_baseline: u64,
}

/// Samples continuations of a trial and of its baseline; `None` for an oracle that is not about
/// generation that degenerates.
///
/// # Errors
/// Those of the evaluator.
pub fn sampled(judge: &ModelJudge, trial: &Trial, seed: u64) -> Result<Option<Sampled>> {
    let oracle = judge.oracle.oracle();
    let Some(degenerates) = oracle.degenerates() else { return Ok(None) };
    let mut rng = rng::stream(seed, "sampled continuations");
    let mut degenerate = |trial: &Trial| -> Result<u64> {
        let requests: Vec<Request> = (0..SAMPLES)
            .map(|_| Request::new(trial.clone()).sampling(oracle.generate(), rng.random()))
            .collect();
        judge.add_calls(SAMPLES);
        let observations = judge.evaluator.observe(&requests)?;
        Ok(observations.iter().filter(|observation| degenerates(observation)).count() as u64)
    };
    let (with, without) = (degenerate(trial)?, degenerate(&trial.baseline())?);
    Ok(Some(Sampled { samples: SAMPLES, degenerate: with, degenerate_baseline: without }))
}
