//! Interactions planted in the built-in model by making one component twice, so that each backs up
//! the other: harmless alone, harmful together, first in the sweep, and all that is left of a
//! larger set.

use std::collections::BTreeMap;

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

use super::backups::{Planted, head, planted};

/// The largest loss increase, nats per token, without one of the two.
const HARMLESS: f64 = 0.1;
/// The smallest loss increase without both.
const HARMFUL: f64 = 0.2;

/// Returns an echo prompt, whose last token is measured, and plain English.
fn texts(model: &Model) -> (Trial, Trial) {
    let vocabulary = Vocabulary::of(model);
    let (echo, _) = EchoPrompt::ranked(model, &ModelEvaluator::new(model), &vocabulary.ordinary)
        .unwrap()
        .remove(0);
    let ids = model.encode(REFERENCE_TEXT.trim_end()).unwrap();
    (echo.baseline(), Trial::new([ids[0]], &ids[1..120]))
}

#[test]
#[ignore = "an experiment of many runs: .ci/run makes it, and `cargo test -- --ignored`"]
fn ten_planted_interactions_are_found_and_reduced_to_the_two() {
    let (echo, english) = texts(&Model::load("builtin:dense").unwrap());
    let mut rng = glitch::rng::stream(7, "planted pairs");
    let (mut found, mut reduced, mut report) = (0, 0, String::new());
    for Planted { model, target, action, on_echo, pair } in planted(&english) {
        let evaluator = ModelEvaluator::new(&model);
        let text = if on_echo { &echo } else { &english };
        let baseline = Baseline::new(&evaluator, text).unwrap();
        let sets =
            [vec![pair[0]], vec![pair[1]], pair.to_vec()].map(|set| set_of_lesions(&set, action));
        let effects = baseline.effects(&sets, &|_, _| {}).unwrap();
        let [a, b, joint] = [0, 1, 2].map(|i: usize| effects[i].nats);
        assert!(a <= HARMLESS && b <= HARMLESS, "{pair:?}: {a} and {b} alone are not harmless");
        assert!(joint >= HARMFUL, "{pair:?}: {joint} together is not harmful");

        let sweep = PairSweep::run(
            &evaluator,
            text,
            &PairOptions { target, action, ..Default::default() },
            &|_, _| {},
        )
        .unwrap();
        let at = sweep.rows.iter().position(|row| [row.a, row.b] == pair).unwrap();
        let row = &sweep.rows[at];
        assert_eq!((row.kind, row.joint), (PairKind::Redundant, joint));
        let first = at == 0 && row.q_value <= 0.05;
        found += usize::from(first);

        // The two, and three heads or experts of other layers that do little harm alone. (In its
        // own layer the tokens of a masked expert go to other experts, and if those are masked too,
        // to others again.)
        let others: Vec<Component> = match target {
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
            baseline.effects(&alone, &|_, _| {}).unwrap().into_iter().map(|e| e.nats <= HARMLESS);
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
        let minimal = minimal(&baseline, &set, action, 0.5).unwrap();
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
    // Shown by `cargo test --test it pairs -- --ignored --nocapture`.
    println!("{report}{found} of 10 came first, {reduced} of 10 were reduced to the two");
    assert_eq!((found, reduced), (10, 10), "{report}");
}

/// Compares the ranking of the screen, one gradient a component, with the exact one on three texts.
#[test]
#[ignore = "an experiment of many runs: .ci/run makes it, and `cargo test -- --ignored`"]
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
        let screened =
            screen(&evaluator, &text, &components, Action::Zero, usize::MAX, &|_, _| {}).unwrap();
        let place = |c| components.iter().position(|known| *known == c).unwrap();
        let estimate = |row: &glitch::sweep::PairRow| {
            screened.estimate((place(row.a), place(row.b))).unwrap().abs()
        };
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

/// To first order, ablating a component changes the loss by minus its derivative by a factor of the
/// component's output. Compared with finite differences, with a lesion in force.
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
        let largest = first.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        assert!(
            largest > 1e-3 && first.iter().filter(|x| x.abs() > 0.05 * largest).count() > 3,
            "{name}: {first:?}"
        );
        for ((component, first), losses) in components.iter().zip(&first).zip(losses.chunks(2)) {
            let numeric = (losses[0] - losses[1]) / f64::from(2.0 * H);
            assert!(
                (first - numeric).abs() <= 0.03 * largest,
                "{name}: {component}: {first}, by differences {numeric}"
            );
        }
    }
}

/// A screened sweep measures as many pairs as it is told to, and the rest counts as p = 1.
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
    // The built-in model's own redundancy: two heads that repeat a token, either of which is
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

/// On the echo prompt the mutator first proposes the model's own redundancy. Its oracle finds
/// nothing in either lesion alone, and the minimizer leaves the two.
#[test]
fn a_set_that_the_mutator_proposes_needs_every_member() {
    let model = Model::load("builtin:dense").unwrap();
    let (evaluator, vocabulary) = (ModelEvaluator::new(&model), Vocabulary::of(&model));
    let (echo, _) = texts(&model);
    let tables = interactions(&evaluator, &[("echo".into(), echo.clone())], 1, None).unwrap();
    let (table, first) = (&tables[0], tables[0].pairs[0]);
    assert_eq!([first.a, first.b].map(|at| table.components[at]), [head(3, 0), head(3, 1)]);
    let config = &model.config;
    let context = Context {
        config,
        vocabulary: &vocabulary,
        seeds: &[],
        echo: &[],
        weights: &[],
        stored: None,
        interactions: &tables,
        suffixes: &[],
        routing: &[],
        layers: None,
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

/// Sets in one call resume from each other's forwards where that saves layers; alone none does.
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

/// The limit bounds the screen and the single lesions too; what the screen did not look at has no
/// estimate and is measured only as a random pair.
#[test]
fn a_small_limit_is_little_work() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let (echo, _) = texts(&model);
    let phases = std::cell::RefCell::new(Vec::new());
    let progress = |_: u64, total: u64| phases.borrow_mut().push(total);
    let options = PairOptions { limit: 3, controls: 0, ..Default::default() };
    let sweep = PairSweep::run(&evaluator, &echo, &options, &progress).unwrap();
    assert!(phases.borrow()[0] == 3 && phases.borrow().iter().all(|n| *n <= 12), "{phases:?}");
    assert!((3..=6).contains(&sweep.rows.len()) && sweep.singles.len() <= 12);
    assert!(sweep.rows.iter().filter(|row| row.estimate.is_some()).count() >= 3);
    assert_eq!((sweep.pairs, sweep.components, sweep.complete), (120, 16, true));
    // Too few pairs to say what is ordinary.
    assert!(sweep.rows.iter().all(|row| row.q_value == 1.0));
}

/// A sweep that is ended has judged what it measured, and measures the same when it goes on.
#[test]
fn an_ended_sweep_keeps_what_it_has() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let (echo, _) = texts(&model);
    let options = PairOptions { controls: 0, ..Default::default() };
    let mut seen = Vec::new();
    let whole = PairSweep::run_with(&evaluator, &echo, &options, &|_, _| {}, &mut |sweep| {
        seen.push((sweep.rows.len(), sweep.complete));
        Ok(true)
    });
    assert_eq!(seen, [(64, false), (120, true)]);
    let ended =
        PairSweep::run_with(&evaluator, &echo, &options, &|_, _| {}, &mut |_| Ok(false)).unwrap();
    assert_eq!((ended.rows.len(), ended.complete, ended.pairs), (64, false, 120));
    let whole = whole.unwrap();
    for row in &ended.rows {
        let other = whole.rows.iter().find(|r| (r.a, r.b) == (row.a, row.b)).unwrap();
        assert_eq!((row.joint, row.interaction), (other.joint, other.interaction));
    }
    assert!(ended.null_pairs == 64 && ended.rows.iter().any(|row| row.q_value < 1.0));
}
