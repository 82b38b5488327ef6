"""mamba: a small Mamba (version 1), with Hugging Face's parameter names.

The convolution and the scan are in scan.c: in torch's own operations either
every state of every step would be written out, or every step be a call.
`python mamba.py` compares their results and gradients with a plain loop's.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from common import CrossEntropy, LanguageModel, Linear, call, compiled

CONFIG = {
    "architectures": ["MambaForCausalLM"],
    "bos_token_id": 0,
    "conv_kernel": 4,
    "eos_token_id": 0,
    "expand": 2,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.04,
    "intermediate_size": 256,
    "layer_norm_epsilon": 1e-5,
    "model_type": "mamba",
    "num_hidden_layers": 7,
    "pad_token_id": 0,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "state_size": 16,
    "tie_word_embeddings": True,
    "time_step_floor": 1e-4,
    "time_step_init_scheme": "random",
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 8,
    "time_step_scale": 1.0,
    "torch_dtype": "float16",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "use_mambapy": False,
    "vocab_size": 4096,
}

C = compiled("scan.c")
CHUNK = 16  # as in scan.c


class Convolution(torch.autograd.Function):
    """silu of the causal depthwise convolution; w is [K, I]."""

    @staticmethod
    def forward(ctx, x, w, bias):
        b, t, i = x.shape
        u = torch.empty(b, t, i)
        call(C.conv_forward, b, t, i, x.stride(1), x, w, bias, u)
        ctx.save_for_backward(x, w, bias)
        return u

    @staticmethod
    def backward(ctx, du):
        x, w, bias = ctx.saved_tensors
        b, t, i = x.shape
        dx, dw, dbias = torch.empty(b, t, i), torch.empty(b, len(w), i), torch.empty(b, i)
        call(C.conv_backward, b, t, i, x.stride(1), x, w, bias, du.contiguous(), dx, dw, dbias)
        return dx, dw.sum(0), dbias.sum(0)


class Scan(torch.autograd.Function):
    """The scan, D and the gate; A is [N, I], bc is B and then C."""

    @staticmethod
    def forward(ctx, u, dt, a, bc, d, z):
        b, t, i = u.shape
        y, kept = torch.empty(b, t, i), torch.empty(b, i, -(-t // CHUNK), len(a))
        call(C.scan_forward, b, t, i, bc.stride(1), z.stride(1), u, dt, a, bc, d, z, y, kept)
        ctx.save_for_backward(u, dt, a, bc, d, z, kept)
        return y

    @staticmethod
    def backward(ctx, dy):
        u, dt, a, bc, d, z, kept = ctx.saved_tensors
        b, t, i = u.shape
        du, ddt, dz = (torch.empty(b, t, i) for _ in range(3))
        da, dbc, dd = torch.empty(b, *a.shape), torch.empty(bc.shape), torch.empty(b, i)
        grads = (du, ddt, da, dbc, dd, dz)
        call(
            C.scan_backward,
            b,
            t,
            i,
            bc.stride(1),
            z.stride(1),
            u,
            dt,
            a,
            bc,
            d,
            z,
            kept,
            dy.contiguous(),
            *grads,
        )
        return du, ddt, da.sum(0), dbc, dd.sum(0), dz


def plain_mixer(x, z, w, bias, dt, a, bc, d):
    """What both functions compute, by the definition: for the check alone."""
    k, (b, t, i) = len(w), x.shape
    u = F.silu(bias + sum(w[j] * F.pad(x, (0, 0, k - 1 - j, 0))[:, :t] for j in range(k)))
    h, ys = torch.zeros(b, len(a), i, dtype=x.dtype), []
    B, C = bc.chunk(2, -1)
    for s in range(t):
        h = torch.exp(a * dt[:, s, None]) * h + (dt[:, s] * u[:, s])[:, None] * B[:, s, :, None]
        ys.append((h * C[:, s, :, None]).sum(1) + d * u[:, s])
    return torch.stack(ys, 1) * F.silu(z)


class Mixer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, i, n = c["hidden_size"], c["intermediate_size"], c["state_size"]
        self.rank, self.states = c["time_step_rank"], n
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, n + 1)).repeat(i, 1))
        self.D = nn.Parameter(torch.ones(i))
        self.conv1d = nn.Conv1d(i, i, c["conv_kernel"], groups=i)
        self.in_proj = Linear(d, 2 * i)
        self.x_proj = Linear(i, self.rank + 2 * n)
        self.dt_proj = nn.Linear(self.rank, i)
        self.out_proj = Linear(i, d)
        # Steps of dt_proj's bias alone: spread evenly by their logarithm.
        low, high = math.log(c["time_step_min"]), math.log(c["time_step_max"])
        dt = torch.exp(torch.rand(i) * (high - low) + low).clamp(min=c["time_step_floor"])
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
            self.dt_proj.weight.uniform_(-1, 1).mul_(self.rank**-0.5)

    def forward(self, x):
        x, z = self.in_proj(x).chunk(2, -1)
        u = Convolution.apply(x, self.conv1d.weight[:, 0].T.contiguous(), self.conv1d.bias)
        dt, bc = self.x_proj(u).split((self.rank, 2 * self.states), -1)
        dt = F.softplus(self.dt_proj(dt))
        a = -torch.exp(self.A_log.T)
        return self.out_proj(Scan.apply(u, dt, a.contiguous(), bc, self.D, z))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = nn.RMSNorm(c["hidden_size"], c["layer_norm_epsilon"])
        self.mixer = Mixer(c)

    def forward(self, x):
        return x + self.mixer(self.norm(x))


class Backbone(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embeddings = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm_f = nn.RMSNorm(c["hidden_size"], c["layer_norm_epsilon"])


class Model(LanguageModel):
    decayed = ("embeddings",)
    plain = ("A_log", "dt_proj")

    def __init__(self, c=CONFIG):
        super().__init__()
        self.config = c
        self.backbone = Backbone(c)
        nn.init.normal_(self.backbone.embeddings.weight, std=c["initializer_range"])
        for layer in self.backbone.layers:
            for linear in (layer.mixer.in_proj, layer.mixer.x_proj):
                nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
            nn.init.zeros_(layer.mixer.out_proj.weight)  # as in the dense model

    def hidden(self, ids):
        x = self.backbone.embeddings(ids)
        for layer in self.backbone.layers:
            x = layer(x)
        return self.backbone.norm_f(x)

    def logits(self, hidden):
        return hidden @ self.backbone.embeddings.weight.T  # tied

    def loss(self, hidden, ids):
        return CrossEntropy.apply(hidden, self.backbone.embeddings.weight, ids)


def reference(folder):
    """The library whose layout this is: token ids -> logits."""
    from transformers import MambaForCausalLM

    model = MambaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    return lambda ids: model(ids).logits


def check():
    torch.manual_seed(1)
    b, t, i, n, k = 3, 40, 48, 16, 4
    xz = torch.randn(b, t, 2 * i)
    dt, bc = F.softplus(torch.randn(b, t, i) - 2), torch.randn(b, t, 8 + 2 * n)
    a, d, w, bias = -torch.exp(torch.randn(n, i)), torch.randn(i), torch.randn(k, i), torch.randn(i)
    dy = torch.randn(b, t, i)

    def run(kernels, *inputs):
        xz, dt, a, bc, d, w, bias = inputs = [x.detach().requires_grad_() for x in inputs]
        x, z = xz.chunk(2, -1)
        bc = bc[..., 8:]
        if kernels:
            y = Scan.apply(Convolution.apply(x, w, bias), dt, a, bc, d, z)
        else:
            y = plain_mixer(x, z, w, bias, dt, a, bc, d)
        y.backward(dy.to(y.dtype))
        return [y.detach(), *(x.grad for x in inputs)]

    inputs = (xz, dt, a, bc, d, w, bias)
    ours, theirs = run(True, *inputs), run(False, *(x.double() for x in inputs))
    for name, x, y in zip("y xz dt A bc D w bias".split(), ours, theirs):
        gap = ((x - y).abs().max() / y.abs().max()).item()
        print(f"{name}: {gap:.1e} of the largest value")
        assert gap < 1e-5, name


if __name__ == "__main__":
    check()
