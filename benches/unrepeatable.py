"""Compares the tokens that `glitch sweep vocabulary` calls unrepeatable with transformers' answer,
under two prompts that glitch does not use: unrepeatable.py HF_FOLDER MODEL [GLITCH]. HF_FOLDER has
the weights for transformers and MODEL those for glitch; needs torch and transformers. With
--keep FILE, the probabilities of transformers are read from FILE, or computed and written there.
Exits with 1 if fewer than 95% of the tokens below 1e-3 under both prompts are unrepeatable (or
glitch tokens), or if more than 1% of the tokens above 0.5 under both are.
"""

import argparse, json, os, subprocess, sys, tempfile

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("model")
parser.add_argument("glitch", nargs="?", default=os.path.join(root, "target", "release", "glitch"))
parser.add_argument("--keep")
args = parser.parse_args()

WORDS = [" garden", " stone", " doctor", " summer", " paper", " music"]
# Text before the token, between its two places, and after.
PROMPTS = [("The word is \"", "\". Once more: \"", "\".\n"), ("Copy:", " ->", "\n")]


def probabilities():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    model = AutoModelForCausalLM.from_pretrained(args.folder, torch_dtype=torch.float32).eval()
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    vocabulary = model.config.vocab_size
    result = []
    for before, between, after in PROMPTS:
        ids = []
        for word in WORDS:
            (token,) = encode(word)
            ids += encode(before) + [token] + encode(between) + [token] + encode(after)
        ids += encode(before)
        probability = []
        with torch.no_grad():
            for start in range(0, vocabulary, 512):
                tokens = torch.arange(start, min(start + 512, vocabulary))
                cache = DynamicCache()
                model(torch.tensor([ids]), past_key_values=cache)
                cache.batch_repeat_interleave(len(tokens))
                rest = torch.tensor([encode(between)]).expand(len(tokens), -1)
                last = torch.cat([tokens[:, None], rest], 1)
                logits = model(last, past_key_values=cache, logits_to_keep=1).logits[:, -1]
                p = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].exp()
                probability += p.tolist()
                print(f"\r{start} of {vocabulary}", end="", file=sys.stderr)
        result.append(probability)
    return result


if args.keep and os.path.exists(args.keep):
    with open(args.keep) as f:
        first, second = json.load(f)
else:
    first, second = probabilities()
    if args.keep:
        with open(args.keep, "w") as f:
            json.dump([first, second], f)
with tempfile.TemporaryDirectory() as scratch:
    out = os.path.join(scratch, "rows.jsonl")
    command = [args.glitch, "sweep", "vocabulary", "--model", args.model, "--out", out, "--json"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    with open(out) as f:
        rows = {r["id"]: r for r in map(json.loads, f)}
if len(rows) != len(first):
    sys.exit(f"{len(rows)} rows for {len(first)} tokens")

named = lambda i: rows[i]["verdict"] in ("glitch", "unrepeatable")
tested = [i for i in rows if rows[i]["verdict"] != "special"]
below = [i for i in tested if max(first[i], second[i]) < 1e-3]
above = [i for i in tested if min(first[i], second[i]) > 0.5]
share = lambda ids: sum(map(named, ids)) / max(len(ids), 1)
describe = lambda i: (
    f"{i} {ascii(rows[i]['text'])} ({rows[i]['verdict']}, {first[i]:.1e} and {second[i]:.1e}, "
    f"glitch {rows[i]['echo_probability']} and {rows[i]['repetition_probability']})"
)
median = lambda p: sorted(p[i] for i in tested)[len(tested) // 2]
print(f"median probability: {median(first):.3f} and {median(second):.3f}")
verdicts = sorted({rows[i]["verdict"] for i in below})
counts = ", ".join(f"{sum(rows[i]['verdict'] == v for i in below)} {v}" for v in verdicts)
print(f"below 1e-3 under both prompts: {len(below)}, {100 * share(below):.2f}% named ({counts})")
print(f"above 0.5 under both prompts: {len(above)}, {100 * share(above):.2f}% named")
for i in [i for i in below if not named(i)][:20] + [i for i in above if named(i)][:20]:
    print("    " + describe(i))
met = share(below) >= 0.95 and share(above) <= 0.01
print("wanted: at least 95% of the first, at most 1% of the second:", "met" if met else "NOT met")
sys.exit(not met)
