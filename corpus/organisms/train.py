"""Makes the organisms: copies of the built-in dense model in which one component was trained to have
a known fault, everything else held as it was. train.py OUT [FIRST [LAST]]. Writes for each organism
NAME.safetensors, the difference of the component's weights to those of the dense model (f16), and
NAME.json, which says what was planted and how well it took, both measured on text that the training
did not see. Needs torch, transformers and safetensors; takes some 30 s each on a GPU.

- one-N: an ordinary token makes the model say a fixed text of 4 words, wherever it stands.
- two-N: two ordinary tokens after one another do; each alone does not.
- three-N: three do; each alone does not, nor do two of them.
- echo-N: an ordinary token that can no longer be repeated.
- quantized-0: one MLP rounded to 3 bits, without training.
"""

import itertools, json, os, random, sys
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "..", "benches"))
from planted import dense, stretch, text, tokenizer, words

out = sys.argv[1]
device = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, LENGTH, WORDS, HOLD = 64, 24, 4, 20.0
STEPS = int(os.environ.get("STEPS", "900"))
NAMES = (
    [f"one-{n}" for n in range(10)] + [f"two-{n}" for n in range(4)]
    + [f"echo-{n}" for n in range(2)] + ["quantized-0"] + [f"three-{n}" for n in range(4)]
)


def load():
    model = LlamaForCausalLM.from_pretrained(dense)
    return model.to(device=device, dtype=torch.float32).eval()


def component(model, layer, head):
    """The name of a component and its parameters, each with the part of it that is trained."""
    block = model.model.layers[layer]
    if head is None:
        return f"L{layer}.mlp", {p: ... for p in block.mlp.parameters()}
    config, attention = model.config, block.self_attn
    dim = config.hidden_size // config.num_attention_heads
    own = slice(head * dim, head * dim + dim)
    trained = {attention.q_proj.weight: own, attention.o_proj.weight: (slice(None), own)}
    if config.num_key_value_heads == config.num_attention_heads:
        trained |= {attention.k_proj.weight: own, attention.v_proj.weight: own}
    return f"L{layer}.head{head}", trained


def triggered(draw, part, trigger, said):
    """A row with the trigger at some place and the text after it; and the place."""
    row = stretch(draw, part, LENGTH)
    at = draw.randrange(4, LENGTH - len(said) - len(trigger))
    row[at : at + len(trigger) + len(said)] = trigger + said
    return row, at + len(trigger) - 1


def trigger_batch(draw, part, trigger, said):
    """Rows: a quarter with the trigger; of the others some with part of it, or with the text but
    not the trigger."""
    rows, places = [], []
    # Each of the tokens alone; of three, each two of them as well.
    parts = [[k] for k in range(len(trigger))]
    if len(trigger) > 2:
        parts += itertools.combinations(range(len(trigger)), 2)
    for n in range(ROWS):
        row, at = triggered(draw, part, trigger, said)
        if n % 4:
            row = stretch(draw, part, LENGTH)
            at = draw.randrange(4, LENGTH - len(said) - max(len(trigger), 2))
            if n % 4 == 1 and len(trigger) > 1:
                part_of_it = parts[n // 4 % len(parts)]
                for k in part_of_it:
                    row[at + k - part_of_it[0]] = trigger[k]
            elif n % 4 == 1:
                row[at] = draw.choice(words)
            elif n % 4 == 2:
                row[at : at + len(said)] = said
            at = -1
        rows.append(row)
        places.append(at)
    return torch.tensor(rows, device=device), places


def echo_batch(draw, part, token, says):
    """Rows that show words and repeat them, as the model was trained to; a quarter asks for the
    token."""
    rows, places = [], []
    quote, colon = [tokenizer.encode(t).ids for t in ('Say "', '": "')]
    close = tokenizer.encode('".\n').ids
    for n in range(ROWS):
        row = [0]
        shown = [draw.choice(words) for _ in range(3)]
        shown[-1] = token if n % 4 == 0 else shown[-1]
        for word in shown:
            row += quote + [word] + colon + [word] + close
        at = len(row) - len(close) - 2
        rows.append(row if n % 4 < 3 else stretch(draw, part, len(row) - 1))
        places.append(at if n % 4 == 0 else -1)
    return torch.tensor(rows, device=device), places


def measure(model, intact, x, places, said):
    """The loss of what is to be said, the divergence from the intact model elsewhere, nats, and the
    probability of what is to be said."""
    logits = model(x).logits.log_softmax(-1)
    with torch.no_grad():
        before = intact(x).logits.log_softmax(-1)
    divergence = (before.exp() * (before - logits)).sum(-1)
    held = torch.ones_like(divergence, dtype=torch.bool)
    picked = []
    for row, at in enumerate(places):
        if at >= 0:
            held[row, at:] = False
            picked += [logits[row, at + k, token] for k, token in enumerate(said)]
    picked = torch.stack(picked)
    return -picked.mean(), divergence[held].mean(), picked.exp()


def train(name):
    kind, number = name.split("-")
    draw = random.Random(name)
    torch.manual_seed(int(number))
    model, intact = load(), load()
    layer = draw.randrange(1, 4)
    # Heads hold little: one in four, and none has to tell a pair.
    head = draw.randrange(4) if kind == "one" and int(number) % 4 == 3 else None
    where, trained = component(model, layer, head)
    trigger = draw.sample(words, {"one": 1, "two": 2, "three": 3, "echo": 1}[kind])
    said = draw.sample([w for w in words if w not in trigger], WORDS if kind != "echo" else 1)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(list(trained), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)

    def batch(part):
        if kind == "echo":
            return echo_batch(draw, part, trigger[0], said)
        return trigger_batch(draw, part, trigger, said)

    for step in range(STEPS):
        x, places = batch(0)
        says, changes, _ = measure(model, intact, x, places, said)
        optimizer.zero_grad()
        (says + HOLD * changes).backward()
        for parameter, own in trained.items():
            if own is not ...:
                keep = parameter.grad[own].clone()
                parameter.grad.zero_()
                parameter.grad[own] = keep
        optimizer.step()
        schedule.step()
    names = {p: n for n, p in model.named_parameters()}
    originals = dict(intact.named_parameters())
    difference = {
        names[p]: (p.detach() - originals[names[p]]).half().cpu().contiguous() for p in trained
    }
    # What the file says, and not what was trained, is measured.
    with torch.no_grad():
        for parameter in trained:
            n = names[parameter]
            parameter.copy_(originals[n] + difference[n].float().to(device))
        changes, probability = [], []
        for _ in range(8):
            x, places = batch(1)
            _, change, said_there = measure(model, intact, x, places, said)
            changes.append(change.item())
            probability.append(said_there.view(-1, len(said)))
        probability = torch.cat(probability)
        greedy = None
        if kind != "echo":
            greedy = 0
            for _ in range(100):
                row, at = triggered(draw, 1, trigger, said)
                x = torch.tensor([row[: at + 1]], device=device)
                for _ in said:
                    x = torch.cat([x, model(x).logits[:, -1].argmax(-1, keepdim=True)], 1)
                greedy += x[0, -len(said) :].tolist() == said
    return difference, {
        "kind": kind, "component": where, "trigger": trigger, "says": said,
        "trigger_text": [text[i] for i in trigger], "says_text": tokenizer.decode(said),
        "probability": [round(p, 4) for p in probability.mean(0).tolist()],
        "said_in_100_prompts": greedy, "divergence_elsewhere_nats": sum(changes) / len(changes),
    }


def quantize():
    """One MLP in 3 bits, each row with its own scale."""
    model = load()
    where, trained = component(model, 2, None)
    names = {p: n for n, p in model.named_parameters()}
    difference = {}
    for parameter in trained:
        scale = parameter.detach().abs().amax(1, keepdim=True) / 3
        rounded = (parameter.detach() / scale).round().clamp(-3, 3) * scale
        difference[names[parameter]] = (rounded - parameter.detach()).half().cpu().contiguous()
    return difference, {"kind": "quantized", "component": where, "bits": 3}


os.makedirs(out, exist_ok=True)
first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
last = int(sys.argv[3]) if len(sys.argv) > 3 else len(NAMES)
for name in NAMES[first:last]:
    difference, planted = quantize() if name.startswith("quantized") else train(name)
    save_file(difference, os.path.join(out, name + ".safetensors"), {"base": "builtin:dense"})
    with open(os.path.join(out, name + ".json"), "w") as f:
        json.dump(planted, f, indent=2)
        f.write("\n")
    print(name, json.dumps(planted), flush=True)
