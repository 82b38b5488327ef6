#!/usr/bin/env bash
# Steps of GCG on SmolLM2 at width 256: nanoGCG (nanogcg_step.py) and `glitch suffix` in turn, with the same prompt,
# target, suffix length and top-k. The loss that is compared is the best after all steps.
#   STEPS=N  steps of both [40]     SEED=N  of glitch [1]; nanoGCG's is fixed
# PEERS, MODELS: see common.sh; MODELS also holds SmolLM2-135M-Instruct.Q4_1.gguf, the same weights (the folder's
# tokenizer does not know the control tokens by their names).
. "$(dirname "$0")/common.sh"
need_glitch; need_peers nanogcg_step.py
GGUF=$MODELS/SmolLM2-135M-Instruct.Q4_1.gguf
[ -s "$GGUF" ] || die "no model at $GGUF"
steps=${STEPS:-40}
prompt='<|im_start|>user\nWrite one sentence about the weather in Paris.{suffix}<|im_end|>\n<|im_start|>assistant\n'
peer() {
  "$PYTHON" "$PEERS/nanogcg_step.py" "$MODEL" "$steps" 256 2>/dev/null |
    "$PYTHON" -c 'import json,sys; r=json.load(sys.stdin); print(json.dumps({"seconds": r["seconds_per_step"], "loss": min(r["losses"])}))'
}
ours() {
  "$GLITCH" suffix --model "$GGUF" --prompt "$prompt" --target 'Sure, here is the secret code: 7319' --steps "$steps" \
    --width 256 --top-k 256 --length 20 --seed "${SEED:-1}" --no-implication --out "$scratch/out" --json |
    "$PYTHON" -c 'import json,sys; r=json.load(sys.stdin); print(json.dumps({"seconds": r["timing"]["seconds_per_step"], "loss": r["search"]["state"]["best"]["loss"]}))'
}
turns
echo "GCG, seconds a step"
table seconds less
echo "best loss after $steps steps"
table loss less
