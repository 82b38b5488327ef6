"""Are the planted triggers found? triggers.py [GLITCH [--against] [KIND...]]. Runs `glitch sweep
insert --cases` on each organism of corpus/organisms of the kinds (one, two, three), says whether a
case is exactly the trigger and says the planted text, which component it names first, how long it
took, and how many other cases there are. Needs no other package, and half a minute for each
organism (two for three tokens). Exits with 1 unless 9 of 10 one-token triggers and half of the
others are found, each within 5 minutes. With --against, compares with the dense model: then all
must be found within 2 minutes, and the planted component named first in 9 of 10.
"""

import glob, json, os, subprocess, sys, tempfile, time

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
glitch = sys.argv[1] if len(sys.argv) > 1 else os.path.join(root, "target", "release", "glitch")
kinds = [kind for kind in sys.argv[2:] if kind != "--against"] or ["one", "two", "three"]
against = "--against" in sys.argv
LIMIT_S = 120 if against else 300
first = []
found = {kind: [] for kind in kinds}
for path in sorted(glob.glob(os.path.join(root, "corpus", "organisms", "*.json"))):
    with open(path) as f:
        planted = json.load(f)
    if planted["kind"] not in kinds:
        continue
    name = os.path.basename(path)[:-5]
    model = "builtin:dense+" + os.path.abspath(path[:-5] + ".safetensors")
    # Whoever compares two models does not know what to look for.
    options = ["--pairs"] if planted["kind"] != "one" or against else []
    options += ["--triples"] if planted["kind"] == "three" else []
    options += ["--against", "builtin:dense"] if against else []
    with tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        command = [glitch, "sweep", "insert", model, "--cases", scratch, "--json", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        cases = []
        for case in glob.glob(os.path.join(scratch, "*.json")):
            with open(case) as f:
                cases.append(json.load(f))
    exact = [
        case for case in cases
        if [edit.get("id") for edit in case["edits"]] == planted["trigger"]
        and (against or case["continuation"][:2] == planted["says"][:2])
    ]

    def named_by(case):
        """The components that a case names, strongest first."""
        if against:
            return [swap["component"] for swap in case["against"]["swaps"][:3]]
        return case["implication"]["set"]

    named = [named_by(case) for case in exact]
    first += [bool(exact) and named[0][:1] == [planted["component"]]]
    hit = bool(exact) and seconds <= LIMIT_S
    found[planted["kind"]].append(hit)
    print(f"{name}: {'found' if hit else 'MISSED'} in {seconds:.0f} s, planted "
          f"{planted['component']}, named {named}; {len(cases) - len(exact)} other cases", flush=True)
met = True
for kind, hits in found.items():
    least = 1 if against else 0.9 if kind == "one" else 0.5
    met &= sum(hits) >= least * len(hits)
    print(f"{kind}: {sum(hits)} of {len(hits)} found, at least {least:.0%} asked")
print(f"the planted component is named first in {sum(first)} of {len(first)}")
met &= not against or sum(first) >= 0.9 * len(first)
print("met" if met else "NOT met")
sys.exit(not met)
