"""What the models share: being trained, saved and loaded, and being asked things."""

import ctypes
import functools
import importlib
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

VOCAB = 4096
# Model -> its module. (`rwkv` is what the package is called that evaluate.py compares with.)
MODELS = {"dense": "dense", "moe": "moe", "mamba": "mamba", "rwkv": "rwkv7"}


class CrossEntropy(torch.autograd.Function):
    """Of hidden @ embedding.T, multiplied in bfloat16, some rows at a time.

    Half the time of the plain way: the logits, a third of a step's arithmetic,
    stay in the processor's cache and never exist all at once.
    """

    @staticmethod
    def forward(ctx, hidden, embedding, ids):
        rows = 512
        h, e = hidden.detach().bfloat16(), embedding.detach().bfloat16()
        dh, de, loss = torch.empty_like(h), torch.zeros_like(embedding), torch.empty(len(h))
        for i in range(0, len(h), rows):
            x = h[i : i + rows]
            g = x @ e.T
            call(
                compiled("head.c").cross_entropy, *g.shape, g, ids[i : i + rows], loss[i : i + rows]
            )
            dh[i : i + rows] = g @ e
            de += g.T @ x
        ctx.save_for_backward(dh.float() / len(h), de / len(h))
        return loss.mean()

    @staticmethod
    def backward(ctx, d):
        dh, de = ctx.saved_tensors
        return dh * d, de * d, None


class HalfProduct(torch.autograd.Function):
    """x @ weight.T, its operands and those of its gradients rounded to bfloat16."""

    @staticmethod
    def forward(ctx, x, weight):
        rows, w = x.flatten(0, -2).bfloat16(), weight.bfloat16()
        ctx.save_for_backward(rows, w)
        return (rows @ w.T).float().view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, d):
        rows, w = ctx.saved_tensors
        g = d.flatten(0, -2).bfloat16()
        return (g @ w).float().view(*d.shape[:-1], -1), (g.T @ rows).float()


class Linear(nn.Linear):
    """A matrix that is trained in half the time; what is evaluated is not rounded."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x):
        return HalfProduct.apply(x, self.weight) if self.training else F.linear(x, self.weight)


class LanguageModel(nn.Module):
    """A model: `config`, `hidden(ids)`, `logits(hidden)`, and file names for parameters.

    Muon trains the matrices, AdamW the rest. Parameters whose name holds one of
    these strings are AdamW's too: with weight decay, and without.
    """

    decayed: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    # Tensors that the file holds twice: name -> the parameter it is a copy of.
    copies: dict[str, str] = {}

    def trainer(self, name: str, p: nn.Parameter) -> str:
        if any(s in name for s in self.decayed):
            return "decayed"
        return "plain" if p.ndim != 2 or any(s in name for s in self.plain) else "muon"

    def loss(self, hidden, ids):
        return F.cross_entropy(self.logits(hidden), ids)

    def penalty(self):
        """Added to the loss: about the last call of `hidden`."""
        return 0

    def notes(self) -> dict:
        """Returns what summary.json says of this model alone, from the calls of `hidden` so far."""
        return {}

    def forward(self, ids):
        return self.logits(self.hidden(ids))


def module(name: str):
    """dense.py, moe.py, ...: CONFIG, Model, reference(folder)."""
    return importlib.import_module(MODELS[name])


def save(model: LanguageModel, out: Path) -> None:
    """Write config.json and model.safetensors, the weights rounded to f16."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")
    weights = {n: p.detach().to(torch.float16).contiguous() for n, p in model.named_parameters()}
    weights |= {copy: weights[name].clone() for copy, name in model.copies.items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def load(name: str, folder: Path) -> LanguageModel:
    """The model as the files have it, rounding and all."""
    model = module(name).Model(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "model.safetensors")
    for copy, original in model.copies.items():
        assert torch.equal(weights.pop(copy), weights[original]), copy
    model.load_state_dict({n: w.float() for n, w in weights.items()})
    return model.eval()


@functools.cache
def compiled(source: str) -> ctypes.CDLL:
    """The C file beside this one, built for this processor; its threads are torch's."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernel.so"
        flags = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"]
        subprocess.run(
            ["cc", *flags, str(Path(__file__).parent / source), "-o", str(library), "-lm"],
            check=True,
        )
        return ctypes.CDLL(str(library))


def call(function, *arguments) -> None:
    """Tensors by address, their last dimension contiguous; numbers as int."""
    assert all(x.stride(-1) == 1 for x in arguments if isinstance(x, torch.Tensor))
    function(
        *(
            ctypes.c_void_p(x.data_ptr()) if isinstance(x, torch.Tensor) else ctypes.c_int(x)
            for x in arguments
        )
    )


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
        prompt = torch.cat(
            (torch.tensor(before).expand(n, -1), x, torch.tensor(after).expand(n, -1)), 1
        )
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
                total += F.cross_entropy(
                    model(x).float().flatten(0, 1), y.flatten(), reduction="sum"
                ).item()
    return total
