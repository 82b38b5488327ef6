#!/usr/bin/env bash
# Zeroes every attention head of SmolLM2 in turn: compares the time of hf_all_lesions.py with that
# of `glitch sweep heads`, and checks that all losses on one text agree within 1e-3. MODELS: see
# common.sh.
. "$(dirname "$0")/common.sh"
need_glitch; need_model; need_python
text=$benches/lesion_text.txt
peer() { "$PYTHON" "$benches/hf_all_lesions.py" "$MODEL" "$text"; }
ours() {
  rm -f "$scratch/rows.jsonl"
  "$GLITCH" sweep heads --model "$MODEL" --text "$text" \
    --out "$scratch/rows.jsonl" --json
}
turns
echo "head lesions"
table seconds less
"$PYTHON" "$benches/same_losses.py" \
  "$scratch/peer.jsonl" "$scratch/rows.jsonl" "$scratch/ours.jsonl" 1e-3
