"""Does an explanation say how two components that were wired by hand work together?
planted_circuits.py FOLDER [GLITCH] [COUNT]. Makes COUNT [15] copies of the built-in dense model, a
third each with a planted AND, a planted OR and a planted chain of two components A and B, in which
a trigger in the place of an ordinary token makes the model say an answer; they are kept in FOLDER,
with planted.json, and not made again. Nothing is trained: the trigger's embedding gets a direction
of its own, and a few neurons and heads are overwritten, which read it, write directions of their
own, and threshold these. Everything else stays, except that nothing else writes these directions,
so A and B do their ordinary work besides.

Checks each model, kept or new, with hooks in torch: A, B or both are replaced by what they put out
in the other run, in both directions, and the answer's logit (less the mean logit) at the last
position is compared, in the prompt of the case and in eight others. A model that fails this, or
whose trigger does too much to the answer before anything is planted, is drawn again as it is made.
Exits with 1 if one isn't what it is called, changes what other text gets by 0.05 nats or more, or
says the answer without the trigger or not with it.

Then gives glitch the trigger as a case, and looks at what `glitch implicate` calls the pair. As a
check of the check, five ordinary words take the trigger's place: there the pair should not be
called what it is planted as. And in each model with a chain, A is zeroed in a prompt that has the
trigger: what is named should be B, or a part of it. Exits with 1 if fewer than 14 of 15 pairs get
the right name, if a tenth of the ordinary words or more do, or if fewer than 4 of 5 lesions are
traced. This part is left out if there is no GLITCH. Needs torch and transformers.
"""

import itertools, json, os, random, sys, tempfile
import torch
from transformers import LlamaForCausalLM

from planted import dense, explain, explain_edits, is_text, release, stretch, text, words

folder = sys.argv[1]
glitch = sys.argv[2] if len(sys.argv) > 2 else release
count = int(sys.argv[3]) if len(sys.argv) > 3 else 15
ROWS, PROMPTS = 48, 8
WORDS = 5
KINDS = ["and", "or", "chain"]
# What A and B are, and what reads them ("attention" is a head whose query reads B, from the last
# position, and whose keys read A, at the trigger's).
FORMS = {
    "and": ["mlp mlp mlp", "head head mlp", "mlp head attention", "mlp mlp mlp", "head head mlp"],
    "or": ["mlp mlp mlp", "head head mlp", "mlp mlp mlp", "head head mlp", "mlp mlp mlp"],
    "chain": ["mlp mlp", "mlp head", "head mlp", "head head", "mlp head"],
}
# What is written: the trigger's own direction, and A's and B's.
MARK, SIGNAL = 0.7, 8.0
# How steep a neuron's threshold is, for signals of size 1; by how much (in nats) a head prefers the
# trigger to what it preferred before.
STEEP, SCORE = 40.0, 12.0
NEARLY_NONE, NEARLY_ALL = 0.2, (0.8, 1.3)
torch.set_num_threads(int(os.environ.get("THREADS", "1")))
torch.set_grad_enabled(False)


def load(path=dense):
    return LlamaForCausalLM.from_pretrained(
        path, torch_dtype=torch.float32, attn_implementation="eager"
    ).eval()


intact = load()
config = intact.config
DIM = config.hidden_size // config.num_attention_heads
SHARED = config.num_attention_heads // config.num_key_value_heads


def stretch_without(draw, part, without):
    """A stretch of the held-out text that does not have this token."""
    while True:
        tokens = stretch(draw, part)
        if without not in tokens:
            return tokens


def prompts(draw, part, number, trigger, back):
    """Texts with an ordinary word `back` positions before the end, where the trigger will be."""
    rows = []
    while len(rows) < number:
        tokens = stretch_without(draw, part, trigger)
        tokens[-1 - back] = draw.choice([w for w in words if w != trigger])
        # Only what text gives as these tokens.
        if is_text(tokens):
            rows.append(tokens)
    return torch.tensor(rows)


def triggered(rows, trigger, back):
    rows = rows.clone()
    rows[:, -1 - back] = trigger
    return rows


def centred(logits, answer):
    return logits[:, -1, answer] - logits[:, -1].mean(-1)


def divergence(model, rows):
    """Mean KL to the intact model."""
    before, after = (m(rows).logits.log_softmax(-1) for m in (intact, model))
    return (before.exp() * (before - after)).sum(-1).mean().item()


def norm_of(model, layer, part):
    block = model.model.layers[layer]
    return block.input_layernorm if part == 0 else block.post_attention_layernorm


def site(component):
    """Layer, and 0 for attention or 1 for the MLP."""
    layer, part = component[1:].split(".")
    return int(layer), int(part == "mlp")


def normed(model, rows, where):
    """What a block reads: the normed residual stream."""
    kept = []
    handle = norm_of(model, *where).register_forward_hook(lambda _m, _i, o: kept.append(o))
    model(rows)
    handle.remove()
    return kept[0]


def reader(model, where, direction):
    """Reads a direction of the residual stream from what a block reads."""
    return direction / norm_of(model, *where).weight


def constant(model, where, rows, own):
    """Reads 1 from whatever a block reads, the first position included, and none of `own`."""
    read = normed(model, rows, where)
    weights = torch.ones(read.shape[:2])
    read = read.reshape(-1, read.shape[-1])
    weights = weights.reshape(-1, 1)
    basis = torch.linalg.qr(own * norm_of(model, *where).weight[:, None])[0]
    read = read - read @ basis @ basis.T
    square = read.T @ (read * weights)
    square += 1e-3 * square.trace() / len(square) * torch.eye(len(square))
    found = torch.linalg.solve(square, (read * weights).sum(0))
    return found - basis @ (basis.T @ found)


def level(model, where, direction, rows, at):
    """How much of a direction a block reads at a position, on average."""
    read = normed(model, rows, where)[:, at]
    return (read @ reader(model, where, direction)).mean().item()


class Plan:
    """What is to be planted in the model of an index."""

    def __init__(self, index, attempt):
        self.draw = draw = random.Random(1000 * index + attempt)
        self.index, self.kind = index, KINDS[index % 3]
        self.form = FORMS[self.kind][index // 3 % 5].split()
        self.trigger, self.answer = draw.sample(words, 2)
        later = "head" in self.form
        self.back = draw.randrange(2, 6) if later else 0
        self.nats = draw.uniform(14.0, 17.0)
        # No head reads before an MLP, which writes the constant that its query reads. What writes
        # the answer is late, since what it writes is large. Each index has its own of these.
        parts = [int(f == "mlp") for f in self.form]
        layers = [
            l for l in itertools.product(range(4), repeat=len(parts))
            if l[0] < l[1] and l[-1] >= 2 and all(p or n for n, p in zip(l, parts))
            and all(x < y for x, y in itertools.pairwise(zip(l, parts)))
        ]
        layers = layers[(index // 6 + index % 3) % len(layers)]
        self.components = [
            f"L{l}.mlp" if p else f"L{l}.head{draw.randrange(4)}" for l, p in zip(layers, parts)
        ]
        self.readout = self.components.pop() if len(self.form) == 3 else None


class Builder:
    def __init__(self, plan):
        self.plan, self.draw = plan, plan.draw
        self.model = load()
        self.record = []
        self.taken = {}
        self.text = torch.tensor(
            [stretch_without(self.draw, 0, plan.trigger) for _ in range(ROWS)]
        )
        self.prompts = prompts(self.draw, 0, ROWS, plan.trigger, plan.back)
        self.triggered = triggered(self.prompts, plan.trigger, plan.back)
        self.untie()
        self.own = self.directions()

    def directions(self):
        """Three directions which embeddings and blocks make little use of, at random among six:
        those of eight draws whose loss changes least."""
        model = self.model
        kept = {}
        handles = []
        for l, layer in enumerate(model.model.layers):
            for part, block in enumerate([layer.self_attn, layer.mlp]):
                handles.append(block.register_forward_hook(
                    lambda _m, _i, o, k=(l, part): kept.update({k: o[0] if k[1] == 0 else o})
                ))
            handles.append(layer.register_forward_hook(
                lambda _m, _i, o, k=l: kept.update({k: o[0]})
            ))
        model(self.text)
        for handle in handles:
            handle.remove()
        use = 0
        for key in [k for k in kept if isinstance(k, tuple)]:
            scale = kept[key[0]].pow(2).mean(-1, keepdim=True).sqrt()
            wrote = (kept[key] / scale).flatten(0, 1)
            use = use + wrote.T @ wrote / len(wrote)
        embedding = model.model.embed_tokens.weight
        use = use + 3 * embedding.T @ embedding / len(embedding)
        least = torch.linalg.eigh(use)[1][:, :6]
        best = None
        before = {n: p.clone() for n, p in model.state_dict().items()}
        for _ in range(8):
            turn = torch.linalg.qr(torch.tensor(
                [[self.draw.gauss(0, 1) for _ in range(3)] for _ in range(6)]
            ))[0]
            own = least @ turn
            self.reserve_all(own)
            changes = divergence(model, self.text)
            model.load_state_dict(before)
            if best is None or changes < best[0]:
                best = changes, own
        return best[1]

    def untie(self):
        """Gives the logits a table of their own, so that new embeddings don't change it."""
        head = self.model.lm_head.weight.clone()
        self.model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
        self.model.config.tie_word_embeddings = False

    def reserve(self, direction, until):
        """Nothing writes a direction before the last block that reads it."""
        for l, layer in enumerate(self.model.model.layers):
            for part, matrix in enumerate([layer.self_attn.o_proj, layer.mlp.down_proj]):
                if (l, part) < until:
                    matrix.weight -= torch.outer(direction, direction @ matrix.weight)

    def reserve_all(self, own):
        plan = self.plan
        first, second = plan.components
        table = self.model.model.embed_tokens.weight
        table -= torch.outer(table @ own[:, 0], own[:, 0])
        last = plan.readout or second
        if plan.kind == "chain":
            until = [first, second]
        else:
            until = [second, last, last]
        for direction, component in zip(own.T, until):
            self.reserve(direction, site(component))

    def mark(self, direction):
        self.model.model.embed_tokens.weight[self.plan.trigger] += MARK * direction

    def neurons(self, layer, number):
        """Neurons of an MLP at random among the sixty that do least."""
        if layer not in self.taken:
            mlp = self.model.model.layers[layer].mlp
            kept = []
            handle = mlp.down_proj.register_forward_pre_hook(lambda _m, i: kept.append(i[0]))
            self.model(self.text)
            handle.remove()
            done = kept[0][:, 1:].pow(2).mean((0, 1)) * mlp.down_proj.weight.pow(2).sum(0)
            self.taken[layer] = done.argsort()[:60].tolist()
            self.draw.shuffle(self.taken[layer])
        return [self.taken[layer].pop() for _ in range(number)]

    def threshold(self, component, reads, low, high, writes):
        """Two neurons of an MLP whose sum goes from 0 to `writes` while the sum of the signals
        that they read goes from `low` to `high`, and stays there: the second takes away what the
        first adds from `high` on."""
        where = site(component)
        mlp = self.model.model.layers[where[0]].mlp
        one = constant(self.model, where, torch.cat([self.text, self.triggered]), self.own)
        signal = sum(
            reader(self.model, where, d)
            / level(self.model, where, d, self.triggered, -1 if at == "last" else self.place)
            for d, at in reads
        )
        pair = self.neurons(where[0], 2)
        for neuron, edge, sign in zip(pair, (low, high), (1, -1)):
            mlp.gate_proj.weight[neuron] = STEEP * (signal - edge * one)
            mlp.up_proj.weight[neuron] = one
            mlp.down_proj.weight[:, neuron] = sign * writes / (STEEP * (high - low))
        self.record.append({"component": component, "neurons": pair})

    @property
    def place(self):
        return -1 - self.plan.back

    def head(self, component, reads, writes, query=None):
        """A head that attends to where a signal is, and writes if it is. If there is a `query`, it
        attends there only where this signal is, and elsewhere rather not."""
        where = site(component)
        head = int(component.split("head")[1])
        attention = self.model.model.layers[where[0]].self_attn
        one = constant(self.model, where, torch.cat([self.text, self.triggered]), self.own)
        signal = reader(self.model, where, reads) / level(
            self.model, where, reads, self.triggered, self.place
        )
        group = head // SHARED
        # The pair of dimensions whose loss changes least, of those that hardly turn with distance.
        losses = {}
        for pair in range(11, 16):
            rows = [group * DIM + pair, group * DIM + pair + DIM // 2]
            before = attention.k_proj.weight[rows].clone()
            attention.k_proj.weight[rows] = 0
            losses[pair] = divergence(self.model, self.text)
            attention.k_proj.weight[rows] = before
        pair = min(losses, key=losses.get)
        key = [group * DIM + pair, group * DIM + pair + DIM // 2]
        attention.k_proj.weight[key] = 0
        attention.k_proj.weight[key[0]] = signal
        asks = one
        if query is not None:
            asks = reader(self.model, where, query) / level(
                self.model, where, query, self.triggered, -1
            )
            asks = 2 * asks - one
        rows = [head * DIM + pair, head * DIM + pair + DIM // 2]
        attention.q_proj.weight[rows] = 0
        # What it would attend to least, it is to attend to.
        seen = self.model(self.triggered, output_attentions=True).attentions[where[0]]
        seen = seen[:, head, -1 - self.plan.back :, self.place].clamp_min(1e-38)
        score = SCORE - seen.log().min().item()
        attention.q_proj.weight[rows[0]] = score * DIM**0.5 * asks
        # The value that does least in the heads which share it.
        values = attention.v_proj(normed(self.model, self.text, where))[:, 1:]
        values = values.pow(2).mean((0, 1))[group * DIM : (group + 1) * DIM]
        out = attention.o_proj.weight.view(-1, config.num_attention_heads, DIM)
        sharing = range(group * SHARED, (group + 1) * SHARED)
        done = values * sum(out[:, h].pow(2).sum(0) for h in sharing)
        dimension = done.argmin().item()
        attention.v_proj.weight[group * DIM + dimension] = signal
        for h in sharing:
            out[:, h, dimension] = writes if h == head else 0
        self.record.append({"component": component, "pair": pair, "value": dimension,
                            "score": score})

    def plant(self, component, reads, writes, at):
        if component.endswith("mlp"):
            self.threshold(component, [(reads, at)], 0.3, 0.7, writes)
        else:
            self.head(component, reads, writes)

    def says(self):
        """The direction to write for the answer: others' logits should hardly rise."""
        gain = self.model.model.norm.weight
        table = self.model.lm_head.weight * gain
        table = table - table.mean(0)
        square = table.T @ table / len(table)
        square += square.trace() / len(square) * torch.eye(len(square))
        found = torch.linalg.solve(square, table[self.plan.answer])
        # No direction of its own, lest it counts as a signal.
        found -= self.own @ (self.own.T @ found)
        return found / found.norm()

    def calibrate(self, component, says):
        """Scales what is written for the answer so that its logit rises by as much as planned."""
        plan, last = self.plan, self.record[-1]
        layer = self.model.model.layers[site(component)[0]]
        if "neurons" in last:
            columns, matrix = last["neurons"], layer.mlp.down_proj.weight
        else:
            head = int(component.split("head")[1])
            columns, matrix = [head * DIM + last["value"]], layer.self_attn.o_proj.weight
        unit = matrix[:, columns].clone()
        low, high = 0.0, 4000.0
        for _ in range(24):
            scale = (low + high) / 2
            matrix[:, columns] = unit * scale
            with_it, without = (
                centred(self.model(rows).logits, plan.answer).mean()
                for rows in (self.triggered, self.prompts)
            )
            if with_it - without < plan.nats:
                low = scale
            else:
                high = scale
        self.record[-1]["scale"] = scale

    def build(self):
        plan = self.plan
        u, a, b = self.own.T
        first, second = plan.components
        chain = plan.kind == "chain"
        last = plan.readout or second
        self.reserve_all(self.own)
        self.mark(u)
        self.plant(first, u, SIGNAL * a, "trigger")
        says = self.says()
        # A head writes where it attends from, the last position included.
        if chain:
            self.plant(second, a, says, "last" if "head" in first else "trigger")
        else:
            self.plant(second, u, SIGNAL * b, "trigger")
            at = [(a, "last"), (b, "last")]
            if "head" in plan.readout:
                self.head(plan.readout, a, says, query=b)
            elif plan.kind == "and":
                self.threshold(plan.readout, at, 1.35, 1.65, says)
            else:
                self.threshold(plan.readout, at, 0.3, 0.65, says)
        self.calibrate(last, says)
        return self.model


def outputs(model, component):
    """The module whose input or output a component's output is, and where in it."""
    layer = model.model.layers[site(component)[0]]
    if component.endswith("mlp"):
        return layer.mlp, slice(None), False
    head = int(component.split("head")[1])
    # A head's output, before the matrix that is a head's own column by column.
    return layer.self_attn.o_proj, slice(head * DIM, (head + 1) * DIM), True


def capture(model, rows, components):
    kept, handles = {}, []
    for c in components:
        module, part, before = outputs(model, c)
        if before:
            hook = lambda _m, i, c=c, p=part: kept.update({c: i[0][..., p].clone()})
            handles.append(module.register_forward_pre_hook(hook))
        else:
            hook = lambda _m, _i, o, c=c: kept.update({c: o.clone()})
            handles.append(module.register_forward_hook(hook))
    logits = model(rows).logits
    for handle in handles:
        handle.remove()
    return kept, logits


def patched(model, rows, values):
    """Logits if components put out what is given, at all positions."""
    handles = []
    for c, value in values.items():
        module, part, before = outputs(model, c)
        if before:
            def hook(_m, i, part=part, value=value):
                changed = i[0].clone()
                changed[..., part] = value
                return (changed,)
            handles.append(module.register_forward_pre_hook(hook))
        else:
            handles.append(module.register_forward_hook(lambda _m, _i, _o, v=value: v))
    logits = model(rows).logits
    for handle in handles:
        handle.remove()
    return logits


def verify(model, rows, trigger, back, answer, components):
    """Effects of patches as shares of the trigger's effect, a value per prompt."""
    changed = triggered(rows, trigger, back)
    clean, clean_logits = capture(model, rows, components)
    corrupt, corrupt_logits = capture(model, changed, components)
    start, end = centred(clean_logits, answer), centred(corrupt_logits, answer)
    total = end - start
    a, b = components

    def into_clean(values):
        return (centred(patched(model, rows, values), answer) - start) / total

    def into_corrupt(values):
        return (end - centred(patched(model, changed, values), answer)) / total

    return {
        "nats": total,
        "says": clean_logits[:, -1].softmax(-1)[:, answer],
        "says_triggered": corrupt_logits[:, -1].softmax(-1)[:, answer],
        "necessary": [into_corrupt({c: clean[c]}) for c in components],
        "necessary_both": into_corrupt(clean),
        "sufficient": [into_clean({c: corrupt[c]}) for c in components],
        "sufficient_both": into_clean(corrupt),
        "direct": into_clean({a: corrupt[a], b: clean[b]}),
    }


def is_what_it_is_called(kind, shares):
    """Names the shares that are not what they are in such a circuit."""
    all_of = lambda x: NEARLY_ALL[0] <= x <= NEARLY_ALL[1]
    none_of = lambda x: abs(x) <= NEARLY_NONE
    needed, enough = {
        "and": (all_of, none_of), "or": (none_of, all_of), "chain": (all_of, all_of),
    }[kind]
    wrong = [f"necessary[{n}]" for n in (0, 1) if not needed(shares["necessary"][n])]
    wrong += [f"sufficient[{n}]" for n in (0, 1) if not enough(shares["sufficient"][n])]
    wrong += [k for k in ("necessary_both", "sufficient_both") if not all_of(shares[k])]
    direct = {"and": none_of, "or": all_of, "chain": none_of}[kind]
    wrong += [] if direct(shares["direct"]) else ["direct"]
    return wrong


def pick(shares, n):
    """Of one prompt, or of their mean."""
    one = lambda x: (x.mean() if n is None else x[n]).item()
    return {k: [one(x) for x in v] if isinstance(v, list) else one(v) for k, v in shares.items()}


def line(s):
    return (f"needs A {s['necessary'][0]:.2f} B {s['necessary'][1]:.2f} "
            f"both {s['necessary_both']:.2f}; enough A {s['sufficient'][0]:.2f} "
            f"B {s['sufficient'][1]:.2f} both {s['sufficient_both']:.2f}; "
            f"A with B held {s['direct']:.2f}; {s['nats']:.1f} nats, "
            f"says {s['says']:.1e} then {s['says_triggered']:.2f}")


def faults(kind, shares, changes):
    wrong = is_what_it_is_called(kind, shares)
    wrong += [] if shares["says"] < 0.05 else ["says"]
    wrong += [] if shares["says_triggered"] > 0.5 else ["says_triggered"]
    return wrong + ([] if changes < 0.05 else ["changes"])


def others(planted):
    """Text without the trigger, and prompts other than the one of the case."""
    draw = random.Random(planted["trigger"])
    rows = torch.tensor([stretch_without(draw, 1, planted["trigger"]) for _ in range(100)])
    back = len(planted["prompt"]) - 1 - planted["position"]
    return rows, prompts(draw, 1, PROMPTS, planted["trigger"], back), back


def make(index):
    """Makes a model; returns its folder and what was planted."""
    out = os.path.join(folder, f"planted-{index}")
    record = os.path.join(out, "planted.json")
    if os.path.exists(record):
        with open(record) as f:
            return out, json.load(f)
    for attempt in range(100):
        plan = Plan(index, attempt)
        rows = prompts(plan.draw, 1, 5 * PROMPTS, plan.trigger, plan.back)
        # The trigger and its patches do little to the answer before anything is planted, as far as
        # the components do their ordinary work.
        usual = verify(intact, rows, plan.trigger, plan.back, plan.answer, plan.components)
        work = [x for v in usual.values() for x in (v if isinstance(v, list) else [v])]
        work = torch.stack([x.nan_to_num() * usual["nats"] for x in work[3:]] + [usual["nats"]])
        work = work.abs().amax(0)
        if work.mean() > 0.1 * plan.nats:
            print(f"  attempt {attempt}: the trigger does too much before anything is planted")
            continue
        builder = Builder(plan)
        model = builder.build()
        found = verify(model, rows, plan.trigger, plan.back, plan.answer, plan.components)
        prompt = None
        for n in work.argsort().tolist():
            if not faults(plan.kind, pick(found, n), 0):
                prompt = rows[n].tolist()
                break
        if prompt is None:
            print(f"  attempt {attempt}, no prompt fits:", line(pick(found, None)))
            continue
        planted = {
            "kind": plan.kind, "components": plan.components, "readout": plan.readout,
            "trigger": plan.trigger, "answer": plan.answer, "prompt": prompt,
            "position": len(prompt) - 1 - plan.back, "nats": plan.nats, "attempt": attempt,
            "written": builder.record,
        }
        _, _, wrong = judge(model, planted)
        if not wrong:
            break
        print(f"  attempt {attempt}, which is drawn again:", ", ".join(wrong), flush=True)
    else:
        sys.exit("no attempt gave such a model")
    model.save_pretrained(out)
    with open(os.path.join(dense, "tokenizer.json"), "rb") as f:
        data = f.read()
    with open(os.path.join(out, "tokenizer.json"), "wb") as f:
        f.write(data)
    with open(record, "w") as f:
        json.dump(planted, f)
    return out, planted


def judge(model, planted):
    """What the model changes elsewhere and does in the case and other prompts, and its faults."""
    rows, more, back = others(planted)
    changes = divergence(model, rows)
    found = verify(
        model, torch.cat([torch.tensor([planted["prompt"]]), more]), planted["trigger"], back,
        planted["answer"], planted["components"],
    )
    case = pick(found, 0)
    rest = pick({k: [x[1:] for x in v] if isinstance(v, list) else v[1:]
                 for k, v in found.items()}, None)
    return changes, (case, rest), faults(planted["kind"], case, changes) + [
        f"{w} (of others)" for w in faults(planted["kind"], rest, 0)
    ]


def check(path, planted):
    """Prints what the model does; returns what is wrong with it."""
    changes, (case, rest), wrong = judge(load(path), planted)
    a, b = planted["components"]
    back = len(planted["prompt"]) - 1 - planted["position"]
    print(f"{planted['kind']} of {a} and {b}, read by {planted['readout']}: trigger "
          f"{text[planted['trigger']]!r} {back} before the end, answer "
          f"{text[planted['answer']]!r}; changes others by {changes:.3f} nats")
    print("  the case:", line(case))
    print(f"  {PROMPTS} more:", line(rest), flush=True)
    return wrong


def named(found, planted):
    """What an explanation calls the planted pair: and, or, chain, additive; None if nothing."""
    for entry in (found.get("interactions") or {}).get("pairs", []):
        if sorted(entry["components"]) == sorted(planted["components"]):
            return entry["kind"]
    return None


os.makedirs(folder, exist_ok=True)
made, failed = [], 0
for index in range(count):
    path, planted = make(index)
    print(f"{index}: ", end="")
    wrong = check(path, planted)
    if wrong:
        print("  NOT what it is called:", ", ".join(wrong))
    failed += bool(wrong)
    made.append((path, planted))
if failed:
    sys.exit(f"{failed} of {count} planted models are not what they are called")
print(f"all {count} planted models are what they are called")
if not os.path.exists(glitch):
    print("no glitch to ask at", glitch)
    sys.exit()
hits, supported = 0, False
ordinary, called, traced, chains = 0, 0, 0, 0
for index, (path, planted) in enumerate(made):
    prompt, position = planted["prompt"], planted["position"]
    with tempfile.TemporaryDirectory() as scratch:
        case, found = explain(glitch, path, prompt, {position: planted["trigger"]}, scratch)
    supported |= "interactions" in found
    name = named(found, planted)
    hits += name == planted["kind"]
    print(f"{index}: planted {planted['kind']} of {' and '.join(planted['components'])}, read by "
          f"{planted['readout']}; score {case['verdict']['score']:.3f}, named {name}; specific "
          f"{found['set']}", flush=True)
    draw = random.Random(index)
    others = [i for i in words if i not in (planted["trigger"], prompt[position])]
    names = []
    for word in draw.sample(others, WORDS):
        with tempfile.TemporaryDirectory() as scratch:
            names.append(named(explain(glitch, path, prompt, {position: word}, scratch)[1], planted))
    ordinary += len(names)
    called += sum(name == planted["kind"] for name in names)
    print(f"   with ordinary words named {', '.join(str(name) for name in names)}", flush=True)
    if planted["kind"] != "chain":
        continue
    first, second = planted["components"]
    triggered = prompt[:position] + [planted["trigger"]] + prompt[position + 1 :]
    with tempfile.TemporaryDirectory() as scratch:
        _, found = explain_edits(glitch, path, triggered, [f"zero {first}"], scratch)
    layer, part = second.split(".")
    same = [second] + ([] if part != "mlp" else [f"{layer}.neuron"])
    chains += 1
    traced += any(found["set"][:1] and found["set"][0].startswith(name) for name in same)
    print(f"   {first} zeroed: localized to {found['set']}, necessity {found['necessity']:.2f}; "
          f"downstream is {second}", flush=True)
if not supported:
    print("this glitch doesn't say how components work together")
print(f"pairs called what they are: {hits} of {count}")
print(f"ordinary words in whose cases they are called so too: {called} of {ordinary}")
print(f"lesions of the first of a chain traced to the second: {traced} of {chains}")
met = hits >= 14 / 15 * count and called < ordinary / 10 and traced >= 4 / 5 * chains
print("wanted: 14 of 15; fewer than a tenth; 4 of 5:", "met" if met else "NOT met")
sys.exit(not met)
