# Sourced by the scripts beside this one: what they need, and how a peer and glitch take turns.
#
#   PEERS=DIR    the peers' scripts (hf_forward.py, hf_echo.py, nanogcg_step.py)
#   MODELS=DIR   smollm2-hf/ (SmolLM2 as a Hugging Face folder) and venv/ (the peers' Python)
#   GLITCH=FILE  the program that is measured [target/release/glitch]
#   ROUNDS=N     how many turns each gets [3]
#   THREADS=N    threads of glitch; the peers' scripts fix theirs at 2 [2]
set -euo pipefail
benches=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
GLITCH=${GLITCH:-$benches/../target/release/glitch}
ROUNDS=${ROUNDS:-3}
export RAYON_NUM_THREADS=${THREADS:-2}
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1

die() { echo "$(basename "$0"): $1" >&2; exit 2; }
need_glitch() {
  [ -x "$GLITCH" ] || die "no program at $GLITCH: run 'cargo build --release', or set GLITCH=FILE"
}
need_model() {
  [ -n "${MODELS:-}" ] || die "set MODELS to the folder that holds smollm2-hf/ and venv/"
  MODEL=$MODELS/smollm2-hf
  [ -s "$MODEL/config.json" ] || die "no model in $MODEL"
}
need_python() { PYTHON=$MODELS/venv/bin/python; [ -x "$PYTHON" ] || die "no Python at $PYTHON"; }
need_peers() {
  need_model; need_python
  [ -n "${PEERS:-}" ] || die "set PEERS to the folder of the peers' scripts"
  [ -s "$PEERS/$1" ] || die "no $1 in $PEERS"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# turns: runs the functions `peer` and `ours` in turn, ROUNDS times; each prints one JSON line.
turns() {
  for round in $(seq "$ROUNDS"); do
    echo "round $round of $ROUNDS: peer" >&2; peer >>"$scratch/peer.jsonl"
    echo "round $round of $ROUNDS: glitch" >&2; ours >>"$scratch/ours.jsonl"
  done
}

# table KEY [more|less]: medians of KEY, and their ratio (more: larger is better).
table() { "$PYTHON" "$benches/ratio.py" "$scratch/peer.jsonl" "$scratch/ours.jsonl" "$@"; }
