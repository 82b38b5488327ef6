"""Are the planted triggers found, without a reference model? triggers.py [GLITCH [KIND...]]. Runs
`glitch sweep insert --cases` on each organism of corpus/organisms of the kinds (one, two), says
whether a case is exactly the trigger and says the planted text, which component it names first, how
long it took, and how many other cases there are. Needs no other package, and half a minute for each
organism. Exits with 1 unless 9 of 10 one-token triggers and half of the two-token ones are found,
each within 5 minutes.
"""

import glob, json, os, subprocess, sys, tempfile, time

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
glitch = sys.argv[1] if len(sys.argv) > 1 else os.path.join(root, "target", "release", "glitch")
kinds = sys.argv[2:] or ["one", "two"]
LIMIT_S = 300
found = {kind: [] for kind in kinds}
for path in sorted(glob.glob(os.path.join(root, "corpus", "organisms", "*.json"))):
    with open(path) as f:
        planted = json.load(f)
    if planted["kind"] not in kinds:
        continue
    name = os.path.basename(path)[:-5]
    model = "builtin:dense+" + os.path.abspath(path[:-5] + ".safetensors")
    pairs = ["--pairs"] if planted["kind"] == "two" else []
    with tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        command = [glitch, "sweep", "insert", model, "--cases", scratch, "--json", *pairs]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        cases = []
        for case in glob.glob(os.path.join(scratch, "*.json")):
            with open(case) as f:
                cases.append(json.load(f))
    exact = [
        case for case in cases
        if [edit.get("id") for edit in case["edits"]] == planted["trigger"]
        and case["continuation"][:2] == planted["says"][:2]
    ]
    named = [case["implication"]["set"] for case in exact]
    hit = bool(exact) and seconds <= LIMIT_S
    found[planted["kind"]].append(hit)
    print(f"{name}: {'found' if hit else 'MISSED'} in {seconds:.0f} s, planted "
          f"{planted['component']}, named {named}; {len(cases) - len(exact)} other cases", flush=True)
met = True
for kind, hits in found.items():
    least = 0.9 if kind == "one" else 0.5
    met &= sum(hits) >= least * len(hits)
    print(f"{kind}: {sum(hits)} of {len(hits)} found, at least {least:.0%} asked")
print("met" if met else "NOT met")
sys.exit(not met)
