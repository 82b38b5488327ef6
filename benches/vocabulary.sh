#!/usr/bin/env bash
# Times echo tests of SmolLM2's tokens: tokens tested per second by hf_echo.py (a sample) and by
# `glitch sweep vocabulary` (all of them, and the indicator). Each has its own prompt of examples,
# whose length is printed. PEERS, MODELS: see common.sh. SAMPLE [256]: tokens of the peer. LIMIT:
# test fewer tokens (glitch then tests as many controls besides, which its rate does not count).
. "$(dirname "$0")/common.sh"
need_glitch; need_peers hf_echo.py
peer() { "$PYTHON" "$PEERS/hf_echo.py" "$MODEL" "${SAMPLE:-256}"; }
ours() {
  rm -f "$scratch/rows.jsonl"
  "$GLITCH" sweep vocabulary --model "$MODEL" ${LIMIT:+--limit "$LIMIT"} \
    --out "$scratch/rows.jsonl" --json
}
turns
echo "echo tests"
table tested_per_s more
"$PYTHON" - "$scratch/peer.jsonl" "$scratch/ours.jsonl" <<'PY'
import json, sys
for name, path in zip(["peer", "glitch"], sys.argv[1:]):
    r = [json.loads(l) for l in open(path) if l.startswith("{")][-1]
    print(f"{name}: {r['tokens_tested']} tokens, prompt of {r['prompt_length']} ids, "
          f"{r['seconds']:.1f} s")
    if "verdicts" in r:
        print(f"  {r['verdicts']}; the same thresholds flag {r['controls_flagged']} of "
              f"{r['controls']} controls")
PY
