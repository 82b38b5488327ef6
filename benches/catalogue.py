"""Are the kinds of a campaign real? catalogue.py FOLDER MODEL [GLITCH]. FOLDER holds the cases of
campaigns, MODEL is the Hugging Face folder that they were made on (a Llama without biases, such as
SmolLM2). The case that shows each kind is run again with PyTorch and transformers: tokens edited,
outputs of attention, MLPs, heads, neurons and single weights changed by hooks of its own, scores
computed from its own logits. Nothing of glitch is used but what the case says was done. Prints the
catalogue as Markdown, with both scores. Exits with 1 if a score differs by more than 2%, or if
transformers' does not exceed the case's threshold. Needs torch and transformers.
"""

import json, os, re, subprocess, sys
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

folder, path = sys.argv[1:3]
root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
glitch = sys.argv[3] if len(sys.argv) > 3 else os.path.join(root, "target", "release", "glitch")
torch.set_num_threads(2)
model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32).eval()
layers, head_dim = model.model.layers, model.config.head_dim
ends = model.config.eos_token_id
ends = set(ends if isinstance(ends, list) else [ends])
GENERATED = 24  # tokens that the oracle collapse reads


def laid_out(case, edited):
    """Prompt and continuation as ids; positions of edits count the unedited tokens."""
    base, rest = case["base"], case["continuation"]
    cells = [[id] for id in base + rest] + [[]]
    before = [[] for _ in cells]
    for edit in case["edits"] if edited else []:
        at = edit.get("position")
        if edit["edit"] == "replace":
            cells[at] = [edit["id"]]
        elif edit["edit"] == "delete":
            cells[at] = []
        elif edit["edit"] == "insert":
            before[at].append(edit["id"])
    prompt = [id for at in range(len(base)) for id in before[at] + cells[at]] + before[len(base)]
    after = cells[len(base)] + [
        id for at in range(len(base) + 1, len(cells)) for id in before[at] + cells[at]
    ]
    return prompt, after


def reference_means():
    """Mean inputs of down_proj and o_proj, and mean outputs of both blocks, on the reference text."""
    text = open(os.path.join(root, "corpus", "seeds", "reference.txt"), encoding="utf-8").read()
    tokenizer = Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
    ids = [model.config.bos_token_id] + tokenizer.encode(text, add_special_tokens=False).ids
    seen, hooks = {}, []
    for at, layer in enumerate(layers):
        for name, module in [("attn", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj)]:
            def keep(_, inputs, output, key=(at, name)):
                seen[key] = (inputs[0][0, 1:].mean(0), output[0, 1:].mean(0))
            hooks.append(module.register_forward_hook(keep))
    with torch.inference_mode():
        model(torch.tensor([ids[: model.config.max_position_embeddings]]))
    for hook in hooks:
        hook.remove()
    return seen


means = None


def lesion(edit):
    """Installs the lesion of one edit and returns how to take it out."""
    global means
    component, action, at = edit["component"], edit["action"], edit.get("position")

    def there(changed, intact):
        """What is changed at the lesion's position alone, if it has one."""
        if at is None:
            return changed
        kept = intact.clone()
        kept[:, at] = changed[:, at]
        return kept

    kind = action["kind"]
    if kind == "mean" and means is None:
        means = reference_means()
    if kind not in ("zero", "scale", "mean"):
        raise NotImplementedError(kind)
    factor = {"zero": 0.0, "mean": 0.0}.get(kind, action.get("factor"))
    weight = re.fullmatch(r"L(\d+)\.(\w+)\.(\w+)\[(\d+),(\d+)\]", component)
    if weight and at is not None:
        raise NotImplementedError("a weight at one position")
    if weight:
        layer, block, matrix = int(weight[1]), weight[2], weight[3]
        out, input = int(weight[4]), int(weight[5])
        module = {"attn": layers[layer].self_attn, "mlp": layers[layer].mlp}[block]
        row = getattr(module, f"{matrix}_proj").weight.data[out]
        old = row[input].item()
        row[input] = row.mean() if kind == "mean" else factor * old

        def restore():
            row[input] = old

        return restore
    layer, part = re.fullmatch(r"L(\d+)\.(\w+)", component).groups()
    layer, number = int(layer), re.sub(r"\D", "", part)
    block = "mlp" if part.startswith(("mlp", "neuron")) else "attn"
    module = {"attn": layers[layer].self_attn.o_proj, "mlp": layers[layer].mlp.down_proj}[block]
    if part in ("attn", "mlp"):
        add = means[layer, block][1] if kind == "mean" else 0.0
        return module.register_forward_hook(lambda m, i, o: there(factor * o + add, o)).remove
    columns = {
        "head": slice(int(number) * head_dim, (int(number) + 1) * head_dim),
        "neuron": slice(int(number), int(number) + 1),
    }[part.rstrip("0123456789")]

    def change(_, inputs):
        x = inputs[0].clone()
        add = means[layer, block][0][columns] if kind == "mean" else 0.0
        x[..., columns] = factor * x[..., columns] + add
        return (there(x, inputs[0]),)

    return module.register_forward_pre_hook(change).remove


def run(case, edited):
    """Log-probabilities at the positions that predict the continuation, and that continuation."""
    prompt, after = laid_out(case, edited)
    lesions = [edit for edit in case["edits"] if edited and edit["edit"] == "lesion"]
    placed = any(edit.get("position") is not None for edit in lesions)
    if placed and len(lesions) < len(case["edits"]):
        raise NotImplementedError("a lesion at one position beside edits of tokens")
    undo = [lesion(edit) for edit in lesions]
    try:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + after])).logits[0]
            text = []
            generates = case["verdict"]["oracle"] == "collapse"
            while generates and len(text) < GENERATED and not set(text[-1:]) & ends:
                text.append(model(torch.tensor([prompt + text])).logits[0, -1].argmax().item())
    finally:
        for take_out in undo:
            take_out()
    read = logits[len(prompt) - 1 : len(prompt) - 1 + max(len(after), 1)].double()
    return read.log_softmax(-1), after, text


def degeneracy(text):
    """The oracle collapse: 0 varied to 1 one token over and over."""
    longest = 0
    for period in range(1, min(8, len(text) // 3) + 1):
        repeats = 0
        while repeats < len(text) - period and text[-1 - repeats] == text[-1 - repeats - period]:
            repeats += 1
        if repeats >= 2 * period:
            longest = max(longest, repeats + period)
    repeated = 0 if len(text) < 8 else 1 - 2 * len(set(text)) / len(text)
    return max(1 - len(text) / GENERATED, longest / len(text), repeated)


def score(case):
    """The case's score, as its oracle defines it, from transformers' logits."""
    (clean, expected, before), (edited, said, after) = run(case, False), run(case, True)
    loss = lambda read, ids: -sum(read[at, id].item() for at, id in enumerate(ids)) / len(ids)
    oracle = case["verdict"]["oracle"]
    if oracle == "divergence":
        p, q = clean.exp(), edited.exp()
        middle = ((p + q) / 2).log()
        bits = ((p * (clean - middle)).sum(-1) + (q * (edited - middle)).sum(-1)) / 2
        return bits.mean().item() / torch.tensor(2.0).log().item()
    if oracle in ("loss_blowup", "echo"):
        nats = loss(edited, said) - loss(clean, expected)
        return nats if oracle == "loss_blowup" else nats / torch.tensor(2.0).log().item()
    if oracle == "collapse":
        return degeneracy(after) - degeneracy(before)
    raise NotImplementedError(oracle)


triaged = subprocess.run(
    [glitch, "triage", folder, "--json"], check=True, stdout=subprocess.PIPE, text=True
)
right, wrong, unchecked = 0, 0, 0
print("| | kind | cases | consistent | the case that shows it | glitch | transformers |")
print("| ---: | --- | ---: | ---: | --- | ---: | ---: |")
for number, kind in enumerate(json.loads(triaged.stdout)["kinds"], 1):
    with open(kind["face"]["path"]) as f:
        case = json.load(f)
    verdict = case["verdict"]
    try:
        again = score(case)
        same = abs(again - verdict["score"]) <= 0.02 * abs(verdict["score"])
        holds = same and again > verdict["threshold"]
        right, wrong, shown = right + holds, wrong + (not holds), f"{again:.3f}"
        shown += "" if holds else " **differs**"
    except NotImplementedError as what:
        unchecked, shown = unchecked + 1, f"not checked: {what}"
    title = kind["face"]["title"].replace("|", "\\|").replace("\n", "\\n")
    print(
        f"| {number} | {kind['title']} | {len(kind['members'])} | {kind['consistent']} | {title} "
        f"(`{kind['face']['id']}`) | {verdict['score']:.3f} | {shown} |"
    )
print(f"\n{right} kinds checked, {wrong} wrong, {unchecked} not checked", file=sys.stderr)
sys.exit(1 if wrong or not right else 0)
