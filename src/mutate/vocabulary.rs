//! Which tokens are ordinary and which are suspect. (The indicator that fills this in is the founder's.)

/// Token ids by what is known of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vocabulary {
    /// Suspects.
    pub anomalous: Vec<u32>,
    /// Well-trained tokens: stand-ins in controls.
    pub ordinary: Vec<u32>,
    /// Control tokens (BOS, EOS and the like).
    pub special: Vec<u32>,
}
