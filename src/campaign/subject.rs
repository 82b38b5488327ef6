//! The subject of a campaign: the model and everything measured on it beforehand.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::echo::EchoPrompt;
use crate::edit::{Component, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator, Observation, Request, TwoModels};
use crate::model::{Config, ModelRef, StoredFloat};
use crate::mutate::RoutingContrast;
use crate::mutate::interactions::Interactions;
use crate::mutate::suffix::Promising;
use crate::mutate::{Context, Layers};
use crate::oracle::OracleKind;
use crate::replicate::NewPrompts;
use crate::species::Descriptor;
use crate::vocabulary::Vocabulary;

/// The model that a campaign is run on, with what was measured on it beforehand.
pub struct Subject<'a> {
    /// Observes trials.
    pub evaluator: &'a dyn Evaluator,
    /// Name and fingerprint of the model.
    pub model: ModelRef,
    /// The model that it is compared with, which `evaluator` runs beside it. `None` where there is
    /// none.
    pub against: Option<ModelRef>,
    /// Shape of the model.
    pub config: &'a Config,
    /// Suspect, ordinary and special tokens.
    pub vocabulary: &'a Vocabulary,
    /// Returns the text of a token.
    pub token: &'a dyn Fn(u32) -> String,
    /// The prompts to start from.
    pub seeds: Vec<Seed>,
    /// Prompts that findings are put into, of which none is a seed.
    pub new_prompts: NewPrompts,
    /// Echo prompts; empty where the model cannot repeat ordinary tokens.
    pub echo: Vec<EchoPrompt>,
    /// Proposed super weights.
    pub weights: Vec<Component>,
    /// The format of the file's weights; `None`: not known.
    pub stored: Option<StoredFloat>,
    /// Interactions of pairs of lesions; empty unless sets of lesions are proposed.
    pub interactions: Vec<Interactions>,
    /// Tokens that a gradient ranks highest after the seeds; empty unless suffixes are proposed.
    pub suffixes: Vec<Promising>,
    /// The routing of each seed against that of the others; empty unless lesions are proposed, and
    /// for a model without experts.
    pub routing: Vec<RoutingContrast>,
    /// Layers whose components may be lesioned; `None`: all. Controls come from all of them.
    pub layers: Option<Layers>,
    /// Noise floor of each oracle's score; 1e-4 where none is given.
    pub noise_floors: BTreeMap<OracleKind, f64>,
}

impl<'a> Subject<'a> {
    /// Compares the model with another one.
    #[must_use]
    pub fn compared(self, models: &'a TwoModels<'a, 'a>) -> Self {
        Self { evaluator: models, against: Some(models.against.model.reference()), ..self }
    }

    /// Returns what mutators draw on; `splices` are sequences to splice from.
    pub(super) fn context(&'a self, splices: &'a [Arc<[u32]>]) -> Context<'a> {
        Context {
            config: self.config,
            vocabulary: self.vocabulary,
            seeds: splices,
            echo: &self.echo,
            weights: &self.weights,
            stored: self.stored,
            interactions: &self.interactions,
            suffixes: &self.suffixes,
            routing: &self.routing,
            layers: self.layers,
        }
    }

    /// Returns the kind of a trial that failed an oracle.
    pub(super) fn describe(&self, trial: &Trial, oracle: OracleKind) -> Descriptor {
        Descriptor::new(trial, oracle, &|id| self.vocabulary.kind(id).into())
    }

    /// Observes requests, one answer for each.
    pub(super) fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let observations = self.evaluator.observe(requests)?;
        if observations.len() != requests.len() {
            return Err(Error::internal("the evaluator did not answer every request"));
        }
        Ok(observations)
    }
}

/// A seed prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Seed {
    /// Name in lineages: its file and paragraph.
    pub name: String,
    /// The prompt and its teacher-forced end, without edits.
    pub trial: Trial,
}

impl Seed {
    /// Makes a seed of a prompt whose last `continuation` tokens (at most half of it) are
    /// teacher-forced; `None` when it is too short to have both.
    pub fn new(name: impl Into<String>, ids: &[u32], continuation: usize) -> Option<Self> {
        let at = ids.len() - continuation.min(ids.len() / 2);
        (at < ids.len() && at > 1)
            .then(|| Self { name: name.into(), trial: Trial::new(&ids[..at], &ids[at..]) })
    }
}
