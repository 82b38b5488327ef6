//! Faults planted in the built-in models, one at a time: patching sees the two runs and not the
//! edit, and must find the component that the fault was planted in to be the strongest. (It is not
//! named then: what mediates a lesion is looked for outside it.)

use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::ModelEvaluator;
use glitch::localize::{LocalizeOptions, localize, rank};
use glitch::model::Model;
use glitch::rng::Rng;
use rand::Rng as _;

const PROMPTS: [&str; 3] = [
    "The people of the United States have always been",
    "And it came to pass in those days that there went out",
    "She was not a woman of many words, for, unlike people in general",
];

/// Plants `count` faults in a model and returns how many were named first, and which components
/// were named in place of the others. Zero, five times the output, and noise of twice its norm take
/// turns.
fn plant(
    name: &str,
    count: usize,
    draw: impl Fn(&mut Rng, usize) -> Component,
) -> (usize, Vec<String>) {
    let model = Model::load(name).unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let mut rng = glitch::rng::stream(7, "planted faults");
    let (mut found, mut missed, mut n, mut drawn) = (0, Vec::new(), 0, 0);
    while n < count {
        drawn += 1;
        assert!(drawn < 20 * count, "{name}: nothing to plant a fault in");
        let component = draw(&mut rng, n);
        let action = match (n / 4) % 3 {
            0 => Action::Zero,
            1 => Action::Scale { factor: 5.0 },
            _ => Action::Noise { seed: n as u64, strength: 2.0 },
        };
        let ids = model.encode(PROMPTS[n % 3]).unwrap();
        let (base, continuation) = ids.split_at(ids.len() - 4);
        let trial =
            Trial::new(base, continuation).with_edits(vec![Edit::lesion(component, action)]);
        let localization = localize(
            &evaluator,
            &trial,
            &[],
            &[],
            &LocalizeOptions { neurons: 384, graph: false, ..LocalizeOptions::default() },
        )
        .unwrap();
        // The lesion of a neuron that is inactive on this text, or of an expert that nothing is
        // routed to, makes no difference between the runs: another component is drawn.
        let strongest = rank(&localization.effects).into_iter().next();
        let Some(first) = strongest else { continue };
        assert!(!localization.set.contains(&component));
        n += 1;
        if first == component {
            found += 1;
        } else {
            missed.push(format!("{component} {action:?}: {first} named"));
        }
    }
    // Shown by `cargo test --test it planted -- --ignored --nocapture`.
    println!("{found} of {n} planted components of {name} came first");
    (found, missed)
}

#[test]
#[ignore = "an experiment of many runs: .ci/run makes it, and `cargo test -- --ignored`"]
fn the_planted_component_comes_first_in_19_of_20() {
    let (found, missed) = plant("builtin:dense", 20, |rng, n| {
        let layer = rng.random_range(0..4);
        match n % 4 {
            0 | 1 => Component::Head { layer, head: rng.random_range(0..4) },
            2 => Component::Mlp { layer },
            _ => Component::Neuron { layer, neuron: rng.random_range(0..384) },
        }
    });
    assert!(found >= 19, "{found} of 20; missed: {missed:#?}");
}

/// Five of each kind: experts, routers, states of channels (Mamba), heads (RWKV).
#[test]
#[ignore = "an experiment of many runs: .ci/run makes it, and `cargo test -- --ignored`"]
fn of_experts_routers_states_and_heads_19_of_20_come_first() {
    let moe = plant("builtin:moe", 10, |rng, n| {
        let layer = rng.random_range(0..4);
        match n % 2 {
            0 => Component::Expert { layer, expert: rng.random_range(0..8) },
            _ => Component::Router { layer },
        }
    });
    let mamba = plant("builtin:mamba", 5, |rng, _| Component::State {
        layer: rng.random_range(0..7),
        part: Some(rng.random_range(0..256)),
    });
    let rwkv = plant("builtin:rwkv", 5, |rng, _| Component::Head {
        layer: rng.random_range(0..4),
        head: rng.random_range(0..4),
    });
    let (found, missed) = [moe, mamba, rwkv].into_iter().fold(
        (0, Vec::new()),
        |(found, mut missed), (more, others)| {
            missed.extend(others);
            (found + more, missed)
        },
    );
    assert!(found >= 19, "{found} of 20; missed: {missed:#?}");
}
