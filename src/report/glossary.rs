//! The words of the pages, explained at the end of each.

use std::fmt::Write;

const WORDS: &[(&str, &str)] = &[
    ("token", "A piece of text that a model reads or writes; each has a number, its id."),
    ("trial, evaluation", "One run of the model on one prompt with some edits."),
    (
        "edit",
        "One change: to a token, to its embedding, or to a component of the model (a lesion, also \
        called ablation).",
    ),
    (
        "control",
        "An ordinary trial of the same kind and size. Whether a score counts as a glitch is \
        decided by the controls, never by an absolute number.",
    ),
    (
        "score, threshold, margin",
        "How badly the model misbehaves; what a score must exceed, given the controls, to count as \
        a glitch; the difference of the two.",
    ),
    (
        "noise floor",
        "How far a score moves when nothing changes but the other trials in the batch. A smaller \
        margin means nothing.",
    ),
    (
        "p-value",
        "The share of controls that score at least as high, counting the finding itself. Its \
        smallest possible value is 1 / (controls + 1).",
    ),
    (
        "bit",
        "For a divergence: from 0 (the same predictions) to 1 (no overlap). For a surprise: each \
        bit halves the probability.",
    ),
    (
        "raw, confirmed, minimized",
        "Seen in a batch; seen again when run alone; reduced to the fewest edits that still show \
        it.",
    ),
    (
        "kind",
        "Findings by what is changed, where in the model, with which class of token and under \
        which oracle; divided where they break the model in different ways.",
    ),
    ("oracle", "A test of one way of failing: divergence, collapse, echo failure, ..."),
    (
        "hardly trained",
        "A token whose embedding looks as if training had hardly touched it, by comparison with \
        the other tokens.",
    ),
    (
        "deficit",
        "How the model is broken: what it writes after the edits loops, copies nothing, or the \
        like, more than after any control.",
    ),
    (
        "holds in a new prompt, consistent",
        "The same edits in a text that the search did not use exceed the threshold of controls of \
        its own; this in so many texts that chance doesn't explain it.",
    ),
    (
        "E-value",
        "Evidence against chance: were the finding one of its controls, a value above 100 would \
        come up in less than 1% of cases.",
    ),
    ("1-minimal", "No single remaining edit can be removed without losing the glitch."),
    (
        "component",
        "A part of the model: L2.head3 is attention head 3 of layer 2, L2.mlp that layer's \
        feed-forward block, L2.neuron7 one unit of it, embed the embedding. Layers and heads count \
        from 0.",
    ),
    (
        "necessity",
        "The share of the effect that is removed when the components' clean outputs are patched \
        into the corrupted run.",
    ),
    (
        "sufficiency",
        "The share of the effect that is reproduced when only their corrupted outputs are patched \
        into the clean run.",
    ),
    (
        "relay",
        "A component that passes on whatever is put in the place of the edits: it mediates the \
        effect of the controls as well.",
    ),
    (
        "graph",
        "The places (a component at a position) that make the effect with everything else as in \
        the controls, or as without the edits. Its faithfulness is the share they make.",
    ),
    (
        "and, or, chain",
        "Relations of two components: only both together have the effect; either is enough; the \
        first acts through the second.",
    ),
    (
        "interaction",
        "The effect of two lesions together on the loss, minus the effects of each alone. \
        Positive: each compensates for the other. In nats: 0.69 nats halve a probability.",
    ),
    (
        "behaviour",
        "A kind of output, by a coarse fingerprint; the campaign explores new ones even when they \
        are not glitches.",
    ),
];

/// Writes the glossary.
pub fn legend(out: &mut String) {
    out.push_str(
        "<section><details class=\"legend\"><summary>Words used here</summary><dl class=\"words\">",
    );
    for (word, meaning) in WORDS {
        let _ = write!(out, "<dt>{word}</dt><dd>{meaning}</dd>");
    }
    out.push_str("</dl></details></section>");
}
