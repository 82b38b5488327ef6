//! Rotary position embedding (Su et al. 2021) and its extensions to longer contexts.

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
