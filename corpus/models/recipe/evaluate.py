#!/usr/bin/env python3
"""Measure a model that `train.py` wrote, and write summary.json beside it.

The weights are read back from model.safetensors, so they are the rounded ones.
Two questions: is it a language model (fewer bits per byte on held-out text
than a good trigram model of the same training text), and can it copy (the
probability it gives to an ordinary token that it has been asked to repeat)?
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from common import MODELS, SHOTS, echo_probabilities, echo_prompt, load, module, nats
from train import LENGTH, ORDINARY


class Trigram:
    """Interpolated Kneser-Ney with three discounts an order (Chen and Goodman).

    N-grams are packed into 64-bit integers, a token to 12 bits, and kept as
    sorted arrays: five million tokens take seconds and no dictionary.
    """

    def __init__(self, tokens: np.ndarray, vocab: int = 4096):
        t = tokens.astype(np.int64)
        self.vocab = vocab
        tri = np.unique((t[:-2] << 24) | (t[1:-1] << 12) | t[2:], return_counts=True)
        bi = np.unique((t[:-1] << 12) | t[1:])
        # Below the highest order, what counts is how many tokens an n-gram follows.
        bi_after = np.unique(tri[0] & 0xFFFFFF, return_counts=True)
        uni_after = np.unique(bi & 0xFFF, return_counts=True)
        self.orders = [self.order(*uni_after), self.order(*bi_after), self.order(*tri)]

    @staticmethod
    def order(keys, counts):
        n = [np.count_nonzero(counts == k) for k in range(1, 5)]
        y = n[0] / (n[0] + 2 * n[1])
        discount = np.array(
            [0] + [k - (k + 1) * y * n[k] / n[k - 1] if n[k - 1] else 0.5 for k in (1, 2, 3)]
        )
        discount = np.clip(discount, [0, 0.1, 0.1, 0.1], [0, 0.95, 1.9, 2.9])
        cut = discount[np.minimum(counts, 3)]
        contexts, first = np.unique(keys >> 12, return_index=True)
        return {
            "keys": keys,
            "kept": counts - cut,
            "contexts": contexts,
            "total": np.add.reduceat(counts, first).astype(float),
            "left": np.add.reduceat(cut, first),
        }

    def nats(self, tokens: np.ndarray) -> float:
        t = np.concatenate(
            ([0], tokens.astype(np.int64))
        )  # as in training, a document opens with 0
        p = np.full(len(t), 1 / self.vocab)
        key = np.zeros(len(t), dtype=np.int64)
        for n, o in enumerate(self.orders):
            shift = np.concatenate((np.zeros(n, dtype=np.int64), t[: len(t) - n]))
            key |= shift << (12 * n)

            def find(table, wanted):
                at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
                return at, table[at] == wanted

            at, hit = find(o["keys"], key)
            ctx, known = find(o["contexts"], key >> 12)
            kept = np.where(hit, o["kept"][at], 0)
            q = (kept + o["left"][ctx] * p) / o["total"][ctx]
            p = np.where(known & (np.arange(len(t)) >= n), q, p)
        return float(-np.log(p[1:]).sum())


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", choices=MODELS, default="dense")
    ap.add_argument("--work", type=Path, default=Path("work"), help="where prepare.py wrote")
    ap.add_argument("--out", type=Path, help="where the model is (default: ../MODEL)")
    ap.add_argument(
        "--seed", type=int, default=20261123, help="the seed of the run, for the record"
    )
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)

    out = args.out or Path("..") / args.model
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = load(args.model, out)
    text = (args.work / "heldout.txt").read_text(encoding="utf-8")
    size = len(text.encode())
    held = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
    train = np.fromfile(args.work / "train.bin", dtype=np.uint16)
    in_text = np.bincount(train, minlength=4096)
    in_text[0] = 0
    counts = np.array(json.loads((out / "token_counts.json").read_text()))

    trigram = Trigram(train)
    # It must be a probability: over every next token it sums to one.
    sums = [
        sum(
            np.exp(trigram.nats(np.array([*c])) - trigram.nats(np.array([*c, x])))
            for x in range(4096)
        )
        for c in ([int(held[5]), int(held[6])], [0, 4095])
    ]
    assert np.allclose(sums, 1), sums
    bits = nats(model, held, LENGTH) / np.log(2) / size
    notes = model.notes()
    trigram_bits = trigram.nats(held) / np.log(2) / size

    ordinary = np.flatnonzero(in_text >= ORDINARY)
    p = np.zeros(4096)
    p[ordinary] = echo_probabilities(model, tokenizer, ordinary)
    zero = echo_probabilities(model, tokenizer, ordinary, ())
    never = np.flatnonzero(counts == 0)
    p_never = echo_probabilities(model, tokenizer, never)
    rare = np.flatnonzero((in_text > 0) & (in_text < ORDINARY))
    p_rare = echo_probabilities(model, tokenizer, rare)

    def median(threshold):
        return round(float(np.median(p[in_text >= threshold])), 4)

    summary = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": int(counts.sum()),
        "distinct_text_tokens": int(train.size),
        "never_seen_tokens": int(never.size),
        "heldout_bytes": size,
        "heldout_tokens": int(held.size),
        "heldout_bits_per_byte": round(bits, 4),
        "trigram_bits_per_byte": round(trigram_bits, 4),
        "median_echo_probability": median(100),
        "median_echo_probability_seen_1000": median(1000),
        "median_echo_probability_seen_10": median(ORDINARY),
        "median_echo_probability_without_shots": round(
            float(np.median(zero[in_text[ordinary] >= 100])), 4
        ),
        "median_echo_probability_seen_1_to_9": round(float(np.median(p_rare)), 6),
        "median_echo_probability_never_seen": round(float(np.median(p_never)), 8),
        "share_of_ordinary_echoed_over_half": round(float((p[ordinary] > 0.5).mean()), 4),
        "share_of_never_seen_echoed_over_half": round(float((p_never > 0.5).mean()), 4),
        "echo_shots": list(SHOTS),
        "echo_prompt_before": echo_prompt(tokenizer)[0],
        "echo_prompt_after": echo_prompt(tokenizer)[1],
        "seed": args.seed,
        **notes,
    }

    # The same numbers must come out of the library whose layout this is.
    reference = module(args.model).reference(out)
    ids = torch.from_numpy(held[: 4 * LENGTH].reshape(4, LENGTH))
    with torch.no_grad():
        gap = (reference(ids) - model(ids)).abs().max().item()
    assert gap < 1e-3, gap

    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    print(f"largest difference from the other implementation's logits: {gap:.2e}")


if __name__ == "__main__":
    main()
