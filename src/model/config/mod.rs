//! The configuration of a model: its shape and its constants.

mod components;
mod identity;
mod recurrent;
mod rotary;

use serde_json::Value;

use super::families::{self, Fields};
use super::formats::Source;
use crate::edit::Matrix;
use crate::error::{Error, Result};

pub use recurrent::{Rwkv, Ssm, SsmNorms};
pub use rotary::{RopeScaling, Rotary};

/// Shape and constants of a decoder, under Hugging Face's names where all families share one. The
/// `Debug` text of a family is part of its models' fingerprints ([`identity`](Self::identity)).
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Family, by its `model_type` in `config.json`.
    pub model_type: String,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual stream, `d_model`.
    pub hidden_size: usize,
    /// Width of an MLP, `d_mlp`; 0 if layers have none.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads of an attention layer; 0 if there is none.
    pub num_attention_heads: usize,
    /// Key and value heads of an attention layer.
    pub num_key_value_heads: usize,
    /// Width of a query or key head.
    pub head_dim: usize,
    /// Longest context, tokens.
    pub max_position_embeddings: usize,
    /// Widths of latent attention (DeepSeek-V2).
    pub latent: Option<Latent>,
    /// Mixer of each layer.
    pub mixers: Vec<Mixer>,
    /// Sizes of the layers that are [`Mixer::Ssm`].
    pub ssm: Option<Ssm>,
    /// Sizes of the layers that are [`Mixer::TimeMix`].
    pub rwkv: Option<Rwkv>,
    /// Normalisation of the residual stream.
    pub norm: NormKind,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Arrangement of blocks and norms.
    pub residual: Residual,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
    /// Activation of the MLPs.
    pub activation: Activation,
    /// True if an MLP multiplies its activation by a second projection (SwiGLU and the like).
    pub gated_mlp: bool,
    /// Factor of the dot product of query and key.
    pub attention_scale: f64,
    /// Rotary embedding of each layer; empty if positions are learned.
    pub rope: Vec<Rotary>,
    /// Sliding window of each layer: positions a query attends to, itself included; `None`: all.
    pub sliding_window: Vec<Option<usize>>,
    /// Factor of the token embeddings (Gemma: the square root of `hidden_size`).
    pub embedding_scale: f64,
    /// The mixture of experts of the sparse layers.
    pub experts: Option<Experts>,
    /// True if the unembedding is the embedding.
    pub tie_word_embeddings: bool,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// The block of a layer that mixes positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixer {
    /// Multi-head attention (Vaswani et al. 2017), with grouped or latent keys.
    Attention,
    /// A selective state space: Mamba (Gu and Dao 2023), Mamba-2 (Dao and Gu 2024).
    Ssm,
    /// RWKV's time mixing (Peng et al. 2023, 2024, 2025).
    TimeMix,
}

/// A normalisation of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square (Zhang and Sennrich 2019).
    Rms,
    /// Mean and variance, with a bias (Ba et al. 2016).
    Layer,
}

/// The arrangement of a layer: where its blocks have norms, and whether the MLP `f` reads the
/// output of the attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// `x + f(norm(x))`, one after the other: Llama, GPT-2.
    PreNorm,
    /// `x + norm(f(x))`: OLMo 2.
    PostNorm,
    /// `x + norm(f(norm(x)))`: Gemma 3.
    Sandwich,
    /// `x + attention(norm(x)) + mlp(norm(x))`: GPT-NeoX.
    Parallel,
}

impl Residual {
    /// Returns whether blocks have a norm before them.
    pub fn before(self) -> bool {
        self != Self::PostNorm
    }

    /// Returns whether blocks have a norm after them.
    pub fn after(self) -> bool {
        matches!(self, Self::PostNorm | Self::Sandwich)
    }
}

/// The normalisation of queries and keys, before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    Off,
    /// Each head by itself: Qwen 3, Gemma 3.
    Head,
    /// All heads together: OLMo 2, OLMoE.
    Full,
}

/// A function that is applied to each value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, by the error function (Hendrycks and Gimpel 2016).
    Gelu,
    /// `x * Phi(x)`, approximated by the hyperbolic tangent (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `max(x, 0)^2`: RWKV's channel mixing.
    ReluSquared,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `ln(1 + e^x)`: Mamba's time step.
    Softplus,
    /// `exp(-exp(x))`: RWKV-6's decay.
    Decay6,
    /// `exp(-exp(-1/2) sigmoid(x))`: RWKV-7's decay, which stays above 0.545.
    Decay7,
}

/// Widths of multi-head latent attention (DeepSeek-V2); `head_dim` is `qk_nope_head_dim +
/// qk_rope_head_dim`.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    /// Width of the latent vector of the queries; `None`: these are projected in one step.
    pub q_lora_rank: Option<usize>,
    /// Width of the latent vector of keys and values.
    pub kv_lora_rank: usize,
    /// Dimensions of a head that are not rotated.
    pub qk_nope_head_dim: usize,
    /// Dimensions of a head that are rotated.
    pub qk_rope_head_dim: usize,
    /// Width of a head's values.
    pub v_head_dim: usize,
}

/// The mixture of experts of a model's sparse layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Number of experts of a layer.
    pub num_experts: usize,
    /// Number of experts that a token is routed to.
    pub num_experts_per_tok: usize,
    /// Width of an expert.
    pub moe_intermediate_size: usize,
    /// True if the routing weights of a token are divided by their sum.
    pub norm_topk_prob: bool,
    /// Factor of the routing weights.
    pub routed_scaling_factor: f64,
    /// Number of groups of experts, and how many of them a token chooses from: those with the most
    /// probable experts.
    pub groups: Option<(usize, usize)>,
    /// Width of the shared expert, which all tokens pass through; 0: there is none.
    pub shared_intermediate_size: usize,
    /// True if the shared expert has a gate.
    pub shared_gate: bool,
    /// For each layer, true if it is sparse; the others have an MLP of `intermediate_size`.
    pub sparse: Vec<bool>,
}

impl Config {
    /// Parses a Hugging Face `config.json`; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::Model`] naming the field, for one that is missing, out of range or of another type,
    /// and for a `model_type` that has no decoder here (the message lists those that do).
    pub fn from_json(path: &str, text: &str) -> Result<Self> {
        // Python writes an infinite bound as a bare word that JSON does not have.
        let value: Value = serde_json::from_str(text)
            .or_else(|e| serde_json::from_str(&without_infinity(text)).map_err(|_| e))
            .map_err(|e| Error::model(path, "config", e))?;
        let root = value
            .as_object()
            .ok_or_else(|| Error::model(path, "config", "expected a JSON object"))?;
        families::read(&Fields { path, root })
    }

    /// Completes the configuration from the shapes of a checkpoint's tensors: in RWKV-6 and 7, the
    /// heads and the width of the channel mixing.
    ///
    /// # Errors
    /// [`Error::Model`] for a tensor that is missing or has another shape.
    pub fn complete(&mut self, source: &dyn Source) -> Result<()> {
        families::complete(self, source)
    }

    /// Adds the end tokens of a `generation_config.json`, of which nothing else is read; a
    /// malformed file is ignored.
    pub fn add_generation_ids(&mut self, text: &str) {
        let Ok(Value::Object(root)) = serde_json::from_str(text) else { return };
        for id in (Fields { path: "", root: &root }).ids("eos_token_id").unwrap_or_default() {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
    }

    /// Returns the number of query heads that share a key/value head.
    pub fn group(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Returns the width of all query heads, `num_attention_heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Returns the width of all key heads, `num_key_value_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Returns the width of one head's values.
    pub fn v_head_dim(&self) -> usize {
        self.latent.as_ref().map_or(self.head_dim, |l| l.v_head_dim)
    }

    /// Returns the width of all value heads, `num_key_value_heads * v_head_dim`.
    pub fn v_width(&self) -> usize {
        self.num_key_value_heads * self.v_head_dim()
    }

    /// Returns whether any layer is recurrent.
    pub fn is_recurrent(&self) -> bool {
        self.mixers.iter().any(|m| *m != Mixer::Attention)
    }

    /// Returns whether layers have an MLP, a mixture of experts or a channel mixing.
    pub fn has_mlp(&self) -> bool {
        self.intermediate_size > 0
    }

    /// Returns whether a layer has a mixture of experts.
    pub fn is_sparse(&self, layer: usize) -> bool {
        self.experts.as_ref().is_some_and(|e| e.sparse[layer])
    }

    /// Returns the shape `(out, in)` of a weight matrix; `None` if the layer has no such matrix.
    pub fn matrix_shape(&self, layer: usize, matrix: Matrix) -> Option<(usize, usize)> {
        let (d, q, kv, z) =
            (self.hidden_size, self.q_width(), self.kv_width(), self.z_width(layer));
        let attention = self.mixers[layer] == Mixer::Attention;
        let (ssm, rwkv) = (self.ssm_of(layer), self.rwkv_of(layer));
        let ff = self.neurons(layer);
        let dense = if rwkv.is_some() { 0 } else { ff };
        match matrix {
            // In latent attention these are products of two matrices.
            Matrix::Q | Matrix::K | Matrix::V if self.latent.is_some() => None,
            Matrix::Q => attention.then_some((q, d)),
            Matrix::K | Matrix::V => attention.then_some((kv, d)),
            Matrix::O => attention.then_some((d, z)),
            Matrix::Gate if !self.gated_mlp => None,
            Matrix::Gate | Matrix::Up => (dense > 0).then_some((ff, d)),
            Matrix::Down => (dense > 0).then_some((d, ff)),
            Matrix::SsmIn => ssm.map(|s| (s.in_width(), d)),
            Matrix::SsmX => {
                ssm.filter(|s| s.version == 1).map(|s| (s.time_step_rank + 2 * s.state_size, z))
            }
            Matrix::SsmDt => ssm.filter(|s| s.version == 1).map(|s| (z, s.time_step_rank)),
            Matrix::SsmOut => ssm.map(|_| (d, z)),
            Matrix::Receptance | Matrix::Key | Matrix::Value => rwkv.map(|_| (z, d)),
            Matrix::TimeGate => rwkv.filter(|r| r.version == 6).map(|_| (z, d)),
            Matrix::TimeOut => rwkv.map(|_| (d, z)),
            Matrix::ChannelKey => rwkv.map(|_| (ff, d)),
            Matrix::ChannelValue => rwkv.map(|_| (d, ff)),
            Matrix::ChannelReceptance => rwkv.filter(|r| r.version != 7).map(|_| (d, d)),
        }
    }

    /// Returns the sizes of a layer's state space, if it is one.
    pub fn ssm_of(&self, layer: usize) -> Option<&Ssm> {
        self.ssm.as_ref().filter(|_| self.mixers[layer] == Mixer::Ssm)
    }

    /// Returns the sizes of a layer's time mixing, if it has one.
    pub fn rwkv_of(&self, layer: usize) -> Option<&Rwkv> {
        self.rwkv.as_ref().filter(|_| self.mixers[layer] == Mixer::TimeMix)
    }
}

/// Replaces the bare word `Infinity` in JSON by `null`; strings are left alone.
fn without_infinity(text: &str) -> String {
    let parts = text.split('"').enumerate();
    // Every other part is inside of quotes; an escaped quote only moves the seams within a string,
    // and a file that has one beside a bare Infinity is refused as it was.
    let outside =
        parts.map(
            |(i, part)| if i % 2 == 0 { part.replace("Infinity", "null") } else { part.to_owned() },
        );
    outside.collect::<Vec<_>>().join("\"")
}
