"""What the scripts about planted models share: the built-in dense model, its frequent words and its
held-out text, and a case as `glitch implicate` explains it.
"""

import json, os, subprocess
from tokenizers import Tokenizer

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
dense = os.path.join(root, "corpus", "models", "dense")
release = os.path.join(root, "target", "release", "glitch")
tokenizer = Tokenizer.from_file(os.path.join(dense, "tokenizer.json"))
LENGTH = 20

with open(os.path.join(dense, "token_counts.json")) as f:
    counts = json.load(f)
counts = counts if isinstance(counts, list) else counts["counts"]
text = {i: tokenizer.decode([i]) for i in range(len(counts))}
words = [
    i for i, n in enumerate(counts)
    if n >= 300 and len(text[i]) > 4 and text[i][0] == " " and text[i][1:].isalpha()
    and text[i].islower()
]
with open(os.path.join(dense, "heldout.txt"), encoding="utf-8") as f:
    ids = tokenizer.encode(f.read()).ids
half = len(ids) // 2


def stretch(draw, part, length=LENGTH):
    """BOS and so many tokens of one half of the held-out text."""
    at = draw.randrange(part * half, part * half + half - length)
    return [0] + ids[at : at + length]


def judged(hits, count, ordinary, wrong, with_any):
    """Prints how often the planted component came first among the specific ones, and whether that
    is 8 of 10 and it heads no explanation of an ordinary replacement; returns whether."""
    print(f"planted component first among the specific ones: {hits} of {count}")
    print(f"ordinary replacements: {ordinary}; explained by the planted component {wrong}, by any "
          f"component {with_any}")
    met = hits >= 0.8 * count and wrong == 0
    print("wanted: 8 of 10, and none of the ordinary ones:", "met" if met else "NOT met")
    return met


def is_text(tokens):
    """Whether text gives these tokens."""
    return [0] + tokenizer.encode(tokenizer.decode(tokens[1:])).ids == tokens


def explain(glitch, model, tokens, replacements, scratch):
    """The case with these replacements, {position: id}, and what `glitch implicate` finds."""
    edits = [f"replace {position} {i}" for position, i in replacements.items()]
    return explain_edits(glitch, model, tokens, edits, scratch)


def explain_edits(glitch, model, tokens, edits, scratch):
    """The case with these edits, and what `glitch implicate` finds."""
    command = [glitch, "case", "new", "--model", model, "--out", scratch, "--json",
               "--prompt", tokenizer.decode(tokens[1:])]
    for edit in edits:
        command += ["--edit", edit]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    case = json.loads(made)
    assert case["base"] == tokens, "the prompt is tokenized otherwise"
    path = os.path.join(scratch, case["id"] + ".json")
    command = [glitch, "implicate", path, "--model", model, "--json"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return case, json.loads(found)
