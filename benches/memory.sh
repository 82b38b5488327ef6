#!/usr/bin/env bash
# Measures the peak resident memory of glitch on SmolLM2, one command after the other. MODELS (only
# smollm2-hf/): see common.sh. LIMIT: tokens tested in the sweep of the vocabulary.
. "$(dirname "$0")/common.sh"
need_glitch; need_model
peak() { echo "$*" >&2; python3 "$benches/peak.py" "$GLITCH" "$@"; }
peak model bench --model "$MODEL" --json
peak sweep vocabulary --model "$MODEL" ${LIMIT:+--limit "$LIMIT"} --json
peak sweep heads --model "$MODEL" --text "$benches/lesion_text.txt" --json
peak sweep weights --model "$MODEL" --text "$benches/lesion_text.txt" --json
peak fuzz --model "$MODEL" --max-evals "${EVALS:-256}" --out "$scratch/campaign" --json
