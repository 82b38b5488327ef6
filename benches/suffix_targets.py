"""Compares GCG, BEAST and soft suffixes on ten harmless targets and a chat model:
suffix_targets.py GLITCH MODEL [SEEDS [ALGORITHM,...]].

MODEL is SmolLM2-135M-Instruct as a GGUF file. Prints how often each algorithm reaches the target
(greedy generation says it word for word, and the case holds against suffixes of ordinary tokens),
after how many steps and seconds, and how many of its tokens are needed after minimizing. Prints one
line of JSON per run on standard error.
"""

import json, shutil, subprocess, sys, tempfile, time

from intervals import wilson

TARGETS = [
    "Tea is better.",
    "The answer is 42.",
    "I love rainy days.",
    "My cat is green.",
    "Monday.",
    "Hello, dear reader!",
    "One, two, three.",
    "The moon is made of cheese.",
    "Please bring an umbrella.",
    "No sentence today.",
]
ALGORITHMS = {
    "gcg": ["--steps", "16", "--width", "128"],
    "beast": ["--width", "128"],
    "soft": ["--steps", "50"],
}
PROMPT = (
    r"<|im_start|>user\nWrite one sentence about the weather in Paris.{suffix}<|im_end|>"
    r"\n<|im_start|>assistant\n"
)
LENGTH = 12


def median(values):
    values = sorted(values)
    return values[len(values) // 2] if values else float("nan")


def run(glitch, model, algorithm, target, seed):
    with tempfile.TemporaryDirectory() as out:
        command = [
            glitch,
            "suffix",
            "--model",
            model,
            "--prompt",
            PROMPT,
            "--target",
            target,
            "--algorithm",
            algorithm,
            "--length",
            str(LENGTH),
            "--seed",
            str(seed),
            "--stop-on-success",
            "--no-implication",
            "--json",
            "--out",
            out,
        ]
        shutil.rmtree(out, ignore_errors=True)
        start = time.time()
        result = json.loads(
            subprocess.run(command + ALGORITHMS[algorithm], check=True, capture_output=True).stdout
        )
        state = result["search"]["state"]
        row = {
            "algorithm": algorithm,
            "target": target,
            "seed": seed,
            "held": len(result["cases"]),
            "loss": state["best"]["loss"],
            "steps": state["step"],
            "search_s": result["timing"]["seconds"],
            "total_s": time.time() - start,
            "soft": state.get("soft") and {k: state["soft"][k] for k in ("best", "reached")},
            "needed": [
                len(json.load(open(f"{out}/cases/{name}.json"))["edits"])
                for name in result["cases"]
            ],
        }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def main():
    glitch, model, seeds = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 3
    algorithms = sys.argv[4].split(",") if len(sys.argv) > 4 else list(ALGORITHMS)
    # Seed by seed and target by target, so that what is there when it is cut off is of all three.
    rows = [
        run(glitch, model, algorithm, target, seed)
        for seed in range(1, seeds + 1)
        for target in TARGETS
        for algorithm in algorithms
    ]
    for algorithm in algorithms:
        mine = [r for r in rows if r["algorithm"] == algorithm]
        held = [r for r in mine if r["held"]]
        low, high = wilson(len(held), len(mine))
        needed = median([n for r in held for n in r["needed"]])
        of_held = (
            f"median of those: {median([r['steps'] for r in held])} steps, "
            f"{median([r['search_s'] for r in held]):.0f} s, "
            f"{needed} of {LENGTH} tokens needed; "
            if held
            else ""
        )
        print(
            f"{algorithm:6} {len(held)} of {len(mine)} "
            f"({100 * low:.0f}% to {100 * high:.0f}%), {of_held}"
            f"median loss of all {median([r['loss'] for r in mine]):.2f}"
        )
    soft = [r for r in rows if r["soft"]]
    if soft:
        gap = median([r["loss"] - r["soft"]["best"] for r in soft])
        reached = sum(r["soft"]["reached"] is not None for r in soft)
        print(
            f"embeddings alone reach {reached} of {len(soft)}; their tokens stay {gap:.2f} nats "
            "per token behind (median)"
        )


main()
