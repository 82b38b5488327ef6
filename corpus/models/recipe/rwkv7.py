"""rwkv: a small RWKV-7, with its author's parameter names.

The recurrence and the mixing with the token before are in wkv7.c.
`python rwkv7.py` compares their results and gradients with a plain loop's.
"""

import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from common import CrossEntropy, LanguageModel, Linear, call, compiled

CONFIG = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_size": 128,
    "model_type": "rwkv7",
    "num_hidden_layers": 4,
    "vocab_size": 4096,
}
# What the tensors' shapes say, and the file has no other place for.
HEAD, WIDTH = 32, 384
RANKS = {"w": 16, "a": 16, "v": 16, "g": 32}
MIXED = "rwkvag"

C = compiled("wkv7.c")
CHUNK = 16  # as in wkv7.c


class Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, r, w, k, v, a, b):
        inputs = [x.contiguous() for x in (r, w, k, v, a, b)]
        n, t, width = r.shape
        heads = width // HEAD
        o, kept = torch.empty(n, t, width), torch.empty(n * heads, -(-t // CHUNK), HEAD, HEAD)
        call(C.wkv_forward, n, t, heads, *inputs, o, kept)
        ctx.save_for_backward(*inputs, kept)
        return o

    @staticmethod
    def backward(ctx, d):
        inputs = ctx.saved_tensors
        n, t, width = d.shape
        grads = [torch.empty(n, t, width) for _ in range(6)]
        call(C.wkv_backward, n, t, width // HEAD, *inputs, d.contiguous(), *grads)
        return tuple(grads)


class Mix(torch.autograd.Function):
    """x + (the token before - x) m, for each row of m."""

    @staticmethod
    def forward(ctx, x, m):
        x = x.contiguous()
        y = torch.empty(len(m), *x.shape)
        call(C.mix_forward, len(m), *x.shape, x, m, y)
        ctx.save_for_backward(x, m)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, m = ctx.saved_tensors
        dx, dm = torch.empty(x.shape), torch.empty(x.shape[0], *m.shape)
        call(C.mix_backward, len(m), *x.shape, x, m, dy.contiguous(), dx, dm)
        return dx, dm.sum(0)


def plain_recurrence(r, w, k, v, a, b):
    """What the kernel computes, by the definition: for the check alone."""
    n, t, width = r.shape
    r, w, k, v, a, b = (x.view(n, t, width // HEAD, HEAD) for x in (r, w, k, v, a, b))
    s, out = torch.zeros(n, width // HEAD, HEAD, HEAD, dtype=r.dtype), []
    for i in range(t):
        sa = s @ a[:, i, :, :, None]
        s = s * w[:, i, :, None] + sa * b[:, i, :, None] + v[:, i, :, :, None] * k[:, i, :, None]
        out.append((s @ r[:, i, :, :, None])[..., 0])
    return torch.stack(out, 1).view(n, t, width)


def plain_mix(x, m):
    before = F.pad(x, (0, 0, 1, 0))[:, :-1]
    return torch.stack([x + (before - x) * row for row in m])


def orthogonal(*shape):
    return nn.Parameter(nn.init.orthogonal_(torch.empty(shape), gain=0.1))


class Attention(nn.Module):
    """Every starting value is that of the author's training code."""

    def __init__(self, d, layer, layers):
        super().__init__()
        self.first = layer == 0
        i = torch.arange(d)
        along, linear = i / (d - 1), i / (d - 1) - 0.5
        zigzag = (i % HEAD - (HEAD - 1) / 2) / ((HEAD - 1) / 2)
        zigzag = zigzag * zigzag.abs()
        for x, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
            self.vector(f"x_{x}", 1 - (i / d) ** (power * (1 - layer / layers)))
        speed = -6 + 6 * along ** (1 + (layer / (layers - 1)) ** 0.3)
        self.vector("w0", speed + 0.5 + 2.5 * zigzag)
        self.vector("a0", -0.19 + 0.3 * zigzag + 0.4 * linear)
        if layer:
            self.vector("v0", 0.73 - 0.4 * linear)
        for x, rank in RANKS.items():
            if layer or x != "v":
                setattr(self, f"{x}1", nn.Parameter(torch.zeros(d, rank)))
                setattr(self, f"{x}2", orthogonal(rank, d))
        self.vector("k_k", 0.71 - 0.1 * linear)
        self.vector("k_a", torch.full((d,), 1.02))
        self.r_k = nn.Parameter(torch.full((d // HEAD, HEAD), -0.04))
        self.receptance, self.key, self.value, self.output = (Linear(d, d) for _ in range(4))
        for linear, width in (
            (self.receptance, 0.5),
            (self.key, 0.05),
            (self.value, 0.5),
            (self.output, 0),
        ):
            nn.init.uniform_(linear.weight, -width / d**0.5, width / d**0.5)
        self.ln_x = nn.GroupNorm(d // HEAD, d, 64e-5)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / layers) ** 0.7)

    def vector(self, name, values):
        setattr(self, name, nn.Parameter(values.view(1, 1, -1).clone()))

    def forward(self, x, v_first):
        b, t, d = x.shape
        heads = (b, t, d // HEAD, HEAD)
        m = torch.cat([getattr(self, f"x_{f}")[0] for f in MIXED])
        x_r, x_w, x_k, x_v, x_a, x_g = Mix.apply(x, m).unbind()
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        w = torch.exp(-0.606531 * torch.sigmoid(self.w0 + torch.tanh(x_w @ self.w1) @ self.w2))
        alpha = torch.sigmoid(self.a0 + x_a @ self.a1 @ self.a2)
        g = torch.sigmoid(x_g @ self.g1) @ self.g2
        kk = F.normalize((k * self.k_k).view(heads), dim=-1).view(b, t, d)  # over max(norm, 1e-12)
        k = k * (1 + (alpha - 1) * self.k_a)
        if self.first:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + x_v @ self.v1 @ self.v2)
        o = Recurrence.apply(r, w, k, v, -kk, kk * alpha)
        o = (
            F.layer_norm(o.view(heads), (HEAD,), eps=self.ln_x.eps).view(b, t, d) * self.ln_x.weight
            + self.ln_x.bias
        )
        bonus = (r * k * self.r_k.flatten()).view(heads).sum(-1, keepdim=True)
        o = o + (bonus * v.view(heads)).view(b, t, d)
        return self.output(o * g), v_first


class FeedForward(nn.Module):
    def __init__(self, d, layer, layers):
        super().__init__()
        self.x_k = nn.Parameter(
            (1 - (torch.arange(d) / d) ** ((1 - layer / layers) ** 4)).view(1, 1, d)
        )
        self.key = Linear(d, WIDTH)
        self.value = Linear(WIDTH, d)
        nn.init.uniform_(self.key.weight, -0.5 / d**0.5, 0.5 / d**0.5)
        nn.init.zeros_(self.value.weight)

    def forward(self, x):
        (x,) = Mix.apply(x, self.x_k[0]).unbind()
        return self.value(torch.relu(self.key(x)) ** 2)


class Block(nn.Module):
    def __init__(self, d, layer, layers):
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(d)
        self.ln1 = nn.LayerNorm(d)
        self.ln2 = nn.LayerNorm(d)
        self.att = Attention(d, layer, layers)
        self.ffn = FeedForward(d, layer, layers)

    def forward(self, x, v_first):
        y, v_first = self.att(self.ln1(x), v_first)
        x = x + y
        return x + self.ffn(self.ln2(x)), v_first


class Model(LanguageModel):
    decayed = ("emb.",)
    plain = ("r_k",)
    copies = {"head.weight": "emb.weight"}  # tied

    def __init__(self, c=CONFIG):
        super().__init__()
        self.config = c
        d, layers = c["hidden_size"], c["num_hidden_layers"]
        self.emb = nn.Embedding(c["vocab_size"], d)
        nn.init.normal_(self.emb.weight, std=0.04)  # the dense model's
        self.blocks = nn.ModuleList(Block(d, layer, layers) for layer in range(layers))
        self.ln_out = nn.LayerNorm(d)

    def hidden(self, ids):
        x, v_first = self.blocks[0].ln0(self.emb(ids)), None
        for block in self.blocks:
            x, v_first = block(x, v_first)
        return self.ln_out(x)

    def logits(self, hidden):
        return hidden @ self.emb.weight.T

    def loss(self, hidden, ids):
        return CrossEntropy.apply(hidden, self.emb.weight, ids)


def reference(folder):
    """The author's package: token ids -> logits."""
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    from rwkv.model import RWKV

    with tempfile.TemporaryDirectory() as scratch:  # it reads .pth files
        torch.save(load_file(folder / "model.safetensors"), Path(scratch) / "model.pth")
        model = RWKV(model=str(Path(scratch) / "model"), strategy="cpu fp32")
    return lambda ids: torch.stack(
        [model.forward(row, None, full_output=True)[0].float() for row in ids.tolist()]
    )


def check():
    torch.manual_seed(1)
    shape = (3, 41, 2 * HEAD)
    r, k, v = (torch.randn(shape) for _ in range(3))
    w = torch.exp(-0.606531 * torch.sigmoid(2 * torch.randn(shape)))
    kk = F.normalize(torch.randn(shape).unflatten(-1, (-1, HEAD)), dim=-1).flatten(-2)
    inputs = (r, w, k, v, -kk, kk * torch.rand(shape))
    mix = (torch.randn(shape), torch.rand(6, shape[-1]))

    def run(f, inputs, d):
        inputs = [x.detach().requires_grad_() for x in inputs]
        y = f(*inputs)
        y.backward(d.to(y.dtype))
        return [y.detach(), *(x.grad for x in inputs)]

    for names, ours, plain, inputs, d in (
        ("o r w k v a b", Recurrence.apply, plain_recurrence, inputs, torch.randn(shape)),
        ("mixed x m", Mix.apply, plain_mix, mix, torch.randn(6, *shape)),
    ):
        theirs = run(plain, [x.double() for x in inputs], d)
        for name, x, y in zip(names.split(), run(ours, inputs, d), theirs):
            gap = ((x - y).abs().max() / y.abs().max()).item()
            print(f"{name}: {gap:.1e} of the largest value")
            assert gap < 1e-5, name


if __name__ == "__main__":
    check()
