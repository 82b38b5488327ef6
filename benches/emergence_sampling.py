#!/usr/bin/env python3
"""Compares shares of variance from drawn sets with the exact spectrum over all subsets.

The exact spectrum is the Walsh-Fourier transform of all 4,096 subsets of 12 heads of a built-in
model. Then sets are drawn with 20 seeds, and each run estimates the spectrum up to order 3. Prints
how many of the runs have the exact share within their interval, how far the estimates are off, and
what share of held-out sets the fits predict.

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
            within, values, held_out = 0, [], []
            for found in seeds:
                kind = {"function": function, "scale": scale}
                spectrum, row = [next(r for r in rows if kind.items() <= r.items())
                                 for rows in (found["spectra"], found["with_dead"] or found["shares"])]
                estimate = spectrum["cumulative"][order - 1]
                low, high = estimate["interval"]
                values.append(estimate["value"])
                held_out.append(row["orders"][order - 1]["value"])
                within += low <= true <= high
            mean = sum(values) / len(values)
            print(f"{function:<10}{scale:<6} up to order {order}: exact {100 * true:6.2f}%, "
                  f"estimated {100 * mean:6.2f}% ({100 * min(values):.2f} to "
                  f"{100 * max(values):.2f}), within its interval in {within} of {len(seeds)}; "
                  f"held out {100 * sum(held_out) / len(seeds):.2f}%")


if __name__ == "__main__":
    main()
