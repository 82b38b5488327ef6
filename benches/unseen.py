"""Does the estimate of unseen kinds hold? unseen.py FOLDER [GLITCH [MODEL]]. Runs campaigns of
20,000 and of 80,000 evaluations for five seeds into FOLDER (those that are there already are read),
and says whether the interval that the first quarter gives for the kinds after four times the
evaluations holds what the whole one found. Needs no other package; on the built-in dense model four
minutes a seed. Exits with 1 if it holds in fewer than 4 of 5 seeds.
"""

import json, math, os, subprocess, sys

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
folder = sys.argv[1]
glitch = sys.argv[2] if len(sys.argv) > 2 else os.path.join(root, "target", "release", "glitch")
model = sys.argv[3] if len(sys.argv) > 3 else "builtin:dense"
SEEDS, QUARTER, WHOLE = range(1, 6), 20_000, 80_000


def summary(seed, evaluations):
    out = os.path.join(folder, f"{seed}-{evaluations}")
    path = os.path.join(out, "summary.json")
    if not os.path.exists(path):
        command = [glitch, "fuzz", "--model", model, "--max-evals", str(evaluations)]
        command += ["--seed", str(seed), "--out", out, "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open(path) as f:
        return json.load(f)


def seen(of):
    """The kinds of raw findings. Those that only minimizing led to are not estimated."""
    return sum(kind["raw"] > 0 for kind in of["kinds"])


held = 0
for seed in SEEDS:
    quarter, whole = summary(seed, QUARTER), summary(seed, WHOLE)
    after, found = quarter["unseen"]["kinds_after_four_times"], seen(whole)
    holds = math.floor(after["low"]) <= found <= math.ceil(after["high"])
    held += holds
    print(f"seed {seed}: {seen(quarter)} kinds after {QUARTER:,} evaluations, about "
          f"{after['value']:.1f} ({after['low']:.1f} to {after['high']:.1f}) estimated after "
          f"{WHOLE:,}, {found} found{'' if holds else ': MISSED'}", flush=True)
met = held >= 4
print(f"{held} of {len(SEEDS)} held: {'met' if met else 'NOT met'}")
sys.exit(not met)
