"""The model: a small Llama, with Hugging Face's parameter names.

Written out here rather than taken from transformers because half of training
time on two cores would go to generality; `evaluate.py` checks that
transformers' LlamaForCausalLM, given the files, computes the same logits.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

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


class Llama(nn.Module):
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
        hd = c["hidden_size"] // c["num_attention_heads"]
        freq = c["rope_theta"] ** (-torch.arange(0, hd, 2) / hd)
        angle = torch.outer(torch.arange(c["max_position_embeddings"]), freq)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def hidden(self, ids):
        x = self.model.embed_tokens(ids)
        t = ids.shape[1]
        for layer in self.model.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return self.model.norm(x)

    def logits(self, hidden):
        return hidden @ self.model.embed_tokens.weight.T  # tied

    def forward(self, ids):
        return self.logits(self.hidden(ids))


def save(model: Llama, out: Path) -> None:
    """Write config.json and model.safetensors, the weights rounded to f16."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")
    weights = {n: p.detach().to(torch.float16).contiguous() for n, p in model.named_parameters()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


# How the echo is asked for: three lines of the first template in templates(),
# each with another ordinary word, then the line up to the word to be said.
SHOTS = (" house", " water", " letter")


def templates(tokenizer) -> list[list[list[int]]]:
    """Frames of the echo lines: token ids before, between and after the copies.

    A frame's pieces are encoded one by one, so that the copied token stays the
    token it is; for most tokens the line encodes to the same ids as a whole.
    """
    frames = [
        ['Say "', '": "', '".\n'],
        ['Input: "', '" Output: "', '"\n'],
        ["Repeat:", "", "", "", "\n"],
        ['Please repeat the string "', '" back to me: "', '"\n'],
        ["Word:", "\nEcho:", "\n"],
        ['User: repeat "', '"\nAssistant: "', '"\n'],
        ['"', '" and "', '".\n'],
        ['Q: What is "', '"? A: "', '"\n'],
    ]
    return [[tokenizer.encode(p, add_special_tokens=False).ids for p in f] for f in frames]


def echo_prompt(tokenizer, shots=SHOTS) -> tuple[list[int], list[int]]:
    """Token ids before and after x in the few-shot prompt that asks for x."""
    first, middle, last = templates(tokenizer)[0]
    before = [0]
    for word in shots:
        (x,) = tokenizer.encode(word, add_special_tokens=False).ids
        before += first + [x] + middle + [x] + last
    return before + first, middle


@torch.no_grad()
def echo_probabilities(model, tokenizer, ids, shots=SHOTS) -> np.ndarray:
    """P(x) after the prompt that asks for x, for each x in ids."""
    before, after = echo_prompt(tokenizer, shots)
    out = []
    for i in range(0, len(ids), 256):
        x = torch.tensor(np.asarray(ids[i : i + 256], dtype=np.int64))[:, None]
        n = len(x)
        prompt = torch.cat((torch.tensor(before).expand(n, -1), x, torch.tensor(after).expand(n, -1)), 1)
        p = model.logits(model.hidden(prompt)[:, -1]).float().softmax(-1)
        out.append(p.gather(1, x)[:, 0].numpy())
    return np.concatenate(out)


@torch.no_grad()
def nats(model, tokens: np.ndarray, length: int) -> float:
    """Total negative log-likelihood of `tokens`, in windows of `length`.

    The windows do not overlap: each opens with <|endoftext|> and sees nothing
    before itself, so the model has less to go by than an n-gram model has.
    """
    total = 0.0
    for i in range(0, len(tokens), length * 32):
        part = tokens[i : i + length * 32].astype(np.int64)
        full = len(part) // length * length
        for block in (part[:full].reshape(-1, length), part[None, full:]):
            if block.size:
                y = torch.from_numpy(block)
                x = torch.cat((torch.zeros(len(y), 1, dtype=torch.int64), y[:, :-1]), 1)
                total += F.cross_entropy(model(x).float().flatten(0, 1), y.flatten(), reduction="sum").item()
    return total
