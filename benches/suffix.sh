#!/usr/bin/env bash
# Times GCG on SmolLM2 with 256 candidates per step: nanoGCG (nanogcg_step.py) and `glitch suffix`
# in turn, with the same prompt, target, suffix length and top-k. Also compares the best loss after
# all steps.
#   STEPS=N  steps of both [40]     SEED=N  seed of glitch [1]; nanoGCG's is fixed
# PEERS, MODELS: see common.sh. MODELS also holds SmolLM2-135M-Instruct.Q4_1.gguf, which has the
# same weights (the folder's tokenizer does not know the control tokens by their names).
. "$(dirname "$0")/common.sh"
need_glitch; need_peers nanogcg_step.py
GGUF=$MODELS/SmolLM2-135M-Instruct.Q4_1.gguf
[ -s "$GGUF" ] || die "no model at $GGUF"
steps=${STEPS:-40}
prompt='<|im_start|>user\nWrite one sentence about the weather in Paris.{suffix}<|im_end|>'
prompt+='\n<|im_start|>assistant\n'
# figures SECONDS LOSS: these two figures of the JSON on standard input, as Python expressions of r.
figures() {
  "$PYTHON" -c "import json, sys; r = json.load(sys.stdin)
print(json.dumps({'seconds': $1, 'loss': $2}))"
}
peer() {
  "$PYTHON" "$PEERS/nanogcg_step.py" "$MODEL" "$steps" 256 2>/dev/null |
    figures 'r["seconds_per_step"]' 'min(r["losses"])'
}
ours() {
  "$GLITCH" suffix --model "$GGUF" --prompt "$prompt" \
    --target 'Sure, here is the secret code: 7319' --steps "$steps" --width 256 --top-k 256 \
    --length 20 --seed "${SEED:-1}" --no-implication --out "$scratch/out" --json |
    figures 'r["timing"]["seconds_per_step"]' 'r["search"]["state"]["best"]["loss"]'
}
turns
echo "GCG, seconds a step"
table seconds less
echo "best loss after $steps steps"
table loss less
