//! The text of a configuration that is part of a model's fingerprint.

use super::{Config as Current, RopeScaling};

/// The families of version 0.1, whose text has the fields that version had. Never to be extended.
const FIRST_FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

impl Current {
    /// Returns the text that a model's fingerprint is taken over, besides its tensors. Stored cases
    /// name their model by it, so it must not change: the families of version 0.1 keep the text of
    /// that version, all others have that of [`Debug`].
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
        if !FIRST_FAMILIES.contains(&self.model_type.as_str()) {
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
