#!/usr/bin/env bash
# Every attention head of SmolLM2 zeroed in turn, loss on one text: the time of hf_all_lesions.py (the
# same work as hf_lesions.py, but it prints every loss) and of `glitch sweep heads`, and whether all
# losses agree within 1e-3. MODELS: see common.sh.
. "$(dirname "$0")/common.sh"
need_glitch; need_model; need_python
text=$benches/lesion_text.txt
peer() { "$PYTHON" "$benches/hf_all_lesions.py" "$MODEL" "$text"; }
ours() { "$GLITCH" sweep heads --model "$MODEL" --text "$text" --controls 0 --out "$scratch/rows.jsonl" --json; }
turns
echo "head lesions"
table seconds less
"$PYTHON" "$benches/same_losses.py" "$scratch/peer.jsonl" "$scratch/rows.jsonl" "$scratch/ours.jsonl" 1e-3
