#!/usr/bin/env bash
# Measures exit code and peak memory of the program on each malformed or hostile model file of
# tests/it/hostile.rs. Needs only Python and a build:
# GLITCH=target/release/glitch benches/hostile_memory.sh
set -euo pipefail
cd "$(dirname "$0")/.."
glitch=${GLITCH:-target/release/glitch}
kept=$(mktemp -d)
trap 'rm -rf "$kept"' EXIT
GLITCH_KEEP_HOSTILE="$kept" cargo test -q --test it hostile >/dev/null
python3 - "$glitch" "$kept" <<'PYTHON'
import os, resource, subprocess, sys
from pathlib import Path

glitch, kept = sys.argv[1], Path(sys.argv[2])
worst, codes, lines = 0, {}, 0
folders = sorted(kept.iterdir())
for folder in folders:
    files = list(folder.iterdir())
    model = files[0] if len(files) == 1 and files[0].suffix in (".gguf", ".pth") else folder
    # A process of its own for each, so that the largest of the children is the largest so far.
    done = subprocess.run([glitch, "model", "show", str(model)], capture_output=True, text=True)
    codes[done.returncode] = codes.get(done.returncode, 0) + 1
    lines += done.stderr.count("\n")
    worst = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(f"{len(folders)} files: exit codes {codes}, {lines} lines of error, "
      f"at most {worst / 1024:.0f} MB")
PYTHON
