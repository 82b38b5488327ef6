//! The names of the tensors of a family.

/// The names of the tensors of a family, without `.weight`. Those of layer N are under
/// `LAYERS.N.`.
pub struct Names {
    /// Token embeddings.
    pub embed: &'static str,
    /// Learned position embeddings, `[max_position_embeddings, d_model]`.
    pub positions: Option<&'static str>,
    /// Norm of the embeddings, under `layers`; empty if there is none.
    pub embed_norm: &'static str,
    /// Norm before the unembedding.
    pub norm: &'static str,
    /// Unembedding.
    pub head: &'static str,
    /// Prefix of all layers.
    pub layers: &'static str,
    /// Norm before the mixer.
    pub attention_norm: &'static str,
    /// Norm after the mixer.
    pub attention_post_norm: &'static str,
    /// Query, key and value projections.
    pub qkv: Qkv,
    /// Output projection of attention.
    pub o: &'static str,
    /// Prefix of a state space.
    pub ssm: &'static str,
    /// Norm before the MLP.
    pub mlp_norm: &'static str,
    /// Norm after the MLP.
    pub mlp_post_norm: &'static str,
    /// First matrices of an MLP: gate, if it is gated, and up, or both in one tensor.
    pub up: &'static [&'static str],
    /// Last matrix of an MLP.
    pub down: &'static str,
    /// Router of a mixture of experts.
    pub router: &'static str,
    /// Prefix of the experts.
    pub experts: &'static str,
    /// Prefix of the shared expert.
    pub shared: &'static str,
    /// Gate, up and down projection of an expert.
    pub expert: [&'static str; 3],
    /// True if matrices are stored as `[in, out]`: GPT-2's `Conv1D`.
    pub transposed: bool,
    /// Constant that is added to the weights of norms: Gemma stores the difference from 1.
    pub norm_offset: f32,
}

/// The storage of the query, key and value projections.
pub enum Qkv {
    /// Three tensors.
    Separate([&'static str; 3]),
    /// One tensor: all of q, then k, then v.
    Stacked(&'static str),
    /// One tensor: q, k and v of one head after the other.
    ByHead(&'static str),
}

/// Llama's names, from which those of other families differ.
pub(super) const LLAMA: Names = Names {
    embed: "model.embed_tokens",
    positions: None,
    embed_norm: "",
    norm: "model.norm",
    head: "lm_head",
    layers: "model.layers",
    attention_norm: "input_layernorm",
    attention_post_norm: "",
    qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    o: "self_attn.o_proj",
    ssm: "mixer",
    mlp_norm: "post_attention_layernorm",
    mlp_post_norm: "",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    router: "mlp.gate",
    experts: "mlp.experts",
    shared: "mlp.shared_expert",
    expert: ["gate_proj", "up_proj", "down_proj"],
    transposed: false,
    norm_offset: 0.0,
};
