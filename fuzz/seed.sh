#!/usr/bin/env sh
# Seeds the corpus of every fuzz target from the repository's fixtures; small files only, since
# libFuzzer mutates small inputs best.
set -eu
cd "$(dirname "$0")"
add() { # TARGET FILE NAME
    mkdir -p "corpus/$1"
    cp "$2" "corpus/$1/$3"
}
for file in ../corpus/regressions/*.json; do add case "$file" "$(basename "$file")"; done
for file in *.toml; do [ "$file" = Cargo.toml ] || add campaign "$file" "$file"; done
for folder in ../tests/fixtures/*/; do
    name=$(basename "$folder")
    [ ! -f "$folder/config.json" ] || add config "$folder/config.json" "$name.json"
done
find ../tests/fixtures -name '*.gguf' -size -200k | while read -r file; do
    add gguf "$file" "$(basename "$file")"
done
find ../tests/fixtures -name '*.pth' -size -200k | while read -r file; do
    add pth "$file" "$(basename "$file")"
done
add safetensors ../tests/fixtures/llama/model.safetensors llama
