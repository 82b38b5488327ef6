"""How many kinds does the search for kinds find, and how many a search by score? search.py [GLITCH
[SEEDS [EVALUATIONS [MODEL...]]]]. Runs `glitch fuzz` on the four built-in models, or those named,
with the key `search` of the campaign file set to each, and counts with `glitch triage` the kinds,
and those with a case that holds in new prompts. Takes about two minutes for each model and seed.
Exits with 1 unless the search for kinds finds twice as many, all seeds of a model together, on
every model.
"""

import json, os, subprocess, sys, tempfile

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
glitch = sys.argv[1] if len(sys.argv) > 1 else os.path.join(root, "target", "release", "glitch")
seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
evaluations = int(sys.argv[3]) if len(sys.argv) > 3 else 20_000
models = sys.argv[4:] or ["dense", "moe", "mamba", "rwkv"]


def kinds(model, search, seed):
    with tempfile.TemporaryDirectory() as scratch:
        definition, out = os.path.join(scratch, "campaign.toml"), os.path.join(scratch, "out")
        with open(definition, "w") as f:
            f.write(
                f'model = "builtin:{model}"\nsearch = "{search}"\nseed = {seed}\n'
                f"max_evals = {evaluations}\nmax_findings = 64\nminimize_calls = 200\n"
            )
        run = lambda *args: subprocess.run(
            [glitch, *args], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        run("fuzz", definition, "--out", out)
        found = json.loads(run("triage", out, "--json").stdout)["kinds"]
    return len(found), sum(kind["consistent"] > 0 for kind in found)


enough = True
for model in models:
    totals = []
    for search in ["score", "kinds"]:
        counts = [kinds(model, search, seed) for seed in range(1, seeds + 1)]
        totals.append(sum(all_ for all_, _ in counts))
        each = ", ".join(f"{all_} ({consistent})" for all_, consistent in counts)
        print(f"{model} {search}: kinds (of these consistent) {each}", flush=True)
    enough &= totals[1] >= 2 * totals[0]
    print(f"{model}: {totals[1] / max(totals[0], 1):.1f} times as many", flush=True)
sys.exit(0 if enough else 1)
