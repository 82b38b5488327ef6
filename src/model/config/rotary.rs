//! Rotary position embedding (Su et al. 2021) and its extensions to longer contexts.

/// The rotary embedding of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Base of the frequencies.
    pub theta: f64,
    /// Number of leading dimensions of a head that are rotated.
    pub dim: usize,
    /// Change of the frequencies for longer contexts.
    pub scaling: Option<RopeScaling>,
}

/// Changes of the rotary frequencies for longer contexts. Fields are named as in `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between
    /// interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Turns within the original context below which a frequency is low.
        low_freq_factor: f64,
        /// Turns within the original context above which a frequency is high.
        high_freq_factor: f64,
        /// Length of the original context, tokens.
        original_max_position_embeddings: f64,
    },
    /// YaRN (Peng et al. 2023): frequencies of more than `beta_fast` turns within the original
    /// context are kept, those of fewer than `beta_slow` divided by `factor`, those between
    /// interpolated; cosines and sines are multiplied by `attention_factor`.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Turns within the original context above which a frequency is kept.
        beta_fast: f64,
        /// Turns within the original context below which a frequency is divided.
        beta_slow: f64,
        /// Length of the original context, tokens.
        original_max_position_embeddings: f64,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
    /// Position interpolation (Chen et al. 2023).
    Linear {
        /// Divisor of every position.
        factor: f64,
    },
    /// One divisor for each frequency: `rope_freqs.weight` of GGUF files, `short_factor` of Phi-3.
    Divisors {
        /// `[dim / 2]`.
        divisors: Vec<f32>,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
}

impl Rotary {
    /// Returns the frequencies, radians per position, `[dim / 2]`, with the scaling applied.
    ///
    /// `llama3` follows the reference code of Llama 3.1: frequencies of wavelengths beyond
    /// `original / low_freq_factor` are divided by `factor`, those of wavelengths below
    /// `original / high_freq_factor` kept, those between interpolated.
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
                        // The dimension that turns this often within the original context.
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

    /// Returns the factor of cosines and sines.
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
