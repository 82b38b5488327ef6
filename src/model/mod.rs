//! The model under test: configuration, weights, tokenizer, one decoder loop.
//!
//! Nothing here knows of trials, oracles or campaigns; `evaluate` turns those into batches. The
//! files of this folder are the interface to the other rooms. Its folders hold the file formats of
//! models (`formats`), their shapes and constants (`config`), the families (`families`), tensors
//! (`weights`), the blocks of a layer (`layers`) and their arithmetic (`arithmetic`).

mod arithmetic;
pub mod batch;
mod config;
mod decoder;
mod families;
mod formats;
mod forward;
pub mod hooks;
mod layers;
mod load;
pub mod readout;
mod weights;

pub use arithmetic::composed::Probes;
pub use arithmetic::linear::PackedMatrix;
pub use arithmetic::pool::Pooled;
pub use config::{
    Activation, Config, Experts, Latent, Mixer, NormKind, QkNorm, Residual, RopeScaling, Rotary,
    Rwkv, Ssm,
};
pub use families::FAMILIES;
pub use formats::difference::split as split_difference;
pub use formats::locate::{is_named, short_names};
pub use formats::tokenizer::Tokenizer;
pub use formats::{Source, StoredFloat};
pub use forward::{Forward, Output};
pub use layers::{Layer, Mlp, chosen_experts, tokens_of_experts};
pub use readout::{Distributions, Read, Readout, log_sum_exp};
pub use weights::{Linear, Weights};

use serde::{Deserialize, Serialize};

use crate::edit::{Component, InLayer, Matrix, Steering, SteeringVector};
use crate::error::{Error, Result};

/// A loaded model: configuration, weights, tokenizer and fingerprints.
pub struct Model {
    /// The name or path it was loaded by.
    pub name: String,
    /// Shape and constants.
    pub config: Config,
    /// All tensors, packed for multiplication.
    pub weights: Weights,
    /// The format in which the file has the weight matrices; `None` where they are quantized, or
    /// in several formats.
    pub stored: Option<StoredFloat>,
    /// The tokenizer, if there is one beside the weights.
    pub tokenizer: Option<Tokenizer>,
    /// sha256 over configuration and tensors, in hex.
    pub fingerprint: String,
    /// sha256 over the tokenizer, in hex.
    pub tokenizer_fingerprint: Option<String>,
}

/// The reference by which a case or a summary names its model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// The model's name: `builtin:dense`, `hf:org/name`, or an absolute path (`~` for the home
    /// folder), however it was spelt. Older files have the spelling of the command line.
    pub name: String,
    /// sha256 over the model's tensors and configuration.
    pub fingerprint: String,
    /// sha256 over the tokenizer; `None` for a model without one.
    pub tokenizer: Option<String>,
}

impl Model {
    /// Returns the reference by which a case names this model.
    pub fn reference(&self) -> ModelRef {
        ModelRef {
            name: formats::locate::canonical_name(&self.name),
            fingerprint: self.fingerprint.clone(),
            tokenizer: self.tokenizer_fingerprint.clone(),
        }
    }

    /// Encodes text, with the model's BOS token in front unless the text begins with it.
    ///
    /// # Errors
    /// [`Error::Request`] for a model without a tokenizer and for text that it cannot encode.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| {
            Error::request(format!("{} has no tokenizer: give token ids", self.name))
        })?;
        let mut ids = tokenizer.encode(text)?;
        if let Some(bos) = self.config.bos_token_id.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// Decodes ids; without a tokenizer each as `<id>`.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.decode(ids),
            None => ids.iter().map(|id| format!("<{id}>")).collect(),
        }
    }

    /// Returns the text of one token.
    pub fn token(&self, id: u32) -> String {
        self.tokenizer.as_ref().map_or_else(|| format!("<{id}>"), |t| t.token(id))
    }

    /// Checks that all ids are in the vocabulary.
    ///
    /// # Errors
    /// [`Error::Request`] for an id beyond the vocabulary.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let size = self.config.vocab_size;
        match ids.iter().find(|id| **id as usize >= size) {
            Some(id) => {
                Err(Error::request(format!("token id {id} is beyond the vocabulary of {size}")))
            }
            None => Ok(()),
        }
    }

    /// Checks that the model has a component.
    ///
    /// # Errors
    /// [`Error::Request`] for a component this model does not have.
    pub fn check_component(&self, component: &Component) -> Result<()> {
        if self.config.has(component) {
            Ok(())
        } else {
            Err(Error::request(format!("{} has no component {component}", self.name)))
        }
    }

    /// Checks that the model has a component and that it is attention, whose edges a knockout cuts.
    ///
    /// # Errors
    /// [`Error::Request`] for a component this model does not have or that does not attend.
    pub fn check_attention(&self, component: &Component) -> Result<()> {
        self.check_component(component)?;
        match self.config.mixers[component.layer()] {
            Mixer::Attention => Ok(()),
            Mixer::Ssm | Mixer::TimeMix => Err(Error::request(format!(
                "{} has no attention in layer {}: {component} attends to nothing",
                self.name,
                component.layer()
            ))),
        }
    }

    /// Checks that the model has the place of a steering edit, and residual streams as wide as its
    /// vector.
    ///
    /// # Errors
    /// [`Error::Request`] naming the place or both widths.
    pub fn check_steering(&self, steering: &Steering) -> Result<()> {
        let (site, width) = (steering.site, self.config.hidden_size);
        if site.layer >= self.config.num_hidden_layers {
            return Err(Error::request(format!("{} has no {site}", self.name)));
        }
        if site.at == InLayer::Mid && self.config.residual == Residual::Parallel {
            return Err(Error::request(format!(
                "{} has no {site}: attention and MLP read the same residual stream",
                self.name
            )));
        }
        match &steering.vector {
            SteeringVector::Values { values } if values.len() != width => Err(Error::request(
                format!("a vector of {} values for residual streams of {width}", values.len()),
            )),
            _ => Ok(()),
        }
    }

    /// Returns one scalar weight; 0 where the layer has no such matrix.
    pub fn weight(&self, layer: usize, matrix: Matrix, out: usize, input: usize) -> f32 {
        let located = self.weights.layers[layer].locate(matrix, &self.config);
        located.map_or(0.0, |(linear, first)| linear.matrix.get(first + out, input))
    }

    /// Returns the value of a weight with one bit flipped as it is stored.
    ///
    /// # Errors
    /// [`Error::Request`] if it is not known how the weights are stored, or they have no such bit.
    pub fn flipped(&self, weight: f32, bit: u32) -> Result<f32> {
        let Some(stored) = self.stored else {
            return Err(Error::request(format!(
                "action: flip, but {} does not have its weights as floats of one format",
                self.name
            )));
        };
        if bit >= stored.bits() {
            let bits = stored.bits();
            let message = format!("action.bit: {bit}, but the file's weights have {bits} bits");
            return Err(Error::request(message));
        }
        Ok(stored.flip(weight, bit))
    }

    /// Returns one row of a weight matrix, `[in]`; empty where the layer has no such matrix.
    pub fn weight_row(&self, layer: usize, matrix: Matrix, out: usize) -> Vec<f32> {
        let Some((linear, first)) = self.weights.layers[layer].locate(matrix, &self.config) else {
            return Vec::new();
        };
        let mut row = vec![0f32; linear.matrix.in_()];
        linear.matrix.row(first + out, &mut row);
        row
    }

    /// Returns the embedding of a token as it enters the residual stream, `[d_model]`.
    pub fn embedding(&self, id: u32) -> Vec<f32> {
        let mut row = vec![0f32; self.config.hidden_size];
        self.weights.embed.row(id as usize, &mut row);
        self.scale_embeddings(&mut row);
        row
    }

    /// Returns the dot products `[n, vocab]` of directions `[n, d_model]` with the embeddings of
    /// all tokens.
    pub fn along_embeddings(&self, directions: &[f32]) -> Vec<f32> {
        let n = directions.len() / self.config.hidden_size;
        let mut along = vec![0f32; n * self.config.vocab_size];
        self.weights.embed.matmul(directions, n, &mut along);
        self.scale_embeddings(&mut along);
        along
    }

    /// Returns the unembedding of a token, `[d_model]`.
    pub fn unembedding(&self, id: u32) -> Vec<f32> {
        let mut row = vec![0f32; self.config.hidden_size];
        self.weights.head.matrix.row(id as usize, &mut row);
        row
    }

    /// Returns the number of parameters; tied embeddings are counted once.
    pub fn parameters(&self) -> usize {
        self.weights.parameters(&self.config)
    }
}
