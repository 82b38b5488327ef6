"""Are the explanations of cases true of the model, as transformers runs it? explanations.py
HF_FOLDER GLITCH CASE... [MODEL]. HF_FOLDER has the weights for transformers (of the Llama family)
of the model that the cases are of; "-" leaves out all that needs them. GLITCH is the binary. CASE
is a case file or a folder of them. MODEL, the only argument after these that is neither a file
ending in .json nor a folder with such files in it, is what `glitch implicate --model` gets.

Explains each case with `glitch implicate` and compares it with transformers, where all edits of the
case are replacements:

- The symptom's log-probability with the edits and without them.
- If the case is an echo: whether the graph holds heads that attend, from where the symptom is
  predicted, to the token that the edits show before it. Counted are heads there that get an edge
  from a node at that token or from the edits; one of them must have more than 0.5 of its attention
  on that token, or be among the 3 heads of the model that have most. A mixer stands for its heads.
  "chance" is how often as many random ones of the model, or of the same layers, would do.
- "removed": the share of the symptom's effect that goes when all nodes of the graph have the
  outputs that they have without the edits, and the median of 20 draws of as many random places of
  the same kinds; "made": the share that comes when they have the outputs with the edits in the
  run without them.
- "alone": the share of the effect that is left when every head and MLP off the graph has the output
  that it has with an ordinary token in the place of each one that the edits put there, median over
  20 of these. glitch's faithfulness is of its own controls.

Prints also the role of the first MLP among the contrasts. Needs torch and transformers, unless
HF_FOLDER is "-". Exits with 1 if a symptom differs by 1e-3 nats or more, if fewer than 8 of 10
graphs have a faithfulness of 0.8 or more with at most 12 nodes, or if fewer than 8 of 10 echoes
have such heads.
"""

import glob, json, math, os, random, statistics, subprocess, sys

if len(sys.argv) < 4:
    sys.exit(__doc__)
folder, glitch, *given = sys.argv[1:]
NATS, GOAL, MOST_NODES, DRAWS, ATTENTION, TOP = 1e-3, 0.8, 12, 20, 0.5, 3
CHANCES = 2000
paths, model_argument = [], []
for path in given:
    inside = sorted(glob.glob(os.path.join(glob.escape(path), "*.json")))
    if path.endswith(".json") and not os.path.isdir(path):
        paths.append(path)
    elif inside and not os.path.exists(os.path.join(path, "config.json")):
        paths += inside
    elif model_argument:
        sys.exit(f"{path} is neither a case nor a folder of cases")
    else:
        model_argument = ["--model", path]
if not paths:
    sys.exit("no cases")


class Weights:
    """The model in transformers. A component is a pair of its layer and a head's number, "attn" or
    "mlp"."""

    def __init__(self):
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModelForCausalLM

        self.torch = torch
        torch.set_num_threads(int(os.environ.get("THREADS", "2")))
        torch.set_grad_enabled(False)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=torch.float32, attn_implementation="eager"
        ).eval()
        config = self.model.config
        self.heads = config.num_attention_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.layers = self.model.model.layers
        vocabulary = Tokenizer.from_file(os.path.join(folder, "tokenizer.json")).get_vocab()
        # Words of plain letters, as single tokens.
        self.ordinary = sorted(
            i for t, i in vocabulary.items() if t.startswith("\u0120") and t[1:].isascii()
            and t[1:].isalpha() and t[1:].islower() and len(t) > 3
        )

    def parts(self):
        """All heads and MLPs."""
        return [
            (layer, part) for layer in range(len(self.layers))
            for part in [*range(self.heads), "mlp"]
        ]

    def columns(self, part):
        """The part of what its hook sees that is a component's."""
        return slice(part * self.dim, (part + 1) * self.dim) if isinstance(part, int) else ...

    def run(self, ids, token, places=(), source=None, attentions=False):
        """Runs ids, with the outputs of source at places; returns the log-probability of token
        after the last one, the outputs of all blocks and the attention of the last one."""
        outputs, hooks, wanted = {}, [], {}
        for (layer, part), position in places:
            block = (layer, "mlp" if part == "mlp" else "attn")
            wanted.setdefault(block, []).append((part, position))

        def patched(block, values):
            values = values.clone()
            for part, position in wanted.get(block, ()):
                columns = self.columns(part)
                values[0, position, columns] = source[block][position, columns]
            outputs[block] = values[0].clone()
            return values

        for n, layer in enumerate(self.layers):
            def before(_, args, block=(n, "attn")):
                return (patched(block, args[0]), *args[1:])

            def after(_, args, output, block=(n, "mlp")):
                return patched(block, output)

            hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(before))
            hooks.append(layer.mlp.register_forward_hook(after))
        try:
            found = self.model(self.torch.tensor([ids]), output_attentions=attentions)
        finally:
            for hook in hooks:
                hook.remove()
        log_prob = found.logits[0, -1].double().log_softmax(-1)[token].item()
        # [layer, head, key]
        last = self.torch.stack(found.attentions)[:, 0, :, -1] if attentions else None
        return log_prob, outputs, last


def component(name):
    layer, part = name[1:].split(".", 1)
    return int(layer), int(part[4:]) if part.startswith("head") else part


def name(c):
    return f"L{c[0]}.{c[1]}" if isinstance(c[1], str) else f"L{c[0]}.head{c[1]}"


def chance(good, nodes, layers, heads, draw):
    """How often random nodes of the same kinds in these layers hold a good head."""
    hits = 0
    for _ in range(CHANCES):
        hits += any(
            (layer, head) in good
            for part in nodes for layer in [draw.choice(layers)]
            for head in (range(heads) if part == "attn" else [draw.randrange(heads)])
        )
    return hits / CHANCES


def attended(weights, case, symptom, graph, last):
    """The heads of the path with their attention and rank, whether they are what they should be,
    and what chance would give; None if the case is not an echo of one token."""
    edits = case["edits"]
    shown = [e["position"] for e in edits if e["position"] < len(case["base"])]
    shown = [position for position in shown if position < symptom["position"]]
    same = len({e["id"] for e in edits}) == 1 and edits[-1]["position"] >= len(case["base"])
    if case["verdict"]["oracle"] != "echo" or not shown or not same:
        return None
    key = max(shown)
    weight = {
        (layer, head): last[layer, head, key].item()
        for layer in range(last.shape[0]) for head in range(last.shape[1])
    }
    ranked = sorted(weight, key=weight.get, reverse=True)
    good = {h for n, h in enumerate(ranked) if n < TOP or weight[h] > ATTENTION}
    nodes, counted = graph["nodes"], set()
    for edge in graph["edges"]:
        to, origin = nodes[edge["to"]], edge.get("from")
        here = to["position"] == symptom["position"] and component(to["component"])[1] != "mlp"
        if here and (origin is None or nodes[origin]["position"] == key):
            counted.add(component(to["component"]))
    heads = {h for h in weight if h in counted or (h[0], "attn") in counted}
    parts, layers = [part for _, part in counted], sorted({layer for layer, _ in counted})
    draw = random.Random(0)
    by_chance = [
        chance(good, parts, among, weights.heads, draw) if parts else 0.0
        for among in (range(len(weights.layers)), layers)
    ]
    return {
        "key": key, "heads": [(h, weight[h], n) for n, h in enumerate(ranked, 1) if h in heads],
        "holds": bool(heads & good), "above": sum(w > ATTENTION for w in weight.values()),
        "chance": by_chance[0], "near": by_chance[1], "top": [(h, weight[h]) for h in ranked[:TOP]],
    }


def check(weights, case, found):
    """All that transformers says of a case."""
    symptom, graph = found["symptom"], found.get("graph") or {"nodes": [], "edges": []}
    end, token = symptom["position"] + 1, symptom["id"]
    clean = (case["base"] + case["continuation"])[:end]
    edited, ordinary = list(clean), []
    draw = random.Random(case["id"])
    edits = [e for e in case["edits"] if e["position"] < end]
    for e in edits:
        edited[e["position"]] = e["id"]
    said, own, last = weights.run(edited, token, attentions=True)
    before, other, _ = weights.run(clean, token)
    row = {"said": said - symptom["log_prob"],
           "before": before - (symptom["log_prob"] - symptom["effect"])}
    if not graph["nodes"]:
        return row
    row["path"] = attended(weights, case, symptom, graph, last)
    places = [(component(n["component"]), n["position"]) for n in graph["nodes"]]
    removed = lambda at: (said - weights.run(edited, token, at, other)[0]) / (said - before)
    row["removed"] = removed(places)
    row["made"] = (weights.run(clean, token, places, own)[0] - before) / (said - before)
    first = min(e["position"] for e in edits)
    kinds = {"attn": [(layer, "attn") for layer in range(len(weights.layers))]}
    kinds["mlp"] = [c for c in weights.parts() if c[1] == "mlp"]
    kinds["head"] = [c for c in weights.parts() if c[1] != "mlp"]
    drawn = []
    for _ in range(DRAWS):
        at = [
            (draw.choice(kinds[c[1] if isinstance(c[1], str) else "head"]),
             draw.randrange(first, end))
            for c, _ in places
        ]
        drawn.append(removed(at))
    row["random"] = statistics.median(drawn)
    # Everything off the graph, as with ordinary tokens that don't have the symptom.
    on = set()
    for (layer, part), position in places:
        parts = range(weights.heads) if part == "attn" else [part]
        on |= {((layer, p), position) for p in parts}
    off = [(c, p) for c in weights.parts() for p in range(first, end) if (c, p) not in on]
    left = []
    for _ in range(10 * DRAWS):
        if len(left) == DRAWS:
            break
        ids, put = list(clean), {e["id"]: draw.choice(weights.ordinary) for e in edits}
        for e in edits:
            ids[e["position"]] = put[e["id"]]
        without, background, _ = weights.run(ids, token)
        if (said - without) * math.copysign(1, symptom["effect"]) >= 1:
            alone = weights.run(edited, token, off, background)[0]
            left.append(1 - (said - alone) / (said - without))
    row["alone"] = statistics.median(left) if left else math.nan
    return row


weights = None if folder == "-" else Weights()
cases, skipped, rows = 0, 0, []
print(f"{'case':<17}{'oracle':<12}{'baseline':<9}{'nodes':>5}{'faithful':>9}{'random':>8}"
      "  first MLP, set", flush=True)
for path in paths:
    with open(path, encoding="utf-8") as f:
        case = json.load(f)
    run = subprocess.run(
        [glitch, "implicate", path, "--json", *model_argument], capture_output=True, text=True
    )
    cases += 1
    if run.returncode:
        print(f"{case['id']:<17}not explained: {run.stderr.strip()[:200]}", flush=True)
        continue
    found = json.loads(run.stdout)
    oracle, graph = case["verdict"]["oracle"], found.get("graph")
    contrasts = {component(c["component"]): c["role"] for c in found.get("contrasts") or []}
    mlps = sorted(c for c in contrasts if c[1] in ("mlp", "channel_mix"))
    role = f"{name(mlps[0])} {contrasts[mlps[0]]}" if mlps else "-"
    row = {"oracle": oracle, "role": role.split()[-1], "graph": graph, "checked": False}
    rows.append(row)
    if graph is None:
        print(f"{case['id']:<17}{oracle:<12}no graph   {role}, {found['set']}", flush=True)
    else:
        row["median"] = round(statistics.median(graph["random"]), 6) + 0.0
        print(f"{case['id']:<17}{oracle:<12}{graph['baseline']:<9}{len(graph['nodes']):>5}"
              f"{graph['faithfulness']:>9.3f}{row['median']:>8.3f}  {role}, {found['set']}",
              flush=True)
    replaced = all(e["edit"] == "replace" for e in case["edits"])
    if weights is None or not replaced or not found.get("symptom"):
        skipped += weights is not None
        continue
    row |= check(weights, case, found) | {"checked": True}
    print(f"    symptom differs by {row['said']:+.1e} and {row['before']:+.1e} nats", end="")
    if "removed" in row:
        print(f"; removed {row['removed']:.2f} (random {row['random']:.3f}), made "
              f"{row['made']:.2f}, alone {row['alone']:.2f}", end="")
    print(flush=True)
    if row.get("path"):
        p = row["path"]
        heads = ", ".join(f"{name(h)} {w:.2f} (no. {n})" for h, w, n in p["heads"][:4]) or "no head"
        top = ", ".join(f"{name(h)} {w:.2f}" for h, w in p["top"])
        print(f"    to the token at {p['key']}: {heads}: {'yes' if p['holds'] else 'NO'}; most of "
              f"all: {top}; {p['above']} above {ATTENTION}; chance {p['chance']:.2f}, in these "
              f"layers {p['near']:.2f}", flush=True)

graphs = [row for row in rows if row["graph"]]
print(f"\n{cases} cases, {len(rows)} explained, {len(graphs)} with a graph; {skipped} not compared "
      "with transformers")
met = bool(graphs)
if graphs:
    faithful = [row["graph"]["faithfulness"] for row in graphs]
    sizes = [len(row["graph"]["nodes"]) for row in graphs]
    enough = sum(f >= GOAL and n <= MOST_NODES for f, n in zip(faithful, sizes))
    print(f"faithfulness: median {statistics.median(faithful):.3f}, from {min(faithful):.3f} to "
          f"{max(faithful):.3f}; {enough} of {len(graphs)} at {GOAL} or more with at most "
          f"{MOST_NODES} nodes")
    print(f"nodes: median {statistics.median(sizes):g}, at most {max(sizes)}")
    print("random graphs: median of the medians "
          f"{statistics.median(row['median'] for row in graphs):.3f}")
    met &= enough >= 0.8 * len(graphs)
roles = [row["role"] for row in rows]
print("first MLP:", ", ".join(f"{r} {roles.count(r)}" for r in sorted(set(roles))))
checked = [row for row in rows if row["checked"]]
if checked:
    difference = max(max(abs(row["said"]), abs(row["before"])) for row in checked)
    print(f"symptoms: {len(checked)} compared, largest difference {difference:.1e} nats")
    met &= difference < NATS
    patched = [row for row in checked if "removed" in row]
    for what in ("removed", "random", "made", "alone"):
        values = [row[what] for row in patched]
        if values:
            print(f"{what}: median {statistics.median(values):.3f}, from {min(values):.3f} to "
                  f"{max(values):.3f}")
    followed = [row["path"] for row in checked if row.get("path")]
    if followed:
        holds = sum(p["holds"] for p in followed)
        print("the path holds the heads that attend from the place to fill to the shown token: "
              f"{holds} of {len(followed)}; by chance {sum(p['chance'] for p in followed):.1f}, "
              f"among heads of the same layers {sum(p['near'] for p in followed):.1f}")
        met &= holds >= 0.8 * len(followed)
print("wanted: symptoms within 1e-3, 8 of 10 graphs, 8 of 10 echoes:", "met" if met else "NOT met")
sys.exit(not met)
