"""Compares the tokens that `glitch sweep vocabulary` calls unrepeatable with transformers' answer,
under two prompts of examples that glitch does not use: unrepeatable.py HF_FOLDER MODEL [GLITCH].
HF_FOLDER has the weights for transformers and MODEL those for glitch; needs torch and transformers.
With --keep FILE, the probabilities of transformers are read from FILE, or computed and written
there.
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

# Examples of many forms, so that a token is not refused for its form alone. These two prompts are
# the best of 33 at getting tokens repeated, by the first decile of 256 random ones (0.16 and 0.17,
# medians 0.61 and 0.64); nothing of glitch was looked at.
EXAMPLES = [
    " apple", "graph", " River", "ness", " seventeen", "Window", "ing", " blue", "//", " Moreover",
    " sch", "ation", " Harvest", "cod", " underst", "pre",
]
BATCH, SAMPLE = 64, 8
# Text before the token, between its two places, and after.
PROMPTS = [
    ("The text is \"", "\". Once more: \"", "\".\n"),
    ("| ", "|", "|\n"),
]


def probabilities():
    """Returns the probability with which each token is repeated under the first prompt and, for
    those below 1e-3 and every SAMPLE-th, under the second.
    """
    import copy, torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    tokenizer = Tokenizer.from_file(os.path.join(args.folder, "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(args.folder, torch_dtype=torch.float32).eval()
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    wanted, result = list(range(model.config.vocab_size)), []
    for before, between, after in PROMPTS:
        ids = []
        for example in map(encode, EXAMPLES):
            ids += encode(before) + example + encode(between) + example + encode(after)
        ids += encode(before)
        probability = {}
        with torch.no_grad():
            prefix = DynamicCache()
            model(torch.tensor([ids]), past_key_values=prefix)
            for start in range(0, len(wanted), BATCH):
                tokens = torch.tensor(wanted[start : start + BATCH])
                cache = copy.deepcopy(prefix)
                cache.batch_repeat_interleave(len(tokens))
                rest = torch.tensor([encode(between)]).expand(len(tokens), -1)
                last = torch.cat([tokens[:, None], rest], 1)
                logits = model(last, past_key_values=cache, logits_to_keep=1).logits[:, -1]
                p = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].exp()
                probability |= zip(tokens.tolist(), p.tolist())
                print(f"\r{start} of {len(wanted)}", end="", file=sys.stderr)
        result.append(probability)
        wanted = [i for i in wanted if probability[i] < 1e-3 or i % SAMPLE == 0]
    return result


if args.keep and os.path.exists(args.keep):
    with open(args.keep) as f:
        first, second = [{int(i): p for i, p in prompt.items()} for prompt in json.load(f)]
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
both = [i for i in tested if i in second]
below = [i for i in both if max(first[i], second[i]) < 1e-3]
above = [i for i in both if i % SAMPLE == 0 and min(first[i], second[i]) > 0.5]
share = lambda ids: sum(map(named, ids)) / max(len(ids), 1)
describe = lambda i: (
    f"{i} {ascii(rows[i]['text'])} ({rows[i]['verdict']}, {first[i]:.1e} and {second[i]:.1e}, "
    f"glitch {rows[i]['echo_probability']} and {rows[i]['repetition_probability']})"
)
sampled = [i for i in tested if i % SAMPLE == 0]
median = lambda p: sorted(p[i] for i in sampled)[len(sampled) // 2]
print(f"median probability: {median(first):.3f} and {median(second):.3f}")
verdicts = sorted({rows[i]["verdict"] for i in below})
counts = ", ".join(f"{sum(rows[i]['verdict'] == v for i in below)} {v}" for v in verdicts)
print(f"below 1e-3 under both prompts: {len(below)}, {100 * share(below):.2f}% named ({counts})")
print(f"above 0.5 under both, one token in {SAMPLE}: {len(above)}, {100 * share(above):.2f}% named")
for i in [i for i in below if not named(i)][:20] + [i for i in above if named(i)][:20]:
    print("    " + describe(i))
met = share(below) >= 0.95 and share(above) <= 0.01
print("wanted: at least 95% of the first, at most 1% of the second:", "met" if met else "NOT met")
sys.exit(not met)
