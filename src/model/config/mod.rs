//! What a model's files say of its shape.

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

/// Shape and constants of a decoder; the names are Hugging Face's where it has one for all
/// families.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Width of the MLPs (of those that are no mixture of experts).
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    /// Of the layers with attention; 0 where there is none.
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    /// Of attention whose keys and values come from a latent vector (DeepSeek-V2).
    pub latent: Option<Latent>,
    /// What mixes positions, per layer.
    pub mixers: Vec<Mixer>,
    /// Of the layers that are [`Mixer::Ssm`].
    pub ssm: Option<Ssm>,
    /// Of the layers that are [`Mixer::TimeMix`].
    pub rwkv: Option<Rwkv>,
    pub norm: NormKind,
    pub norm_eps: f64,
    pub residual: Residual,
    pub qk_norm: QkNorm,
    pub activation: Activation,
    /// Whether an MLP multiplies its activation with a second projection (SwiGLU and its like).
    pub gated_mlp: bool,
    /// What the dot product of query and key is multiplied with.
    pub attention_scale: f64,
    /// Rotary embedding of each layer; empty where positions are learned.
    pub rope: Vec<Rotary>,
    /// Per layer: how many positions a query sees, itself included (`None`: all before it).
    pub sliding_window: Vec<Option<usize>>,
    /// What token embeddings are multiplied with (Gemma: the square root of `hidden_size`).
    pub embedding_scale: f64,
    pub experts: Option<Experts>,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

/// What mixes the positions of a sequence in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixer {
    Attention,
    /// A selective state space: Mamba (Gu and Dao 2023), Mamba-2 (Dao and Gu 2024).
    Ssm,
    /// RWKV's time mixing (Peng et al. 2023, 2024, 2025).
    TimeMix,
}

/// How a vector is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square (Zhang and Sennrich 2019).
    Rms,
    /// Mean and variance, with a bias (Ba et al. 2016).
    Layer,
}

/// Where a block normalises, and whether its MLP waits for its attention.
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
    pub fn before(self) -> bool {
        self != Self::PostNorm
    }

    pub fn after(self) -> bool {
        matches!(self, Self::PostNorm | Self::Sandwich)
    }
}

/// What of queries and keys is normalised before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    Off,
    /// Each head by itself: Qwen 3, Gemma 3.
    Head,
    /// All heads together: OLMo 2, OLMoE.
    Full,
}

/// A function of each value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// With the error function.
    Gelu,
    /// With the hyperbolic tangent (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `max(x, 0)^2`: RWKV's channel mixing.
    ReluSquared,
    Sigmoid,
    Tanh,
    /// `ln(1 + e^x)`: Mamba's time step.
    Softplus,
    /// `exp(-exp(x))`: RWKV-6's decay.
    Decay6,
    /// `exp(-exp(-1/2) sigmoid(x))`: RWKV-7's decay, which stays above 0.545.
    Decay7,
}

/// Multi-head latent attention (DeepSeek-V2); `head_dim` is `qk_nope_head_dim + qk_rope_head_dim`.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
}

/// The mixture of experts of a model's sparse layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    pub moe_intermediate_size: usize,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub norm_topk_prob: bool,
    /// What the weights of the chosen experts are multiplied with.
    pub routed_scaling_factor: f64,
    /// Groups of experts, and how many of them (those of the most probable experts) a token chooses
    /// from.
    pub groups: Option<(usize, usize)>,
    /// Width of an expert that every token goes through; 0: there is none.
    pub shared_intermediate_size: usize,
    /// Whether that expert has a gate of its own.
    pub shared_gate: bool,
    /// Which layers are sparse; the others have an MLP of `intermediate_size`.
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

    /// Fills in what the tensors of a checkpoint say and its configuration need not: of RWKV-6 and
    /// 7, the heads and the width of the channel mixing.
    ///
    /// # Errors
    /// [`Error::Model`] for a tensor that is missing or of another shape.
    pub fn complete(&mut self, source: &dyn Source) -> Result<()> {
        families::complete(self, source)
    }

    /// Adds the end tokens that a `generation_config.json` names; what is malformed in it is left
    /// out, since nothing else is read from it.
    pub fn add_generation_ids(&mut self, text: &str) {
        let Ok(Value::Object(root)) = serde_json::from_str(text) else { return };
        for id in (Fields { path: "", root: &root }).ids("eos_token_id").unwrap_or_default() {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
    }

    /// Query heads that share one key/value head.
    pub fn group(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Width of all query heads together, `num_attention_heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together.
    pub fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Width of one head's values.
    pub fn v_head_dim(&self) -> usize {
        self.latent.as_ref().map_or(self.head_dim, |l| l.v_head_dim)
    }

    /// Width of all value heads together.
    pub fn v_width(&self) -> usize {
        self.num_key_value_heads * self.v_head_dim()
    }

    /// Whether some layer carries a state from position to position.
    pub fn is_recurrent(&self) -> bool {
        self.mixers.iter().any(|m| *m != Mixer::Attention)
    }

    /// Whether layers have an MLP, a channel mixing or a mixture of experts after their mixer.
    pub fn has_mlp(&self) -> bool {
        self.intermediate_size > 0
    }

    /// Whether a layer's MLP is a mixture of experts.
    pub fn is_sparse(&self, layer: usize) -> bool {
        self.experts.as_ref().is_some_and(|e| e.sparse[layer])
    }

    /// `(out, in)` of a weight matrix of a layer; `None` where it has none of this name.
    pub fn matrix_shape(&self, layer: usize, matrix: Matrix) -> Option<(usize, usize)> {
        let (d, q, kv, z) =
            (self.hidden_size, self.q_width(), self.kv_width(), self.z_width(layer));
        let attention = self.mixers[layer] == Mixer::Attention;
        let (ssm, rwkv) = (self.ssm_of(layer), self.rwkv_of(layer));
        let ff = self.neurons(layer);
        let dense = if rwkv.is_some() { 0 } else { ff };
        match matrix {
            // Of latent attention these are products of two.
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

    /// The state space of a layer.
    pub fn ssm_of(&self, layer: usize) -> Option<&Ssm> {
        self.ssm.as_ref().filter(|_| self.mixers[layer] == Mixer::Ssm)
    }

    /// The time mixing of a layer.
    pub fn rwkv_of(&self, layer: usize) -> Option<&Rwkv> {
        self.rwkv.as_ref().filter(|_| self.mixers[layer] == Mixer::TimeMix)
    }
}

/// JSON with `null` for the bare word `Infinity`, strings left alone.
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
