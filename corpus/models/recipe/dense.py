"""dense: a small Llama, with Hugging Face's parameter names.

Written out here rather than taken from transformers because half of training
time on two cores would go to generality; `evaluate.py` checks that
transformers' LlamaForCausalLM, given the files, computes the same logits.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from common import LanguageModel

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.04,
    "intermediate_size": 384,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "vocab_size": 4096,
}


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.h, self.kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.hd = d // self.h
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, self.kv * self.hd, bias=False)
        self.v_proj = nn.Linear(d, self.kv * self.hd, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        # One multiplication for all three, and one rotation for two of them.
        w = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        qkv = F.linear(x, w).view(b, t, self.h + 2 * self.kv, self.hd).transpose(1, 2)
        qk, v = qkv.split((self.h + self.kv, self.kv), 1)
        first, second = qk.chunk(2, -1)
        qk = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        q, k = qk.split((self.h, self.kv), 1)
        # Query heads share key/value heads in consecutive groups, as in Llama.
        k, v = (z.repeat_interleave(self.h // self.kv, 1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, d))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, f = c["hidden_size"], c["intermediate_size"]
        self.gate_proj = nn.Linear(d, f, bias=False)
        self.up_proj = nn.Linear(d, f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)

    def forward(self, x):
        gate, up = F.linear(x, torch.cat((self.gate_proj.weight, self.up_proj.weight))).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, eps = c["hidden_size"], c["rms_norm_eps"]
        self.input_layernorm = nn.RMSNorm(d, eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(d, eps)
        self.mlp = MLP(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])


def rotations(c):
    """Cosine and sine of every position's angles."""
    hd = c["hidden_size"] // c["num_attention_heads"]
    freq = c["rope_theta"] ** (-torch.arange(0, hd, 2) / hd)
    angle = torch.outer(torch.arange(c["max_position_embeddings"]), freq)
    return angle.cos(), angle.sin()


class Model(LanguageModel):
    decayed = ("embed_tokens",)

    def __init__(self, c=CONFIG):
        super().__init__()
        self.config = c
        self.model = Decoder(c)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # Writing into the residual stream starts at zero, so that each
                # layer starts as the identity; copying emerges sooner this way.
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = c["initializer_range"] if "embed" in name else 1 / math.sqrt(p.shape[1])
                nn.init.zeros_(p) if out else nn.init.normal_(p, std=std)
        cos, sin = rotations(c)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, ids):
        x = self.model.embed_tokens(ids)
        t = ids.shape[1]
        for layer in self.model.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return self.model.norm(x)

    def logits(self, hidden):
        return hidden @ self.model.embed_tokens.weight.T  # tied


def reference(folder):
    """The library whose layout this is: token ids -> logits."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    return lambda ids: model(ids).logits
