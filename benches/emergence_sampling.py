#!/usr/bin/env python3
"""Compares shares of variance from drawn sets with the exact spectrum over all subsets.

The exact spectrum is the Walsh-Fourier transform of all 4,096 subsets of 12 heads of a built-in
model. Then sets are drawn with 20 seeds, and each run estimates the shares of orders 1 to 3 by
predicting held-out sets. Prints how many of the runs have the exact share within their interval,
and how far the estimates are off.

    benches/emergence_sampling.py [GLITCH] [--model builtin:dense] [--sets 1024] [--passages 8]
"""

import argparse
import json
import subprocess


def run(glitch, model, passages, *more):
    command = [glitch, "emergence", "--model", model, "--of", "heads", "--limit", "12",
               "--sets-of", "12", "--passages", str(passages), "--json", *more]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("glitch", nargs="?", default="target/release/glitch")
    parser.add_argument("--model", default="builtin:dense")
    parser.add_argument("--sets", type=int, default=1024)
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()

    exact = run(args.glitch, args.model, args.passages, "--sets", "4096")
    assert exact["exact"] and exact["sets_run"] == 4096
    spectra = {(s["function"], s["scale"]): [o["value"] for o in s["orders"]]
               for s in exact["spectra"]}
    seeds = [run(args.glitch, args.model, args.passages, "--sets", str(args.sets), "--seed", str(n))
             for n in range(1, args.seeds + 1)]
    for function, scale in [(f, s) for f in ("model", "surrogate") for s in ("loss", "logit")]:
        for order in (1, 2, 3):
            true = sum(spectra[function, scale][:order])
            within, values = 0, []
            for found in seeds:
                # The spectrum is over all subsets, so the dead ones count here too.
                rows = found["with_dead"] or found["shares"]
                row = next(r for r in rows if (r["function"], r["scale"]) == (function, scale))
                estimate = row["orders"][order - 1]
                low, high = estimate["interval"]
                values.append(estimate["value"])
                within += low <= true <= high
            mean = sum(values) / len(values)
            print(f"{function:<10} {scale:<6} order {order}: exact {100 * true:6.2f}%, "
                  f"drawn {100 * mean:6.2f}% on average ({100 * min(values):.2f} to "
                  f"{100 * max(values):.2f}), within its interval in {within} of {len(seeds)}")


if __name__ == "__main__":
    main()
