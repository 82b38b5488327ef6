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

const LLAMA: Names = Names {
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

/// The names of a family that [`FAMILIES`](super::FAMILIES) lists; Llama's for any other.
pub fn names(model_type: &str) -> Names {
    match model_type {
        "gpt2" => Names {
            embed: "transformer.wte",
            positions: Some("transformer.wpe"),
            norm: "transformer.ln_f",
            layers: "transformer.h",
            attention_norm: "ln_1",
            qkv: Qkv::Stacked("attn.c_attn"),
            o: "attn.c_proj",
            mlp_norm: "ln_2",
            up: &["mlp.c_fc"],
            down: "mlp.c_proj",
            transposed: true,
            ..LLAMA
        },
        "gpt_neox" => Names {
            embed: "gpt_neox.embed_in",
            norm: "gpt_neox.final_layer_norm",
            head: "embed_out",
            layers: "gpt_neox.layers",
            qkv: Qkv::ByHead("attention.query_key_value"),
            o: "attention.dense",
            up: &["mlp.dense_h_to_4h"],
            down: "mlp.dense_4h_to_h",
            ..LLAMA
        },
        "gemma3_text" => Names {
            attention_post_norm: "post_attention_layernorm",
            mlp_norm: "pre_feedforward_layernorm",
            mlp_post_norm: "post_feedforward_layernorm",
            norm_offset: 1.0,
            ..LLAMA
        },
        "olmo2" => Names {
            attention_post_norm: "post_attention_layernorm",
            mlp_post_norm: "post_feedforward_layernorm",
            ..LLAMA
        },
        "phi3" => {
            Names { qkv: Qkv::Stacked("self_attn.qkv_proj"), up: &["mlp.gate_up_proj"], ..LLAMA }
        }
        "mixtral" => Names {
            router: "block_sparse_moe.gate",
            experts: "block_sparse_moe.experts",
            expert: ["w1", "w3", "w2"],
            ..LLAMA
        },
        "deepseek_v2" => Names { shared: "mlp.shared_experts", ..LLAMA },
        "mamba" | "mamba2" | "falcon_mamba" => Names {
            embed: "backbone.embeddings",
            norm: "backbone.norm_f",
            layers: "backbone.layers",
            attention_norm: "norm",
            ..LLAMA
        },
        "jamba" => Names {
            norm: "model.final_layernorm",
            ssm: "mamba",
            mlp_norm: "pre_ff_layernorm",
            up: &["feed_forward.gate_proj", "feed_forward.up_proj"],
            down: "feed_forward.down_proj",
            router: "feed_forward.router",
            experts: "feed_forward.experts",
            ..LLAMA
        },
        "rwkv" => Names {
            embed: "rwkv.embeddings",
            embed_norm: "0.pre_ln",
            norm: "rwkv.ln_out",
            head: "head",
            layers: "rwkv.blocks",
            attention_norm: "ln1",
            mlp_norm: "ln2",
            ..LLAMA
        },
        "rwkv6" | "rwkv7" => Names {
            embed: "emb",
            embed_norm: "0.ln0",
            norm: "ln_out",
            head: "head",
            layers: "blocks",
            attention_norm: "ln1",
            mlp_norm: "ln2",
            ..LLAMA
        },
        _ => LLAMA,
    }
}
