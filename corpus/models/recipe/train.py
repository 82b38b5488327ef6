#!/usr/bin/env python3
"""Train a model on what `prepare.py` made. Deterministic given the seed.

Some three sequences in four are text; the others teach copying, which text
alone teaches too slowly for a model this small:
  - echo lines such as `Say "x": "x".`, another x each line,
  - a run of random tokens, over and over,
  - a passage of text, over and over.
Copied tokens are drawn evenly from the ordinary ones (those the training text
holds ten times or more), so that rare tokens are copied as well as common
ones, and the tokens that the text never holds stay never seen.

With these in the environment it is a quarter faster, and several times faster
where the machine has other work: threads that wait sleep, memory is kept.
    OMP_WAIT_POLICY=passive MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from common import MODELS, VOCAB, echo_probabilities, module, nats, save, templates

# Two phases: (steps up to, tokens a sequence, sequences of each kind a batch).
# Short sequences come first because they are cheaper and copying is learned on
# them within 1,000 steps; the long ones then need fewer reminders of it.
PHASES = [
    (1000, 128, {"text": 22, "lines": 5, "random": 3, "passage": 2}),
    (4200, 256, {"text": 12, "lines": 2, "random": 1, "passage": 1}),
]
STEPS, LENGTH = PHASES[-1][:2]
ORDINARY = 10


class Data:
    """Batches as a function of the seed and the step, so that a run can resume."""

    def __init__(self, work: Path, tokenizer: Tokenizer, seed: int):
        self.tokens = np.fromfile(work / "train.bin", dtype=np.uint16).astype(np.int64)
        self.seed = seed
        self.frames = templates(tokenizer)
        counts = np.bincount(self.tokens, minlength=VOCAB)
        counts[0] = 0  # <|endoftext|> is not a token to copy
        self.ordinary = np.flatnonzero(counts >= ORDINARY)
        self.epoch = None

    def text_window(self, phase: int, k: int) -> np.ndarray:
        """A phase's k-th window of text; each epoch cuts and orders it anew."""
        length = PHASES[phase][1]
        per_epoch = len(self.tokens) // length - 1
        epoch, i = divmod(k, per_epoch)
        if (phase, epoch) != self.epoch:
            # No two phases draw the same: an epoch of the second is numbered from 100.
            rng = np.random.default_rng([self.seed, 1, phase * 100 + epoch])
            self.epoch, self.offset, self.order = (
                (phase, epoch),
                rng.integers(length),
                rng.permutation(per_epoch),
            )
        start = self.offset + self.order[i] * length
        return self.tokens[start : start + length]

    def passage(self, rng, n: int) -> list[int]:
        start = rng.integers(len(self.tokens) - n)
        return self.tokens[start : start + n].tolist()

    def lines(self, rng, length: int):
        """Echo lines. A token's first appearance is a matter of chance, so
        there is nothing to learn from it: its loss weight is 0."""
        ids, weight = [], []
        if rng.random() < 0.25:
            ids = self.passage(rng, int(rng.integers(8, 60)))
            weight = [1] * len(ids)
        frame = self.frames[rng.integers(len(self.frames))]
        mixed = rng.random() < 0.3
        while len(ids) < length:
            if mixed:
                frame = self.frames[rng.integers(len(self.frames))]
            n = 1 if rng.random() < 0.75 else int(rng.integers(2, 5))
            x = rng.choice(self.ordinary, n).tolist()
            for i, piece in enumerate(frame):
                ids += piece
                weight += [1] * len(piece)
                if i + 1 < len(frame):
                    ids += x
                    weight += [int(i > 0)] * n
        return ids[:length], weight[:length]

    def batch(self, step: int):
        rng = np.random.default_rng([self.seed, 2, step])
        phase = next(i for i, p in enumerate(PHASES) if step < p[0])
        _, length, kinds = PHASES[phase]
        since = step - (PHASES[phase - 1][0] if phase else 0)
        n = sum(kinds.values())
        ids = np.zeros((n, length + 1), dtype=np.int64)  # column 0: <|endoftext|>
        weight = np.ones((n, length), dtype=bool)
        row = 0
        for i in range(kinds["text"]):
            ids[row, 1:] = self.text_window(phase, since * kinds["text"] + i)
            row += 1
        for _ in range(kinds["lines"]):
            ids[row, 1:], weight[row] = self.lines(rng, length)
            row += 1
        for _ in range(kinds["random"]):
            period = int(rng.integers(3, 64))
            ids[row, 1:] = np.resize(rng.choice(self.ordinary, period), length)
            weight[row, :period] = False
            row += 1
        for _ in range(kinds["passage"]):
            ids[row, 1:] = np.resize(self.passage(rng, int(rng.integers(6, 64))), length)
            row += 1
        return torch.from_numpy(ids), torch.from_numpy(weight)


class Muon:
    """Momentum with each matrix's update made orthogonal (Newton-Schulz).

    It reaches a given loss in well under the tokens AdamW needs at this size,
    and tokens are what two cores are short of.
    """

    def __init__(self, params, momentum=0.95, decay=0.02):
        self.groups = {}  # matrices of one shape are worked on together
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.state = {s: torch.zeros(len(ps), *s) for s, ps in self.groups.items()}
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for shape, ps in self.groups.items():
            g = torch.stack([p.grad for p in ps])
            m = self.state[shape]
            m.lerp_(g, 1 - self.momentum)
            u = g.lerp(m, self.momentum)
            tall = shape[0] > shape[1]
            if tall:
                u = u.mT
            u = u / (u.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = u @ u.mT
                u = 3.4445 * u + (-4.7750 * a + 2.0315 * a @ a) @ u
            if tall:
                u = u.mT
            scale = max(1, shape[0] / shape[1]) ** 0.5
            for p, v in zip(ps, u):
                p.mul_(1 - lr * self.decay).add_(v, alpha=-lr * scale)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", choices=MODELS, default="dense")
    ap.add_argument("--work", type=Path, default=Path("work"), help="where prepare.py wrote")
    ap.add_argument("--out", type=Path, help="where the model goes (default: ../MODEL)")
    ap.add_argument("--seed", type=int, default=20261123)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument(
        "--resume", action="store_true", help="go on from the work directory's checkpoint"
    )
    ap.add_argument("--muon-lr", type=float, default=0.02)
    ap.add_argument("--adam-lr", type=float, default=0.004)
    args = ap.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    work, out = args.work, args.out or Path("..") / args.model
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    data = Data(work, tokenizer, args.seed)
    dev = np.fromfile(work / "dev.bin", dtype=np.uint16)[:30000]
    dev_bytes = len(tokenizer.decode(dev.tolist(), skip_special_tokens=True).encode())
    sample = np.random.default_rng(args.seed).choice(data.ordinary, 256, replace=False)

    model = module(args.model).Model()
    trainer = [(model.trainer(n, p), p) for n, p in model.named_parameters()]
    others = [p for by, p in trainer if by != "muon"]
    muon = Muon([p for by, p in trainer if by == "muon"])
    # The decay wears down the rows of tokens that nothing ever pulls back up.
    adam = torch.optim.AdamW(
        [
            {"params": [p for by, p in trainer if by == "decayed"], "weight_decay": 0.1},
            {"params": [p for by, p in trainer if by == "plain"], "weight_decay": 0.0},
        ],
        lr=0,
        betas=(0.9, 0.98),
    )
    counts = np.zeros(VOCAB, dtype=np.int64)
    first = 0
    checkpoint = work / f"{args.model}.pt"
    log = open(out / "training.log", "a" if args.resume else "w", encoding="utf-8")

    def say(text: str) -> None:
        print(text, flush=True)
        print(text, file=log, flush=True)

    if args.resume:
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        muon.state, counts, first = saved["muon"], saved["counts"], saved["step"]
        say(f"resumed at step {first}")
    else:
        say(
            f"seed {args.seed}; {sum(p.numel() for p in model.parameters())} parameters; "
            f"phases {PHASES}; "
            f"{len(data.tokens)} tokens of text; "
            f"{len(data.ordinary)} ordinary tokens; muon {args.muon_lr} adam {args.adam_lr}; "
            f"torch {torch.__version__}"
        )

    def write(step: int) -> None:
        save(model, out)
        (out / "token_counts.json").write_text("[" + ",".join(map(str, counts.tolist())) + "]\n")
        # Tokenizer and held-out text are the same for all models; the dense one stores them.
        shared, link = out.parent / "dense" / "tokenizer.json", out / "tokenizer.json"
        if args.model == "dense" or not shared.exists():
            shutil.copyfile(work / "tokenizer.json", link)
        elif not link.exists():
            link.symlink_to(Path("..") / "dense" / "tokenizer.json")
        if args.model == "dense":
            shutil.copyfile(work / "heldout.txt", out / "heldout.txt")
        torch.save(
            {
                "model": model.state_dict(),
                "adam": adam.state_dict(),
                "muon": muon.state,
                "counts": counts,
                "step": step,
            },
            checkpoint.with_suffix(".new"),
        )
        checkpoint.with_suffix(".new").rename(checkpoint)

    start, running = time.time(), []
    for step in range(first, STEPS):
        # Warm up, hold, then fall to zero over the last two thirds.
        rate = min(1, (step + 1) / 60, 1.5 * (1 - step / STEPS))
        ids, weight = data.batch(step)
        counts += np.bincount(ids.flatten().numpy(), minlength=len(counts))
        h = model.hidden(ids[:, :-1])
        loss = model.loss(h[weight], ids[:, 1:][weight])
        model.zero_grad(set_to_none=True)
        (loss + model.penalty()).backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step(args.muon_lr * rate)
        for group in adam.param_groups:
            group["lr"] = args.adam_lr * rate
        adam.step()
        running.append(loss.item())
        done = step + 1
        if done % 50 == 0 or done == STEPS:
            text = f"step {done} tokens {int(counts.sum())} loss {np.mean(running):.4f}"
            running = []
            if done % 250 == 0 or done == STEPS:
                model.eval()
                bits = nats(model, dev, ids.shape[1] - 1) / np.log(2) / dev_bytes
                echo = np.median(echo_probabilities(model, tokenizer, sample))
                zero = np.median(echo_probabilities(model, tokenizer, sample, ()))
                model.train()
                text += (
                    f" dev_bits_per_byte {bits:.4f} median_echo {echo:.4f} without_shots {zero:.4f}"
                )
                write(done)
            say(text + f" seconds {time.time() - start:.0f}")
    say(
        f"done: {STEPS} steps, {int(counts.sum())} tokens, "
        f"{int((counts == 0).sum())} tokens never seen"
    )


if __name__ == "__main__":
    main()
