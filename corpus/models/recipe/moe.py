"""moe: a small Mixtral, with Hugging Face's parameter names.

The dense model with eight narrow feed-forward experts a layer in place of one
wide network. Two of them answer each token, which is less work than the dense
model's one, and twice the parameters.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

import dense
from common import LanguageModel

CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.04,
    "intermediate_size": 160,
    "max_position_embeddings": 256,
    "model_type": "mixtral",
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "router_jitter_noise": 0.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "vocab_size": 4096,
}


class Expert(nn.Module):
    def __init__(self, d, f):
        super().__init__()
        self.w1 = nn.Linear(d, f, bias=False)
        self.w2 = nn.Linear(f, d, bias=False)
        self.w3 = nn.Linear(d, f, bias=False)

    def forward(self, x):
        gate, up = F.linear(x, torch.cat((self.w1.weight, self.w3.weight))).chunk(2, -1)
        return self.w2(F.silu(gate) * up)


class Experts(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, n = c["hidden_size"], c["num_local_experts"]
        self.chosen = c["num_experts_per_tok"]
        self.gate = nn.Linear(d, n, bias=False)
        self.experts = nn.ModuleList(Expert(d, c["intermediate_size"]) for _ in range(n))
        self.register_buffer("asked", torch.zeros(n, dtype=torch.int64), persistent=False)

    def forward(self, x):
        n, rows = len(self.experts), x.flatten(0, -2)
        p = self.gate(rows).softmax(-1)
        weight, which = p.topk(self.chosen, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        # Each (token, expert) pair once, sorted by expert.
        order = which.flatten().argsort(stable=True)
        token = order // self.chosen
        asked = which.flatten().bincount(minlength=n)
        parts = rows.index_select(0, token).split(asked.tolist())
        y = torch.cat([expert(part) for expert, part in zip(self.experts, parts)])
        y = y * weight.flatten().index_select(0, order)[:, None]
        self.asked += asked
        # Mixtral's: least where the experts are asked equally often.
        self.imbalance = n * (asked / len(rows) * p.mean(0)).sum()
        return torch.zeros_like(rows).index_add(0, token, y).view_as(x)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, eps = c["hidden_size"], c["rms_norm_eps"]
        self.input_layernorm = nn.RMSNorm(d, eps)
        self.self_attn = dense.Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(d, eps)
        self.block_sparse_moe = Experts(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.block_sparse_moe(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Model(LanguageModel):
    decayed = ("embed_tokens",)
    plain = ("gate",)

    def __init__(self, c=CONFIG):
        super().__init__()
        self.config = c
        self.model = Decoder(c)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                out = name.endswith(("o_proj.weight", "w2.weight"))  # zero, as in the dense model
                small = "embed" in name or "gate" in name
                std = c["initializer_range"] if small else 1 / math.sqrt(p.shape[1])
                nn.init.zeros_(p) if out else nn.init.normal_(p, std=std)
        cos, sin = dense.rotations(c)
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

    def penalty(self):
        imbalance = [layer.block_sparse_moe.imbalance for layer in self.model.layers]
        return self.config["router_aux_loss_coef"] * sum(imbalance) / len(imbalance)

    def notes(self):
        """How often each expert was asked: a row a layer, shares of one."""
        asked = torch.stack([layer.block_sparse_moe.asked for layer in self.model.layers])
        shares = asked / asked.sum(1, keepdim=True)
        return {"expert_shares": [[round(s, 4) for s in row] for row in shares.tolist()]}


def reference(folder):
    """The library whose layout this is: token ids -> logits."""
    from transformers import MixtralForCausalLM

    model = MixtralForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    return lambda ids: model(ids).logits
