//! What a model's files say of its shape.

/// Shape and constants of a decoder-only transformer; the names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    /// Per layer: how many positions a query sees, itself included (`None`: all before it).
    pub sliding_window: Vec<Option<usize>>,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

/// Changes of the rotary frequencies for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, interpolated between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: f64 },
    /// Every position divided by `factor`.
    Linear { factor: f64 },
    /// A divisor per frequency, as GGUF files carry it (`rope_freqs.weight`), `[head_dim / 2]`.
    Divisors(Vec<f32>),
}
