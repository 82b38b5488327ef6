//! Interactions planted in the built-in model by making one component twice, so that each backs up
//! the other: harmless alone, harmful together, first in the sweep, and all that is left of a
//! larger set.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use glitch::echo::EchoPrompt;
use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::{Evaluator as _, ModelEvaluator, REFERENCE_TEXT, Request};
use glitch::minimize;
use glitch::model::Model;
use glitch::mutate::sets::Sets;
use glitch::mutate::{Context, Mutator as _};
use glitch::oracle::{ModelJudge, OracleKind};
use glitch::sweep::{
    Baseline, PairKind, PairOptions, PairSweep, Target, interactions, minimal, screen,
    set_of_lesions,
};
use glitch::vocabulary::Vocabulary;
use rand::Rng as _;

/// Loss increases, nats per token: at most this without one of the two, and at least that without
/// both.
const HARMLESS: f64 = 0.1;
const HARMFUL: f64 = 0.2;

type Tensors = std::collections::HashMap<String, Tensor>;

fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/models/dense")
}

fn dense() -> Tensors {
    let tensors =
        candle_core::safetensors::load(folder().join("model.safetensors"), &Device::Cpu).unwrap();
    tensors.into_iter().map(|(name, x)| (name, x.to_dtype(DType::F32).unwrap())).collect()
}

/// The built-in model with other tensors, and some fields of its configuration changed.
fn changed(tensors: &Tensors, fields: &[(&str, serde_json::Value)]) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(folder().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    fields.iter().for_each(|(field, value)| config[*field] = value.clone());
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(folder().join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    candle_core::safetensors::save(tensors, dir.path().join("model.safetensors")).unwrap();
    Model::load(dir.path().to_str().unwrap()).unwrap()
}

fn scaled(x: &Tensor, factor: f64) -> Tensor {
    (x * factor).unwrap()
}

/// Head `from` of a layer in the place of head `to` as well, with keys and values of its own for
/// every head; `silenced` heads write nothing. The built-in model has two heads that say a token
/// again (`L3.head0` and `L3.head1`), which cover for each other and for a copy: where a third
/// would do so, it is silenced.
fn head_twice(layer: usize, from: usize, to: usize, silenced: &[(usize, usize)]) -> Model {
    const DIM: usize = 32;
    let mut t = dense();
    for l in 0..4 {
        let name = |part: &str| format!("model.layers.{l}.self_attn.{part}_proj.weight");
        let source = |head: usize| if l == layer && head == to { from } else { head };
        // Query heads 0 and 1 share key and value head 0, 2 and 3 the other.
        let rows = |x: &Tensor, shared: usize| {
            let of = |head: usize| x.narrow(0, source(head) / shared * DIM, DIM).unwrap();
            Tensor::cat(&[of(0), of(1), of(2), of(3)], 0).unwrap()
        };
        let column = |head: usize| {
            let of = t[&name("o")].narrow(1, source(head) * DIM, DIM).unwrap();
            scaled(&of, if silenced.contains(&(l, head)) { 0.0 } else { 1.0 })
        };
        let o = Tensor::cat(&[column(0), column(1), column(2), column(3)], 1).unwrap();
        let (q, k, v) = (rows(&t[&name("q")], 1), rows(&t[&name("k")], 2), rows(&t[&name("v")], 2));
        [("q", q), ("k", k), ("v", v), ("o", o)]
            .into_iter()
            .for_each(|(part, x)| drop(t.insert(name(part), x)));
    }
    changed(&t, &[("num_key_value_heads", 4.into())])
}

/// A fifth layer after `layer`, whose MLP is that layer's: each of the two writes half.
fn mlp_twice(layer: usize) -> Model {
    let dense = dense();
    let mut t: Tensors = dense
        .iter()
        .filter(|(name, _)| !name.contains(".layers."))
        .map(|(n, x)| (n.clone(), x.clone()))
        .collect();
    for l in 0..5usize {
        let from = format!(".layers.{}.", if l > layer { l - 1 } else { l });
        for (name, x) in dense.iter().filter(|(name, _)| name.contains(&from)) {
            let copies = l == layer || l == layer + 1;
            let factor = match name {
                _ if l == layer + 1 && name.contains("o_proj") => 0.0,
                _ if copies && name.contains("down_proj") => 0.5,
                _ => 1.0,
            };
            t.insert(name.replace(&from, &format!(".layers.{l}.")), scaled(x, factor));
        }
    }
    changed(&t, &[("num_hidden_layers", 5.into())])
}

fn noise(shape: (usize, usize), seed: u64, scale: f32) -> Tensor {
    let mut rng = glitch::rng::stream(seed, "planted pairs");
    let values: Vec<f32> =
        (0..shape.0 * shape.1).map(|_| scale * rng.random_range(-1.0f32..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A mixture of five experts in the place of every MLP, one for each token. In `layer` experts 0
/// and 1 are the MLP with one row of the router for both, experts 2 and 3 again the MLP with the
/// opposite row, and expert 4, which the router never prefers to both sides, puts out nothing. So
/// whoever of the four is not to be chosen, its twin is. In the other layers the experts are the
/// MLP with a little noise, and the router's rows are random.
fn experts_twice(layer: usize) -> Model {
    let mut t = dense();
    for l in 0..4usize {
        let mut mlp =
            |part: &str| t.remove(&format!("model.layers.{l}.mlp.{part}_proj.weight")).unwrap();
        let (gate, up, down) = (mlp("gate"), mlp("up"), mlp("down"));
        for expert in 0..5usize {
            let name = |part: &str| {
                format!("model.layers.{l}.block_sparse_moe.experts.{expert}.{part}.weight")
            };
            let own = match (l == layer, expert) {
                (true, 4) => scaled(&down, 0.0),
                (true, _) => down.clone(),
                (false, _) => {
                    (&down + noise((128, 384), (10 * l + expert) as u64 + 100, 0.01)).unwrap()
                }
            };
            [("w1", gate.clone()), ("w3", up.clone()), ("w2", own)]
                .into_iter()
                .for_each(|(part, x)| drop(t.insert(name(part), x)));
        }
        let random = noise((5, 128), l as u64 + 50, 0.1);
        let row = random.narrow(0, 0, 1).unwrap();
        let opposite = scaled(&row, -1.0);
        let twins = [row.clone(), row.clone(), opposite.clone(), opposite, scaled(&row, 0.0)];
        let router = if l == layer { Tensor::cat(&twins, 0).unwrap() } else { random };
        t.insert(format!("model.layers.{l}.block_sparse_moe.gate.weight"), router);
    }
    changed(
        &t,
        &[
            ("model_type", "mixtral".into()),
            ("architectures", serde_json::json!(["MixtralForCausalLM"])),
            ("num_local_experts", 5.into()),
            ("num_experts_per_tok", 1.into()),
        ],
    )
}

struct Planted {
    model: Model,
    of: Target,
    action: Action,
    /// Whether what is measured is the answer to an echo prompt, and not the loss on plain English.
    echo: bool,
    pair: [Component; 2],
}

fn head(layer: usize, head: usize) -> Component {
    Component::Head { layer, head }
}

fn planted(english: &Trial) -> Vec<Planted> {
    let heads = |layer, from: usize, to: usize, silenced: &[(usize, usize)]| Planted {
        model: head_twice(layer, from, to, silenced),
        of: Target::Heads,
        action: Action::Zero,
        echo: true,
        pair: [head(layer, from.min(to)), head(layer, from.max(to))],
    };
    let experts = |layer| {
        let model = experts_twice(layer);
        // The twins on whose side of the router more of the text is.
        let twins = [0, 2]
            .map(|first| [first, first + 1].map(|expert| Component::Expert { layer, expert }));
        let harm = |pair: &[Component; 2]| {
            let evaluator = ModelEvaluator::new(&model);
            Baseline::new(&evaluator, english)
                .unwrap()
                .effects(&[set_of_lesions(pair, Action::Mask)], &|_, _| {})
                .unwrap()[0]
                .nats
        };
        let pair = if harm(&twins[0]) > harm(&twins[1]) { twins[0] } else { twins[1] };
        Planted { model, of: Target::Experts, action: Action::Mask, echo: false, pair }
    };
    let mlps = Planted {
        model: mlp_twice(0),
        of: Target::Mlps,
        action: Action::Zero,
        echo: false,
        pair: [0, 1].map(|layer| Component::Mlp { layer }),
    };
    vec![
        heads(3, 0, 1, &[]),
        heads(3, 1, 0, &[]),
        heads(3, 0, 3, &[(3, 1)]),
        heads(3, 1, 3, &[(3, 0)]),
        heads(0, 3, 0, &[(3, 1)]),
        mlps,
        experts(0),
        experts(1),
        experts(2),
        experts(3),
    ]
}

/// Echo prompt (its last token is what counts), and plain English.
fn texts(model: &Model) -> (Trial, Trial) {
    let vocabulary = Vocabulary::of(model);
    let (echo, _) = EchoPrompt::ranked(model, &ModelEvaluator::new(model), &vocabulary.ordinary)
        .unwrap()
        .remove(0);
    let ids = model.encode(REFERENCE_TEXT.trim_end()).unwrap();
    (echo.baseline(), Trial::new([ids[0]], &ids[1..120]))
}

#[test]
fn ten_planted_interactions_are_found_and_reduced_to_the_two() {
    let (echo, english) = texts(&Model::load("builtin:dense").unwrap());
    let mut rng = glitch::rng::stream(7, "planted pairs");
    let (mut found, mut reduced, mut report) = (0, 0, String::new());
    for Planted { model, of, action, echo: on_echo, pair } in planted(&english) {
        let evaluator = ModelEvaluator::new(&model);
        let text = if on_echo { &echo } else { &english };
        let intact = Baseline::new(&evaluator, text).unwrap();
        let sets =
            [vec![pair[0]], vec![pair[1]], pair.to_vec()].map(|set| set_of_lesions(&set, action));
        let effects = intact.effects(&sets, &|_, _| {}).unwrap();
        let [a, b, joint] = [0, 1, 2].map(|i: usize| effects[i].nats);
        assert!(a <= HARMLESS && b <= HARMLESS, "{pair:?}: {a} and {b} alone are not harmless");
        assert!(joint >= HARMFUL, "{pair:?}: {joint} together is not harmful");

        let sweep = PairSweep::run(
            &evaluator,
            text,
            &PairOptions { target: of, action, ..Default::default() },
            &|_, _| {},
        )
        .unwrap();
        let at = sweep.rows.iter().position(|row| [row.a, row.b] == pair).unwrap();
        let row = &sweep.rows[at];
        assert_eq!((row.kind, row.joint), (PairKind::Redundant, joint));
        let first = at == 0 && row.q_value <= 0.05;
        found += usize::from(first);

        // The two and three heads or experts of other layers, drawn among those that do little harm
        // alone. (In its own layer the tokens of an expert that is not chosen go to others: without
        // those too, to others again.)
        let others: Vec<Component> = match of {
            Target::Mlps => (0..4).flat_map(|layer| (0..4).map(move |h| head(layer, h))).collect(),
            _ => sweep
                .singles
                .iter()
                .map(|(component, _)| *component)
                .filter(|c| c.layer() != pair[0].layer())
                .collect(),
        };
        let alone: Vec<Vec<Edit>> = others.iter().map(|&c| set_of_lesions(&[c], action)).collect();
        let harmless =
            intact.effects(&alone, &|_, _| {}).unwrap().into_iter().map(|e| e.nats <= HARMLESS);
        let mut others: Vec<Component> = others
            .into_iter()
            .zip(harmless)
            .filter(|(_, harmless)| *harmless)
            .map(|(c, _)| c)
            .collect();
        assert!(others.len() >= 3);
        while others.len() > 3 {
            others.remove(rng.random_range(0..others.len()));
        }
        let set: Vec<Component> = others.iter().chain(&pair).copied().collect();
        let minimal = minimal(&intact, &set, action, 0.5).unwrap();
        let exact = minimal.members == pair && minimal.one_minimal;
        reduced += usize::from(exact);
        let left = minimal.without.iter().map(|e| e.nats).fold(f64::MIN, f64::max);
        report += &format!(
            "{} and {}: {a:+.4} and {b:+.4} alone, {joint:+.4} together; place {} of {}, q {:.1e}, \
            {} flagged; reduced from {} to {}, at most {left:+.4} without one\n",
            pair[0],
            pair[1],
            at + 1,
            sweep.rows.len(),
            row.q_value,
            sweep.flagged().count(),
            set.len(),
            minimal.members.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        );
    }
    // Shown by `cargo test --test it pairs -- --nocapture`.
    println!("{report}{found} of 10 came first, {reduced} of 10 were reduced to the two");
    assert_eq!((found, reduced), (10, 10), "{report}");
}

/// The screen is one gradient a component; its ranking against the exact one, on four texts.
#[test]
fn the_screen_keeps_the_largest_interactions() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let (echo, english) = texts(&model);
    let whole: Vec<u32> = echo.base.iter().chain(echo.continuation.iter()).copied().collect();
    for (name, text) in [
        ("echo", echo),
        ("whole echo prompt", Trial::new([whole[0]], &whole[1..])),
        ("english", english),
    ] {
        let exact = PairSweep::run(
            &evaluator,
            &text,
            &PairOptions { controls: 0, ..Default::default() },
            &|_, _| {},
        )
        .unwrap();
        let components: Vec<Component> = exact.singles.iter().map(|(c, _)| *c).collect();
        let screened = screen(&evaluator, &text, &components, Action::Zero, &|_, _| {}).unwrap();
        let place = |c| components.iter().position(|known| *known == c).unwrap();
        let estimate =
            |row: &glitch::sweep::PairRow| screened.estimate((place(row.a), place(row.b))).abs();
        let mut by_size: Vec<_> = exact.rows.iter().collect();
        by_size.sort_by(|x, y| y.interaction.abs().total_cmp(&x.interaction.abs()));
        let mut by_estimate = by_size.clone();
        by_estimate.sort_by(|x, y| estimate(y).total_cmp(&estimate(x)));
        let kept = by_size[..10].iter().filter(|row| by_estimate[..30].contains(row)).count();
        println!(
            "{name}: {kept} of the 10 largest of 120 interactions are among the screen's first 30"
        );
        assert!(kept >= 8, "{name}: {kept} of 10");
    }
}

/// What the screen is made of: to first order, switching a component off is minus the derivative of
/// the loss by a factor of its output. Against finite differences, with a lesion in force.
#[test]
fn first_order_effects_are_derivatives() {
    const H: f32 = 0.02;
    for (name, lesion) in
        [("llama", "L0.head1"), ("gpt2", "L1.mlp"), ("gemma3", "L0.head0"), ("mixtral", "L1.head0")]
    {
        let model = super::parity::load(name);
        let (evaluator, config) = (ModelEvaluator::new(&model), &model.config);
        let ids: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 96).collect();
        let lesion = Edit::lesion(lesion.parse().unwrap(), Action::Zero);
        // Where a token goes to another expert the loss has a step and no derivative: the routing
        // is held.
        let held = vec![lesion, Edit::FreezeRouting]
            [..if config.experts.is_some() { 2 } else { 1 }]
            .to_vec();
        let trial = Trial::new(&ids[..4], &ids[4..]).with_edits(held.clone());
        let layers = 0..config.num_hidden_layers;
        let heads =
            layers.clone().flat_map(|l| (0..config.num_attention_heads).map(move |h| head(l, h)));
        let experts = layers.clone().flat_map(|l| {
            (0..config.num_experts(l)).map(move |expert| Component::Expert { layer: l, expert })
        });
        let components: Vec<Component> = heads
            .chain(layers.clone().map(|layer| Component::Mlp { layer }))
            .chain(experts)
            .collect();
        let first = evaluator
            .first_order(std::slice::from_ref(&trial), &components, Action::Zero)
            .unwrap()
            .remove(0);
        let scaled =
            |c: &Component, factor| {
                Request::new(trial.with_edits(
                    [&held[..], &[Edit::lesion(*c, Action::Scale { factor })]].concat(),
                ))
            };
        let requests: Vec<Request> =
            components.iter().flat_map(|c| [scaled(c, 1.0 - H), scaled(c, 1.0 + H)]).collect();
        let losses: Vec<f64> =
            evaluator.observe(&requests).unwrap().iter().map(|o| o.loss()).collect();
        let most = first.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        assert!(
            most > 1e-3 && first.iter().filter(|x| x.abs() > 0.05 * most).count() > 3,
            "{name}: {first:?}"
        );
        for ((component, first), losses) in components.iter().zip(&first).zip(losses.chunks(2)) {
            let numeric = (losses[0] - losses[1]) / f64::from(2.0 * H);
            assert!(
                (first - numeric).abs() <= 0.03 * most,
                "{name}: {component}: {first}, by differences {numeric}"
            );
        }
    }
}

/// A screened sweep measures what it is told to, and the rest counts as p = 1.
#[test]
fn a_screened_sweep_finds_what_the_exact_one_does() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let (echo, _) = texts(&model);
    let exact = PairSweep::run(&evaluator, &echo, &PairOptions::default(), &|_, _| {}).unwrap();
    let screened = PairSweep::run(
        &evaluator,
        &echo,
        &PairOptions { limit: 40, ..Default::default() },
        &|_, _| {},
    )
    .unwrap();
    assert_eq!((exact.pairs, exact.rows.len(), screened.pairs), (120, 120, 120));
    assert!(
        (40..=40 + screened.null_pairs).contains(&screened.rows.len()) && screened.null_pairs == 40,
        "{}",
        screened.rows.len()
    );
    assert!(
        exact.rows.iter().all(|row| row.estimate.is_none())
            && screened.rows.iter().all(|row| row.estimate.is_some())
    );
    // The same pairs give the same figures to the last bit, whichever way they were picked.
    let figures: BTreeMap<_, _> = exact
        .rows
        .iter()
        .map(|row| ((row.a, row.b), (row.alone_a, row.alone_b, row.joint)))
        .collect();
    for row in &screened.rows {
        assert_eq!(figures[&(row.a, row.b)], (row.alone_a, row.alone_b, row.joint));
    }
    // The built-in model's own redundancy: two heads that say a token again, either of which is
    // enough.
    let first = &exact.rows[0];
    assert_eq!((first.a, first.b, first.kind), (head(3, 0), head(3, 1), PairKind::Redundant));
    assert!(
        first.alone_a < 0.1 && first.alone_b < 0.1 && first.joint > 5.0 && first.q_value < 0.05,
        "{first:?}"
    );
    assert!(screened.rows.iter().any(|row| (row.a, row.b) == (first.a, first.b)));
    let none = PairSweep::run(
        &evaluator,
        &echo,
        &PairOptions { target: Target::Experts, ..Default::default() },
        &|_, _| {},
    );
    assert!(
        none.err().unwrap().to_string().contains("sweep pairs experts has no meaning for llama")
    );
}

/// What the mutator proposes first on the echo prompt is the model's own redundancy. The oracle
/// that judges it finds nothing in either lesion alone, and the minimizer leaves the two.
#[test]
fn a_set_that_the_mutator_proposes_needs_every_member() {
    let model = Model::load("builtin:dense").unwrap();
    let (evaluator, vocabulary) = (ModelEvaluator::new(&model), Vocabulary::of(&model));
    let (echo, _) = texts(&model);
    let tables = interactions(&evaluator, &[("echo".into(), echo.clone())], 1).unwrap();
    let (table, first) = (&tables[0], tables[0].pairs[0]);
    assert_eq!([first.a, first.b].map(|at| table.components[at]), [head(3, 0), head(3, 1)]);
    let config = &model.config;
    let context = Context {
        config,
        vocabulary: &vocabulary,
        seeds: &[],
        echo: &[],
        weights: &[],
        interactions: &tables,
        suffixes: &[],
    };
    let judge = ModelJudge::new(&evaluator, config, &vocabulary, OracleKind::LossBlowup, 5, 1e-4);
    let mut rng = glitch::rng::stream(5, "sets");
    // The first proposal that fails with both, and others that do little harm alone.
    let harmless: Vec<Component> = table
        .components
        .iter()
        .zip(&table.alone)
        .filter(|(_, a)| **a < HARMLESS)
        .map(|(c, _)| *c)
        .collect();
    let all_harmless = |trial: &Trial| {
        trial.edits.iter().all(|e| harmless.iter().any(|&c| *e == Edit::lesion(c, Action::Zero)))
    };
    let (trial, verdict) = (0..400)
        .filter_map(|_| Sets.propose(&echo, &context, &mut rng))
        .filter(|trial| {
            let has = |c| trial.edits.contains(&Edit::lesion(c, Action::Zero));
            trial.edits.len() > 2 && has(head(3, 0)) && has(head(3, 1)) && all_harmless(trial)
        })
        .find_map(|trial| {
            judge
                .judge_alone(&trial)
                .ok()
                .filter(|verdict| verdict.fails())
                .map(|verdict| (trial, verdict))
        })
        .expect("one of 400 proposals has both heads and another");
    let options =
        minimize::MinimizeOptions { max_calls: 400, ..minimize::MinimizeOptions::default() };
    let reduced = minimize::minimize(&trial, &verdict, &judge, &options).unwrap();
    let both = set_of_lesions(&[head(3, 0), head(3, 1)], Action::Zero);
    assert!(
        reduced.trial.edits.len() == 2
            && both.iter().all(|edit| reduced.trial.edits.contains(edit)),
        "{:?}",
        reduced.trial.edits
    );
    for edit in &both {
        let alone = judge.judge_alone(&reduced.trial.with_edits(vec![edit.clone()])).unwrap();
        assert!(
            !alone.fails() && alone.score < 0.25 * reduced.verdict.score,
            "{edit:?}: {alone:?}"
        );
    }
}

/// Sets in one call resume from each other's runs where that pays; alone none does.
#[test]
fn sets_that_share_lower_lesions_are_those_alone_to_the_last_bit() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let (_, english) = texts(&model);
    let weight: Component = "L1.mlp.down[5,7]".parse().unwrap();
    let lower = [
        Edit::lesion(head(0, 3), Action::Zero),
        Edit::lesion(Component::Mlp { layer: 1 }, Action::Noise { seed: 3, strength: 0.5 }),
    ];
    let mut sets: Vec<Vec<Edit>> = Vec::new();
    for component in (0..4)
        .flat_map(|l| (0..4).map(move |h| head(l, h)))
        .chain([weight, Component::Neuron { layer: 3, neuron: 9 }])
    {
        sets.push([&lower[..1], &[Edit::lesion(component, Action::Mean)]].concat());
        sets.push([&lower[..], &[Edit::lesion(component, Action::Scale { factor: 2.0 })]].concat());
    }
    let requests: Vec<Request> =
        sets.iter().map(|edits| Request::new(english.with_edits(edits.clone()))).collect();
    let together = evaluator.observe(&requests).unwrap();
    for (request, together) in requests.iter().zip(together) {
        let alone = evaluator.observe_alone(request).unwrap();
        assert_eq!(
            (together.log_probs, together.entropy),
            (alone.log_probs, alone.entropy),
            "{:?}",
            request.trial.edits
        );
    }
}
