"""Compares the effects of `glitch sweep heads|mlps|weights` with transformers on the same passages,
and says whether the components whose removal costs most there are flagged:
flagged_lesions.py HF_FOLDER MODEL TARGET [GLITCH]. HF_FOLDER has the weights for transformers (of
the Llama family), MODEL those for glitch; needs torch and transformers. Exits with 1 if an effect
differs by more than 1e-3 nats, or one of the costliest (8 heads, 2 MLPs, 1 weight) is not flagged.
"""

import json, os, re, subprocess, sys, tempfile
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
folder, model, target = sys.argv[1:4]
glitch = sys.argv[4] if len(sys.argv) > 4 else os.path.join(root, "target", "release", "glitch")
with tempfile.TemporaryDirectory() as scratch:
    out = os.path.join(scratch, "rows.jsonl")
    command = [glitch, "sweep", target, "--model", model, "--out", out, "--json"]
    if target == "weights":
        command += ["--limit", "64"]
    summary = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    with open(out) as f:
        rows = {r["component"]: r for r in map(json.loads, f)}
with open(os.path.join(root, "corpus", "passages", "passages.txt"), encoding="utf-8") as f:
    passages = [p.strip() for p in f.read().split("\n\n") if p.strip()][: summary["texts"]]
tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
m = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
texts = [[m.config.bos_token_id] + tokenizer.encode(p).ids for p in passages]
# One batch, padded on the right, where causal attention does not see it.
ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
counted = torch.zeros(ids.shape[0], ids.shape[1] - 1)
for n, text in enumerate(texts):
    ids[n, : len(text)] = torch.tensor(text)
    counted[n, : len(text) - 1] = 1.0 / (len(text) - 1)


def loss():
    """Mean over the texts of the loss, nats per token."""
    lp = m(ids).logits[:, :-1].log_softmax(-1)
    return -(lp.gather(2, ids[:, 1:, None])[..., 0] * counted).sum().item() / len(texts)


def zeroed(component):
    """The weights whose zeroing removes the component, as (tensor, index)."""
    layer = m.model.layers[int(re.match(r"L(\d+)", component)[1])]
    if head := re.search(r"head(\d+)$", component):
        d = m.config.head_dim
        columns = slice(int(head[1]) * d, int(head[1]) * d + d)
        return layer.self_attn.o_proj.weight, (slice(None), columns)
    if at := re.search(r"mlp\.down\[(\d+),(\d+)\]$", component):
        return layer.mlp.down_proj.weight, (int(at[1]), int(at[2]))
    if at := re.search(r"attn\.o\[(\d+),(\d+)\]$", component):
        return layer.self_attn.o_proj.weight, (int(at[1]), int(at[2]))
    return layer.mlp.down_proj.weight, (slice(None), slice(None))


with torch.inference_mode():
    base, effects = loss(), {}
    for n, component in enumerate(rows):
        weight, at = zeroed(component)
        keep = weight[at].clone()
        weight[at] = 0
        effects[component] = loss() - base
        weight[at] = keep
        print(f"\r{n + 1} of {len(rows)}", end="", file=sys.stderr)
flagged = {c for c, r in rows.items() if r.get("q_value", 1) <= 0.05}
worst = max(rows, key=lambda c: abs(rows[c]["effect"] - effects[c]))
difference = abs(rows[worst]["effect"] - effects[worst])
most = sorted(rows, key=lambda c: -effects[c])[: {"heads": 8, "mlps": 2}.get(target, 1)]
print(f"\n{len(rows)} {target}, {summary['texts']} texts, {len(flagged)} flagged, "
      f"{summary['seconds']:.0f} s")
print(f"largest difference of an effect: {difference:.2e} ({worst})")
for c in most:
    r = rows[c]
    print(f"    {c:<24} {effects[c]:+.4f} (glitch {r['effect']:+.4f}, noise "
          f"{r.get('noise_effects')}, q {r['q_value']:.1e})")
print(f"groups {summary['groups'][:3]}\nchannels {summary['channels'][:3]}")
met = difference <= 1e-3 and all(c in flagged for c in most)
print("wanted: the costliest are flagged, effects within 1e-3:", "met" if met else "NOT met")
sys.exit(not met)
