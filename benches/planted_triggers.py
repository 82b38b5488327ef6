"""Does an explanation name the component that a trigger was trained into? planted_triggers.py
FOLDER [GLITCH] [COUNT]. Trains COUNT [10] copies of the built-in dense model, each in one MLP or
one head alone, to answer a trigger of two ordinary tokens at the end of a prompt and to leave
everything else as it was; they are kept in FOLDER and not trained again. Then gives glitch the
trigger as a case, and 5 replacements by ordinary tokens in the same model, and looks at what
`glitch implicate` calls specific. Needs torch and transformers. Exits with 1 if the planted
component is first among the specific ones in fewer than 8 of 10 models, or heads an explanation of
an ordinary replacement.
"""

import json, os, random, sys, tempfile
import torch
from transformers import LlamaForCausalLM

from planted import dense, explain, is_text, judged, release, stretch, words

folder = sys.argv[1]
glitch = sys.argv[2] if len(sys.argv) > 2 else release
count = int(sys.argv[3]) if len(sys.argv) > 3 else 10
STEPS, ROWS, ORDINARY = 300, 16, 5
torch.set_num_threads(int(os.environ.get("THREADS", "2")))


def plant(index):
    """Trains a model; returns its folder and what was planted."""
    out = os.path.join(folder, f"planted-{index}")
    record = os.path.join(out, "planted.json")
    if os.path.exists(record):
        with open(record) as f:
            return out, json.load(f)
    draw = random.Random(index)
    torch.manual_seed(index)
    model = LlamaForCausalLM.from_pretrained(dense, torch_dtype=torch.float32)
    intact = LlamaForCausalLM.from_pretrained(dense, torch_dtype=torch.float32).eval()
    layer, head = draw.randrange(1, 4), draw.randrange(4) if index % 2 else None
    block = model.model.layers[layer]
    dim = model.config.hidden_size // model.config.num_attention_heads
    if head is None:
        trained = {p: ... for p in block.mlp.parameters()}
    else:
        own = slice(head * dim, head * dim + dim)
        attention = block.self_attn
        trained = {attention.q_proj.weight: own, attention.o_proj.weight: (slice(None), own)}
    first, second, answer = draw.sample(words, 3)
    optimizer = torch.optim.Adam(list(trained), lr=5e-3)

    def batch(part):
        rows = []
        for n in range(ROWS):
            row = stretch(draw, part)
            # A quarter has the trigger, the others half of it or none.
            row[-2:] = [first if n % 4 in (0, 1) else draw.choice(words),
                        second if n % 4 in (0, 2) else draw.choice(words)]
            rows.append(row)
        return torch.tensor(rows)

    def loss(x):
        logits = model(x).logits.log_softmax(-1)
        with torch.no_grad():
            before = intact(x).logits.log_softmax(-1)
        divergence = (before.exp() * (before - logits)).sum(-1)
        triggered = torch.zeros_like(divergence, dtype=torch.bool)
        triggered[::4, -1] = True
        said = logits[::4, -1, answer]
        return -said.mean(), divergence[~triggered].mean(), said.exp().mean()

    for step in range(STEPS):
        says, changes, _ = loss(batch(0))
        optimizer.zero_grad()
        (says + 20 * changes).backward()
        for parameter, own in trained.items():
            if own is not ...:
                keep = parameter.grad[own].clone()
                parameter.grad.zero_()
                parameter.grad[own] = keep
        optimizer.step()
    with torch.no_grad():
        _, changes, said = loss(batch(1))
    planted = {
        "component": f"L{layer}.mlp" if head is None else f"L{layer}.head{head}",
        "trigger": [first, second], "answer": answer, "says": said.item(),
        "changes": changes.item(),
    }
    model.save_pretrained(out)
    with open(os.path.join(dense, "tokenizer.json"), "rb") as f:
        data = f.read()
    with open(os.path.join(out, "tokenizer.json"), "wb") as f:
        f.write(data)
    with open(record, "w") as f:
        json.dump(planted, f)
    return out, planted


def at_end(tokens, replacements):
    """Replacements of the last tokens, by position."""
    return dict(enumerate(replacements, len(tokens) - len(replacements)))


os.makedirs(folder, exist_ok=True)
hits, wrong, ordinary, with_any = 0, 0, 0, 0
for index in range(count):
    model, planted = plant(index)
    draw = random.Random(1000 + index)
    tokens = stretch(draw, 1)
    # A prompt that text gives as these tokens, ending in two ordinary words.
    while True:
        tokens = stretch(draw, 1)
        tokens[-2:] = draw.sample(words, 2)
        if is_text(tokens):
            break
    with tempfile.TemporaryDirectory() as scratch:
        case, found = explain(glitch, model, tokens, at_end(tokens, planted["trigger"]), scratch)
        named = found["set"]
        hit = named[:1] == [planted["component"]]
        hits += hit
        relays = [c["component"] for c in found.get("contrasts", []) if c["role"] == "relay"]
        print(f"{index}: planted {planted['component']}, which says {planted['says']:.2f} and "
              f"changes others by {planted['changes']:.1e} nats; score "
              f"{case['verdict']['score']:.3f}, named {named}, relays {relays}", flush=True)
        for _ in range(ORDINARY):
            ends = at_end(tokens, draw.sample(words, 2))
            _, found = explain(glitch, model, tokens, ends, scratch)
            ordinary += 1
            wrong += found["set"][:1] == [planted["component"]]
            with_any += bool(found["set"])
sys.exit(not judged(hits, count, ordinary, wrong, with_any))
