//! Sizes of recurrent layers: state spaces (Mamba) and RWKV's time mixing.

/// Sizes of a selective state space.
#[derive(Debug, Clone, PartialEq)]
pub struct Ssm {
    /// Mamba 1 or 2.
    pub version: u8,
    /// Number of channels.
    pub intermediate_size: usize,
    /// Values of the state for each channel.
    pub state_size: usize,
    /// Inputs that the convolution spans.
    pub conv_kernel: usize,
    /// Rank of the projection of the time step (version 1).
    pub time_step_rank: usize,
    /// Number of heads, whose channels share a decay and a time step (version 2; 0 in version 1).
    pub num_heads: usize,
    /// Number of groups of heads that share `B` and `C` (version 2).
    pub n_groups: usize,
    /// Bounds of the time step after the softplus (version 2).
    pub time_step_limit: (f32, f32),
    /// Normalisation of the time step, `B` and `C`.
    pub norms: SsmNorms,
}

/// The normalisation of a state space's time step, `B` and `C`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SsmNorms {
    /// None.
    Off,
    /// RMS norms without weights, with this epsilon: Falcon-Mamba.
    Plain(f64),
    /// RMS norms with weights: Jamba.
    Weighted,
}

/// Sizes of RWKV's time mixing.
#[derive(Debug, Clone, PartialEq)]
pub struct Rwkv {
    /// RWKV 4, 6 or 7.
    pub version: u8,
    /// Width of receptance, key and value.
    pub attention_size: usize,
    /// Number of heads; 0 in version 4.
    pub num_heads: usize,
    /// Number of layers after which the residual stream is halved (version 4); 0: never.
    pub rescale_every: usize,
}

impl Ssm {
    /// Returns the width of the convolution: the channels, and in version 2 also `B` and `C`.
    pub fn conv_width(&self) -> usize {
        match self.version {
            1 => self.intermediate_size,
            _ => self.intermediate_size + 2 * self.n_groups * self.state_size,
        }
    }

    /// Returns the number of outputs of the input projection.
    pub fn in_width(&self) -> usize {
        match self.version {
            1 => 2 * self.intermediate_size,
            _ => self.intermediate_size + self.conv_width() + self.num_heads,
        }
    }

    /// Returns the number of time steps: one for each channel, in version 2 one for each head.
    pub fn dt_width(&self) -> usize {
        if self.version == 1 { self.intermediate_size } else { self.num_heads }
    }

    /// Returns the number of parts of the state and of values of each
    /// ([`Config::state_parts`](super::Config::state_parts)).
    pub fn state_parts(&self) -> (usize, usize) {
        match self.version {
            1 => (self.intermediate_size, self.state_size),
            _ => (self.num_heads, self.intermediate_size / self.num_heads * self.state_size),
        }
    }
}

impl Rwkv {
    /// Returns the width of a head; of all channels in version 4, which has no heads.
    pub fn head_dim(&self) -> usize {
        self.attention_size / self.num_heads.max(1)
    }

    /// Returns the number of parts of the state and of values of each
    /// ([`Config::state_parts`](super::Config::state_parts)). A channel of version 4 has the
    /// numerator and the denominator of its average.
    pub fn state_parts(&self) -> (usize, usize) {
        match self.version {
            4 => (self.attention_size, 2),
            _ => (self.num_heads, self.head_dim() * self.head_dim()),
        }
    }
}
