"""Checks that two sweeps of heads give the same losses:
same_losses.py PEER.jsonl ROWS.jsonl OURS.jsonl TOLERANCE. Exits with 1 if a component is missing or
a loss differs by more than the tolerance.
"""

import json, sys

peer_file, rows_file, ours_file, tolerance = *sys.argv[1:4], float(sys.argv[4])
last = lambda path: [json.loads(line) for line in open(path) if line.startswith("{")][-1]
peer, summary = last(peer_file), last(ours_file)
theirs = {r["component"]: r["loss"] for r in peer["rows"]}
ours = {r["component"]: r["loss"] for r in map(json.loads, open(rows_file))}
if theirs.keys() != ours.keys() or peer["tokens"] != summary["tokens"]:
    sys.exit(
        f"not the same work: {len(theirs)} components on {peer['tokens']} tokens, "
        f"{len(ours)} on {summary['tokens']}"
    )
worst = max(theirs, key=lambda c: abs(theirs[c] - ours[c]))
base = abs(peer["base_loss"] - summary["baseline_loss"])
difference = max(abs(theirs[worst] - ours[worst]), base)
print(
    f"{len(theirs)} losses: largest difference {abs(theirs[worst] - ours[worst]):.2e} ({worst}), "
    f"without a lesion {base:.2e}; allowed {tolerance:g}"
)
sys.exit(not difference <= tolerance)
