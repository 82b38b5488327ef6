#!/usr/bin/env bash
# Times plain batched forwards of SmolLM2 with logits at the last position, on the same ids: tokens
# per second of hf_forward.py and of `glitch model bench`. PEERS, MODELS: see common.sh. BATCH [16],
# LENGTH [64].
. "$(dirname "$0")/common.sh"
need_glitch; need_peers hf_forward.py
batch=${BATCH:-16} length=${LENGTH:-64}
peer() { "$PYTHON" "$PEERS/hf_forward.py" "$MODEL" "$batch" "$length"; }
ours() { "$GLITCH" model bench --model "$MODEL" --batch "$batch" --length "$length" --json; }
turns
echo "plain forward, $batch x $length tokens"
table tokens_per_s more
