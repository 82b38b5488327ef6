//! Sizes of recurrent layers: state spaces (Mamba) and RWKV's time mixing.

/// A selective state space.
#[derive(Debug, Clone, PartialEq)]
pub struct Ssm {
    /// 1 or 2.
    pub version: u8,
    /// Channels, `intermediate_size` of the configuration.
    pub intermediate_size: usize,
    pub state_size: usize,
    pub conv_kernel: usize,
    /// Width that the time step is projected through (version 1).
    pub time_step_rank: usize,
    /// Heads, which share a decay and a time step (version 2; 0 in version 1).
    pub num_heads: usize,
    /// Groups of heads that share `B` and `C` (version 2).
    pub n_groups: usize,
    /// Bounds of the time step after its softplus (version 2).
    pub time_step_limit: (f32, f32),
    /// What of the time step, `B` and `C` is normalised before use.
    pub norms: SsmNorms,
}

/// Normalisation of a state space's inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SsmNorms {
    Off,
    /// Without weights, with this epsilon: Falcon-Mamba.
    Plain(f64),
    /// With weights of their own: Jamba.
    Weighted,
}

/// RWKV's time and channel mixing.
#[derive(Debug, Clone, PartialEq)]
pub struct Rwkv {
    /// 4, 6 or 7.
    pub version: u8,
    /// Width of receptance, key and value.
    pub attention_size: usize,
    /// 0 in version 4.
    pub num_heads: usize,
    /// Version 4: layers after which the residual stream is halved; 0: none.
    pub rescale_every: usize,
}

impl Ssm {
    /// Width of the convolution: the channels, and in version 2 also `B` and `C`.
    pub fn conv_width(&self) -> usize {
        match self.version {
            1 => self.intermediate_size,
            _ => self.intermediate_size + 2 * self.n_groups * self.state_size,
        }
    }

    /// Rows of the projection that a layer begins with.
    pub fn in_width(&self) -> usize {
        match self.version {
            1 => 2 * self.intermediate_size,
            _ => self.intermediate_size + self.conv_width() + self.num_heads,
        }
    }

    /// Values of the time step: one a channel, or one a head.
    pub fn dt_width(&self) -> usize {
        if self.version == 1 { self.intermediate_size } else { self.num_heads }
    }

    /// See [`Config::state_parts`].
    pub fn state_parts(&self) -> (usize, usize) {
        match self.version {
            1 => (self.intermediate_size, self.state_size),
            _ => (self.num_heads, self.intermediate_size / self.num_heads * self.state_size),
        }
    }
}

impl Rwkv {
    pub fn head_dim(&self) -> usize {
        self.attention_size / self.num_heads.max(1)
    }

    /// See [`Config::state_parts`]. Of a channel of version 4: the numerator and the denominator of
    /// its average.
    pub fn state_parts(&self) -> (usize, usize) {
        match self.version {
            4 => (self.attention_size, 2),
            _ => (self.num_heads, self.head_dim() * self.head_dim()),
        }
    }
}
