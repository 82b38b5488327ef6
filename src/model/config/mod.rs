//! What a model's files say of its shape.

mod components;
mod families;
mod fields;
mod recurrent;

use serde_json::Value;

use fields::Fields;

use crate::edit::Matrix;
use crate::error::{Error, Result};

pub use families::FAMILIES;
pub use recurrent::{Rwkv, Ssm, SsmNorms};

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

/// The rotary embedding of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    pub theta: f64,
    /// How many of a head's leading dimensions are rotated.
    pub dim: usize,
    pub scaling: Option<RopeScaling>,
}

/// Changes of the rotary frequencies for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, interpolated between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: f64,
    },
    /// YaRN (Peng et al. 2023): frequencies that turn often within the original context kept, those
    /// that turn seldom divided by `factor`, those between interpolated; cosines and sines times
    /// `attention_factor`.
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_max_position_embeddings: f64,
        attention_factor: f64,
    },
    /// Every position divided by `factor`.
    Linear { factor: f64 },
    /// A divisor per frequency, as GGUF files carry it (`rope_freqs.weight`), `[dim / 2]`; Phi-3's
    /// `short_factor` is the same, with cosines and sines multiplied by `attention_factor` besides.
    Divisors { divisors: Vec<f32>, attention_factor: f64 },
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
    pub fn complete(&mut self, source: &dyn crate::model::formats::Source) -> Result<()> {
        let Some(rwkv) = self.rwkv.as_mut().filter(|r| r.version != 4) else { return Ok(()) };
        let matrix = |name: &str| match source.shape(name).as_deref() {
            Some(&[rows, columns]) => Ok((rows, columns)),
            Some(other) => Err(Error::model(
                source.path(),
                name,
                format!("expected a matrix, got shape {other:?}"),
            )),
            None => Err(Error::model(source.path(), name, "tensor is missing")),
        };
        let by_head =
            if rwkv.version == 6 { "blocks.0.att.time_faaaa" } else { "blocks.0.att.r_k" };
        let (heads, dim) = matrix(by_head)?;
        let (attention, _) = matrix("blocks.0.att.receptance.weight")?;
        if heads.checked_mul(dim) != Some(attention) || attention == 0 {
            return Err(Error::model(
                source.path(),
                by_head,
                format!("{heads} heads of {dim} are not {attention} channels"),
            ));
        }
        (rwkv.num_heads, rwkv.attention_size) = (heads, attention);
        let key = "blocks.0.ffn.key.weight";
        self.intermediate_size = matrix(key)?.0;
        if self.intermediate_size == 0 {
            return Err(Error::model(source.path(), key, "has no rows"));
        }
        Ok(())
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

    /// What a model's fingerprint is taken over, besides its tensors. Stored cases depend on it, so
    /// the text that version 0.1 made for its families is made for them still.
    pub fn identity(&self) -> String {
        #[derive(Debug)]
        #[allow(dead_code)] // read by `Debug` alone
        struct Config<'a> {
            model_type: &'a str,
            vocab_size: usize,
            hidden_size: usize,
            intermediate_size: usize,
            num_hidden_layers: usize,
            num_attention_heads: usize,
            num_key_value_heads: usize,
            head_dim: usize,
            max_position_embeddings: usize,
            rms_norm_eps: f64,
            rope_theta: f64,
            rope_scaling: Option<OldScaling>,
            sliding_window: &'a [Option<usize>],
            tie_word_embeddings: bool,
            bos_token_id: Option<u32>,
            eos_token_ids: &'a [u32],
        }
        #[derive(Debug)]
        #[allow(dead_code)]
        enum OldScaling {
            Llama3 {
                factor: f64,
                low_freq_factor: f64,
                high_freq_factor: f64,
                original_max_position_embeddings: f64,
            },
            Linear {
                factor: f64,
            },
            Divisors(Vec<f32>),
            Yarn {
                factor: f64,
                beta_fast: f64,
                beta_slow: f64,
                original_max_position_embeddings: f64,
            },
        }
        if !["llama", "mistral", "qwen2", "qwen3"].contains(&self.model_type.as_str()) {
            return format!("{self:?}");
        }
        let rope = self.rope.first();
        let scaling = rope.and_then(|r| r.scaling.clone()).map(|scaling| match scaling {
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => OldScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            },
            RopeScaling::Linear { factor } => OldScaling::Linear { factor },
            RopeScaling::Divisors { divisors, .. } => OldScaling::Divisors(divisors),
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                ..
            } => {
                OldScaling::Yarn { factor, beta_fast, beta_slow, original_max_position_embeddings }
            }
        });
        let old = Config {
            model_type: &self.model_type,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            max_position_embeddings: self.max_position_embeddings,
            rms_norm_eps: self.norm_eps,
            rope_theta: rope.map_or(0.0, |r| r.theta),
            rope_scaling: scaling,
            sliding_window: &self.sliding_window,
            tie_word_embeddings: self.tie_word_embeddings,
            bos_token_id: self.bos_token_id,
            eos_token_ids: &self.eos_token_ids,
        };
        format!("{old:?}")
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

impl Rotary {
    /// Frequencies, radians per position, `[dim / 2]`, scaling applied.
    ///
    /// `llama3` after Llama 3.1's reference code: wavelengths beyond `original / low` are divided
    /// by the factor, those below `original / high` kept, those between interpolated.
    pub fn frequencies(&self) -> Vec<f32> {
        let plain = |i: usize| self.theta.powf(-(2.0 * i as f64) / self.dim as f64);
        (0..self.dim / 2)
            .map(|i| {
                let f = plain(i);
                let scaled = match &self.scaling {
                    None => f,
                    Some(RopeScaling::Linear { factor }) => f / factor,
                    Some(RopeScaling::Yarn {
                        factor,
                        beta_fast,
                        beta_slow,
                        original_max_position_embeddings,
                        ..
                    }) => {
                        // The dimension that turns so often within the original context.
                        let dimension = |turns: f64| {
                            let positions =
                                original_max_position_embeddings / (turns * std::f64::consts::TAU);
                            self.dim as f64 * positions.ln() / (2.0 * self.theta.ln())
                        };
                        let low = dimension(*beta_fast).floor().max(0.0);
                        let high = dimension(*beta_slow).ceil().min(self.dim as f64 - 1.0);
                        let width = if high == low { 0.001 } else { high - low };
                        let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
                        divided * f / factor + (1.0 - divided) * f
                    }
                    Some(RopeScaling::Divisors { divisors, .. }) => f / f64::from(divisors[i]),
                    Some(RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_max_position_embeddings,
                    }) => {
                        let wavelength = std::f64::consts::TAU / f;
                        let turns = original_max_position_embeddings / wavelength;
                        let smooth = ((turns - low_freq_factor)
                            / (high_freq_factor - low_freq_factor))
                            .clamp(0.0, 1.0);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                scaled as f32
            })
            .collect()
    }

    /// What cosines and sines are multiplied with.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            Some(
                RopeScaling::Divisors { attention_factor, .. }
                | RopeScaling::Yarn { attention_factor, .. },
            ) => attention_factor,
            _ => 1.0,
        }
    }
}
