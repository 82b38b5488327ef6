"""Prints the median of a figure in the runs of a peer and of glitch, and their ratio:
ratio.py PEER.jsonl OURS.jsonl KEY more|less, where `more` means that larger is better.
"""

import json, statistics, sys

peer, ours, key, better = sys.argv[1:5]
values = lambda path: [json.loads(line)[key] for line in open(path) if line.startswith("{")]
rows = {"peer": values(peer), "glitch": values(ours)}
print(f"\n{key:<14} {'median':>12} {'least':>12} {'most':>12} {'runs':>5}")
for name, v in rows.items():
    print(f"{name:<14} {statistics.median(v):>12.4g} {min(v):>12.4g} {max(v):>12.4g} {len(v):>5}")
p, g = (statistics.median(v) for v in rows.values())
if better == "more":
    print(f"glitch has {g / p:.2f} times the peer's {key}")
else:
    print(f"glitch takes {100 * g / p:.1f}% of the peer's {key}")
# Turn by turn: what else the machine was doing moves both of a pair, and the ratio less.
pairs = [g / p for p, g in zip(*rows.values())]
print("ratio by turn: " + ", ".join(f"{r:.3f}" for r in pairs))
