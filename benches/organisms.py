"""Does an explanation name the component that an organism's trigger was trained into? organisms.py
[GLITCH]. Gives glitch the trigger of each organism of corpus/organisms that has one as a case, and
3 replacements by ordinary tokens in the same model, and looks at what `glitch implicate` calls
specific. Needs the Python package tokenizers, and a minute. Exits with 1 if the planted component
is first among the specific ones in fewer than 8 of 10 organisms, or heads an explanation of an
ordinary replacement.
"""

import glob, json, os, random, sys, tempfile

from planted import explain, is_text, judged, release, root, stretch, words

glitch = sys.argv[1] if len(sys.argv) > 1 else release
ORDINARY = 3
hits = count = ordinary = wrong = with_any = 0
for path in sorted(glob.glob(os.path.join(root, "corpus", "organisms", "*.json"))):
    with open(path) as f:
        planted = json.load(f)
    if planted["kind"] not in ("one", "two"):
        continue
    name, model = os.path.basename(path)[:-5], path[:-5] + ".safetensors"
    model = "builtin:dense+" + os.path.abspath(model)
    draw = random.Random(1000 + count)
    length = len(planted["trigger"])
    # A prompt that text gives as these tokens, ending in ordinary words.
    while True:
        tokens = stretch(draw, 1)
        tokens[-length:] = draw.sample(words, length)
        if is_text(tokens):
            break

    def found(last, scratch):
        edits = dict(enumerate(last, len(tokens) - length))
        return explain(glitch, model, tokens, edits, scratch)[1]

    with tempfile.TemporaryDirectory() as scratch:
        explained = found(planted["trigger"], scratch)
        named, tried = explained["set"], explained.get("generalization") or {}
        count += 1
        hits += named[:1] == [planted["component"]]
        print(f"{name}: planted {planted['component']}, named {named}, which holds in "
              f"{tried.get('set')} of {tried.get('with_effect')} new prompts", flush=True)
        for _ in range(ORDINARY):
            named = found(draw.sample(words, length), scratch)["set"]
            ordinary += 1
            wrong += named[:1] == [planted["component"]]
            with_any += bool(named)
sys.exit(not judged(hits, count, ordinary, wrong, with_any))
