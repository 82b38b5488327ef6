"""Searches for suffixes that work on several prompts, and tries them on other models:
suffix_transfer.py GLITCH MODEL.

MODEL is SmolLM2-135M-Instruct as a GGUF file. On it and on each built-in model, one suffix is
searched for four prompts together, for each of six short targets, and tried on four prompts
that the search never saw. What reaches its target is minimized, and every case is tried on all
five models. Prints how many prompts are reached, of those searched and of those held out, and
the matrix of `glitch transfer`, with 95% intervals (Wilson).
"""

import json, os, subprocess, sys, tempfile

from intervals import wilson

PROMPTS = [
    "It was a fine day in the garden{suffix} and",
    "The people of the town came down{suffix} and",
    "She was very glad to see her sister{suffix} and",
    "The old captain looked out over the sea{suffix} and",
    "There was a man in the land{suffix} and",
    "The report of the year was long{suffix} and",
    "They walked together until it was dark{suffix} and",
    "All that night they sat by the fire{suffix} and",
]
HELD_OUT = 4
TARGETS = [
    " the king of England",
    " went to sea",
    " nothing more was said",
    " the people were free",
    " God saw it",
    " he ate a whale",
]
BUILT_IN = ["builtin:dense", "builtin:moe", "builtin:mamba", "builtin:rwkv"]


def interval(k, n):
    low, high = wilson(k, n)
    return f"{k} of {n} ({100 * low:.0f}% to {100 * high:.0f}%)"


def search(glitch, model, target, prompts, out):
    command = [
        glitch,
        "suffix",
        "--model",
        model,
        "--prompt",
        prompts,
        "--target",
        target,
        "--length",
        "12",
        "--steps",
        "40",
        "--width",
        "64",
        "--held-out",
        str(HELD_OUT),
        "--stop-on-success",
        "--no-implication",
        "--json",
        "--out",
        out,
    ]
    result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    reached = max([r["prompts"] for r in result["search"]["state"]["reached"]], default=0)
    print(
        json.dumps(
            {
                "model": model,
                "target": target,
                "reached": reached,
                "held_out": result["search"]["held_out"],
                "steps": result["search"]["state"]["step"],
                "cases": len(result["cases"]),
            }
        ),
        file=sys.stderr,
        flush=True,
    )
    return reached, result["search"]["held_out"]["reached"], len(result["cases"])


def main():
    glitch, model = sys.argv[1], sys.argv[2]
    models, folders = BUILT_IN + [model], []
    with tempfile.TemporaryDirectory() as scratch:
        prompts = os.path.join(scratch, "prompts.txt")
        with open(prompts, "w") as file:
            file.write("\n".join(PROMPTS) + "\n")
        for name in models:
            reached, held, cases = 0, 0, 0
            for i, target in enumerate(TARGETS):
                out = os.path.join(scratch, f"{models.index(name)}-{i}")
                k, h, c = search(glitch, name, target, prompts, out)
                reached, held, cases = reached + k, held + h, cases + c
                if c:
                    folders.append(os.path.join(out, "cases"))
            searched = len(TARGETS) * (len(PROMPTS) - HELD_OUT)
            of_held_out = interval(held, len(TARGETS) * HELD_OUT)
            print(
                f"{name}: prompts reached {interval(reached, searched)}, held out {of_held_out}, "
                f"{cases} cases",
                flush=True,
            )
        print(
            subprocess.run(
                [glitch, "transfer", *folders, "--models", ",".join(models)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )


main()
