"""Compares the tokens that `glitch sweep vocabulary` flags on builtin:dense with how often each
token occurred in training: builtin_vocabulary.py [GLITCH]. Needs only Python and a build. Exits
with 1 if fewer than 95% of the never-seen tokens, or more than 1% of the frequent ones, are
flagged.
"""

import json, os, subprocess, sys, tempfile

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
glitch = sys.argv[1] if len(sys.argv) > 1 else os.path.join(root, "target", "release", "glitch")
with open(os.path.join(root, "corpus", "models", "dense", "token_counts.json")) as f:
    counts = json.load(f)
with tempfile.TemporaryDirectory() as scratch:
    out = os.path.join(scratch, "rows.jsonl")
    command = [glitch, "sweep", "vocabulary", "--model", "builtin:dense", "--out", out, "--json"]
    summary = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    with open(out) as f:
        rows = {r["id"]: r for r in map(json.loads, f)}
if len(rows) != len(counts):
    sys.exit(f"{len(rows)} rows for {len(counts)} tokens")

flagged = lambda i: rows[i]["verdict"] in ("glitch", "weak")
groups = [
    ("never seen", 0, 0),
    ("1 to 99 times", 1, 99),
    ("100 to 999 times", 100, 999),
    ("1,000 times and more", 1000, None),
]
print(
    f"{summary['tokens_tested']} tokens in {summary['seconds']:.1f} s; the same thresholds flag "
    f"{summary['controls_flagged']} of {summary['controls']} controls"
)
print(f"{'in training':<22} {'tokens':>7} {'flagged':>8} {'share':>8}")
share = {}
for name, low, high in groups:
    ids = [i for i, n in enumerate(counts) if n >= low and (high is None or n <= high)]
    hits = [i for i in ids if flagged(i)]
    share[name] = len(hits) / max(len(ids), 1)
    print(f"{name:<22} {len(ids):>7} {len(hits):>8} {100 * share[name]:>7.2f}%")
    few = [i for i in ids if flagged(i) != (low == 0)]
    if low in (0, 1000) and few:
        describe = lambda r: (
            f"{r['id']} {ascii(r['text'])} ({r['verdict']}, echo {r['echo_probability']})"
        )
        print("    wrong: " + ", ".join(describe(rows[i]) for i in few[:8]))
ok = share["never seen"] >= 0.95 and share["1,000 times and more"] <= 0.01
print(
    "wanted: at least 95% of the never seen, at most 1% of those seen 1,000 times and more:",
    "met" if ok else "NOT met",
)
sys.exit(not ok)
