//! What each family calls its tensors.

/// The tensors of a family; those of a layer are under `layers.N.`.
pub struct Names {
    pub embed: &'static str,
    /// Learned positions, `[max_position_embeddings, d_model]`.
    pub positions: Option<&'static str>,
    /// Of the embeddings, among the layers.
    pub embed_norm: &'static str,
    pub norm: &'static str,
    pub head: &'static str,
    pub layers: &'static str,
    pub attention_norm: &'static str,
    pub attention_post_norm: &'static str,
    pub qkv: Qkv,
    pub o: &'static str,
    /// A state space.
    pub ssm: &'static str,
    pub mlp_norm: &'static str,
    pub mlp_post_norm: &'static str,
    /// Gate (where the MLP is gated) and up, one after the other, or in one tensor.
    pub up: &'static [&'static str],
    pub down: &'static str,
    pub router: &'static str,
    pub experts: &'static str,
    pub shared: &'static str,
    /// Gate, up and down of an expert.
    pub expert: [&'static str; 3],
    /// GPT-2's `Conv1D` keeps its weights as `[in, out]`.
    pub transposed: bool,
    /// Added to the weights of RMS normalisation: Gemma keeps the difference from 1.
    pub norm_offset: f32,
}

/// How query, key and value projections are kept.
pub enum Qkv {
    Separate([&'static str; 3]),
    /// In one tensor: all of q, then k, then v.
    Stacked(&'static str),
    /// In one tensor: q, k and v of one head after the other.
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
