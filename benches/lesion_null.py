"""How much `glitch sweep` flags where there is nothing to find: lesion_null.py [GLITCH] [SEEDS]
[20]. Sweeps models with random weights, and the built-in models with noise in place of every lesion
(`--null`), each under SEEDS seeds. Needs torch and transformers. Exits with 1 if more than 5% of
the lesions of either are flagged.
"""

import json, os, shutil, subprocess, sys, tempfile
import torch
from transformers import LlamaConfig, LlamaForCausalLM

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
glitch = sys.argv[1] if len(sys.argv) > 1 else os.path.join(root, "target", "release", "glitch")
seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
tokenizer = os.path.join(root, "corpus", "models", "dense", "tokenizer.json")


def sweep(target, model, *options):
    """Flagged lesions, p-values of those that were compared with noise, lesions."""
    out = os.path.join(scratch, "rows.jsonl")
    command = [glitch, "sweep", target, "--model", model, "--out", out, "--force", "--json"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    with open(out) as f:
        rows = [json.loads(line) for line in f]
    flagged = sum(r["q_value"] <= 0.05 for r in rows)
    return flagged, [r["p_value"] for r in rows if "noise_effects" in r], len(rows)


def table(name, sweeps):
    flagged, p, lesions = 0, [], 0
    runs = 0
    for f, compared, n in sweeps:
        flagged, p, lesions, runs = flagged + f, p + compared, lesions + n, runs + (f > 0)
    low = sum(x <= 0.05 for x in p) / max(len(p), 1)
    print(f"{name:<36} {flagged:>4} of {lesions:>6} flagged, in {runs} of {len(sweeps)} sweeps; of "
          f"{len(p)} compared with noise {100 * low:.1f}% have p <= 0.05")
    return flagged / lesions


def random_model(seed, std, tied):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=256, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=tied,
        initializer_range=std, max_position_embeddings=512, bos_token_id=0, eos_token_id=0,
    )
    folder = os.path.join(scratch, f"random-{seed}-{std}-{tied}")
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(tokenizer, folder)
    return folder


worst = 0.0
with tempfile.TemporaryDirectory() as scratch:
    for std in (0.02, 0.1):
        for tied in (True, False):
            models = [random_model(seed, std, tied) for seed in range(seeds)]
            for target in ("heads", "mlps"):
                name = f"random weights, std {std}{', tied' if tied else ''}: {target}"
                worst = max(worst, table(name, [sweep(target, m) for m in models]))
    for model in ("dense", "moe", "mamba", "rwkv"):
        target = "experts" if model == "moe" else "blocks" if model == "mamba" else "heads"
        runs = [sweep(target, f"builtin:{model}", "--null", "--seed", str(s)) for s in range(seeds)]
        worst = max(worst, table(f"noise for lesions, {model}: {target}", runs))
print("wanted: at most 5% flagged:", "met" if worst <= 0.05 else "NOT met")
sys.exit(worst > 0.05)
