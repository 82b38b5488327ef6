"""How many kinds does the search for kinds find, and how many a search by score? search.py FOLDER
[GLITCH [SEEDS [EVALUATIONS [MODEL...]]]]. Runs `glitch fuzz` on the four built-in models, or those
named, with the key `search` of the campaign file set to each, into FOLDER (campaigns that are there
already are read), and counts with `glitch triage` the kinds, and those with a case that holds in new
prompts, after a quarter of the evaluations (5,000) and after all (20,000). A case counts from the
evaluation that found it. Takes two to fifteen minutes for each model, search and seed on one core.
Exits with 1 unless the search for kinds finds twice as many, all seeds of a model together, on every
model.
"""

import glob, json, os, shutil, subprocess, sys, tempfile

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
folder = sys.argv[1]
glitch = sys.argv[2] if len(sys.argv) > 2 else os.path.join(root, "target", "release", "glitch")
seeds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
evaluations = int(sys.argv[4]) if len(sys.argv) > 4 else 20_000
models = sys.argv[5:] or ["dense", "moe", "mamba", "rwkv"]
after = [evaluations // 4, evaluations]


def run(*args):
    return subprocess.run(
        [glitch, *args], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout


def campaign(model, search, seed):
    """The folder of a campaign, which is run unless it was."""
    out = os.path.join(folder, f"{model}-{search}-{seed}-{evaluations}")
    if os.path.exists(out):
        return out
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        definition, ended = os.path.join(scratch, "campaign.toml"), os.path.join(scratch, "out")
        with open(definition, "w") as f:
            f.write(
                f'model = "builtin:{model}"\nsearch = "{search}"\nseed = {seed}\n'
                f"max_evals = {evaluations}\nmax_findings = 64\nminimize_calls = 200\n"
            )
        run("fuzz", definition, "--out", ended)
        os.rename(ended, out)
    return out


def kinds(model, search, seed):
    """The kinds, and those of them that are consistent, after each number of evaluations."""
    cases = glob.glob(os.path.join(campaign(model, search, seed), "cases", "*.json"))
    counts = []
    for limit in after:
        with tempfile.TemporaryDirectory() as early:
            for case in cases:
                with open(case) as f:
                    if json.load(f)["lineage"]["evaluation"] <= limit:
                        shutil.copy(case, early)
            found = json.loads(run("triage", early, "--json"))["kinds"] if os.listdir(early) else []
            counts.append((len(found), sum(kind["consistent"] > 0 for kind in found)))
    return counts


enough = True
for model in models:
    totals = {}
    for search in ["score", "kinds"]:
        counts = [kinds(model, search, seed) for seed in range(1, seeds + 1)]
        for at, limit in enumerate(after):
            totals[search, at] = sum(of_seed[at][0] for of_seed in counts)
            each = ", ".join(f"{of_seed[at][0]} ({of_seed[at][1]})" for of_seed in counts)
            print(f"{model} {search}, {limit}: kinds (consistent) {each}", flush=True)
    for at, limit in enumerate(after):
        ratio = totals["kinds", at] / max(totals["score", at], 1)
        print(f"{model}, {limit}: {ratio:.1f} times as many", flush=True)
    enough &= totals["kinds", len(after) - 1] >= 2 * totals["score", len(after) - 1]
sys.exit(0 if enough else 1)
