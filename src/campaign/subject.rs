//! What a campaign is run on, and what may stop it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::echo::EchoPrompt;
use crate::edit::{Component, Trial};
use crate::evaluate::Evaluator;
use crate::model::{Config, ModelRef};
use crate::mutate::Context;
use crate::mutate::interactions::Interactions;
use crate::mutate::suffix::Promising;
use crate::oracle::OracleKind;
use crate::vocabulary::Vocabulary;

/// What a campaign is run on.
pub struct Subject<'a> {
    pub evaluator: &'a dyn Evaluator,
    pub model: ModelRef,
    pub config: &'a Config,
    pub vocabulary: &'a Vocabulary,
    pub seeds: Vec<Seed>,
    /// Empty where the model cannot repeat ordinary tokens.
    pub echo: Vec<EchoPrompt>,
    /// Proposed super weights.
    pub weights: Vec<Component>,
    /// How pairs of lesions interact; empty unless sets of them are proposed.
    pub interactions: Vec<Interactions>,
    /// What a gradient expects most of after the seeds; empty unless suffixes are proposed.
    pub suffixes: Vec<Promising>,
    /// Of each oracle's score; 1e-4 where none is given.
    pub noise_floors: BTreeMap<OracleKind, f64>,
}

impl<'a> Subject<'a> {
    /// What mutators draw on; `splices` are sequences to splice from.
    pub(super) fn context(&'a self, splices: &'a [Arc<[u32]>]) -> Context<'a> {
        Context {
            config: self.config,
            vocabulary: self.vocabulary,
            seeds: splices,
            echo: &self.echo,
            weights: &self.weights,
            interactions: &self.interactions,
            suffixes: &self.suffixes,
        }
    }
}

/// A seed prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Seed {
    pub name: String,
    pub trial: Trial,
}

impl Seed {
    /// A prompt whose last `continuation` tokens (at most half of it) are teacher-forced; `None`
    /// when it is too short to have both.
    pub fn new(name: impl Into<String>, ids: &[u32], continuation: usize) -> Option<Self> {
        let at = ids.len() - continuation.min(ids.len() / 2);
        (at < ids.len() && at > 1)
            .then(|| Self { name: name.into(), trial: Trial::new(&ids[..at], &ids[at..]) })
    }
}

/// What stops a campaign besides its own budget.
pub struct Control<'a> {
    pub interrupted: &'a AtomicBool,
    /// When the program started: `max_time` counts from here.
    pub started: Instant,
}
