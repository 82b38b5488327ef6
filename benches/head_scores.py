"""Compares the head scores of `glitch sweep heads` with transformers' attentions:
head_scores.py HF_FOLDER MODEL [GLITCH]. HF_FOLDER has the weights for transformers (of the Llama
family), MODEL those for glitch; needs torch and transformers. Attention to the first token is
compared on the same passage; exits with 1 if it differs by more than 1e-3. The other scores are of
random tokens of each side's own, so that they can be alike but not equal: their correlation is
printed, and how many of the heads with 0.5 or more on one side have at least 0.4 on the other.
"""

import json, os, random, subprocess, sys, tempfile
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
folder, model = sys.argv[1:3]
glitch = sys.argv[3] if len(sys.argv) > 3 else os.path.join(root, "target", "release", "glitch")
TOKENS, SEQUENCES = 25, 16
with tempfile.TemporaryDirectory() as scratch:
    out = os.path.join(scratch, "rows.jsonl")
    command = [glitch, "sweep", "heads", "--model", model, "--passages", "1", "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    with open(out) as f:
        rows = {r["component"]: r["head"] for r in map(json.loads, f)}
with open(os.path.join(root, "corpus", "passages", "passages.txt"), encoding="utf-8") as f:
    passage = f.read().split("\n\n")[0].strip()
tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
m = AutoModelForCausalLM.from_pretrained(
    folder, torch_dtype=torch.float32, attn_implementation="eager"
).eval()
bos = m.config.bos_token_id


def attentions(ids):
    """[layer, head, query, key]"""
    with torch.inference_mode():
        return torch.stack(m(torch.tensor([ids]), output_attentions=True).attentions)[:, 0]


theirs = {"sink": attentions([bos] + tokenizer.encode(passage).ids)[:, :, 1:, 0].mean(-1)}
# Words of plain letters, as single tokens.
words = [
    i for t, i in tokenizer.get_vocab().items() if t.startswith("\u0120") and t[1:].isascii()
    and t[1:].isalpha() and t[1:].islower() and len(t) > 3
]
draw = random.Random(0)
back = {"previous_token": 1, "duplicate_token": TOKENS, "prefix_matching": TOKENS - 1}
for name in back:
    theirs[name] = 0
for _ in range(SEQUENCES):
    tokens = draw.sample(sorted(words), TOKENS)
    pattern = attentions([bos] + tokens + tokens)
    queries = torch.arange(1 + TOKENS, 1 + 2 * TOKENS)
    for name, by in back.items():
        theirs[name] += pattern[:, :, queries, queries - by].mean(-1) / SEQUENCES


def correlation(a, b):
    return torch.corrcoef(torch.tensor([a, b], dtype=torch.float64))[0, 1].item()


heads = [
    (f"L{layer}.head{head}", layer, head)
    for layer in range(m.config.num_hidden_layers) for head in range(m.config.num_attention_heads)
]
assert len(heads) == len(rows), (len(heads), len(rows))
met = True
for name, scores in theirs.items():
    pairs = [(rows[c][name], scores[layer, head].item()) for c, layer, head in heads]
    a, b = zip(*pairs)
    difference, rho = max(abs(x - y) for x, y in pairs), correlation(a, b)
    high = [(x, y) for x, y in pairs if max(x, y) >= 0.5]
    agree = sum(min(pair) >= 0.4 for pair in high)
    print(f"{name:<16} largest difference {difference:.2e}, correlation {rho:.3f}, "
          f"{agree} of {len(high)} heads above 0.5 agree")
    met &= name != "sink" or difference <= 1e-3
print("wanted: sinks within 1e-3:", "met" if met else "NOT met")
sys.exit(not met)
