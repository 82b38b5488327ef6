//! Faults planted in the built-in model, one at a time: the implication sees the two runs and not the
//! edit, and must name the component it was planted in.

use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::ModelEvaluator;
use glitch::implicate::{Options, implicate};
use glitch::model::Model;
use rand::Rng as _;

/// Strongest by the mean of both directions; equals in the order of the set.
fn first(implication: &glitch::implicate::Implication) -> Component {
    implication.set[0]
}

#[test]
fn the_planted_component_comes_first_in_19_of_20() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let prompts = [
        "The people of the United States have always been",
        "And it came to pass in those days that there went out",
        "She was not a woman of many words, for, unlike people in general",
    ];
    let mut rng = glitch::rng::stream(7, "planted faults");
    let (mut found, mut missed) = (0, Vec::new());
    let mut n = 0;
    while n < 20u32 {
        let layer = rng.random_range(0..4);
        let component = match n % 4 {
            0 | 1 => Component::Head { layer, head: rng.random_range(0..4) },
            2 => Component::Mlp { layer },
            _ => Component::Neuron { layer, neuron: rng.random_range(0..384) },
        };
        let action = match (n / 4) % 3 {
            0 => Action::Zero,
            1 => Action::Scale { factor: 5.0 },
            _ => Action::Noise { seed: u64::from(n), strength: 2.0 },
        };
        let ids = model.encode(prompts[n as usize % 3]).unwrap();
        let (base, continuation) = ids.split_at(ids.len() - 4);
        let trial = Trial::new(base, continuation).with_edits(vec![Edit::lesion(component, action)]);
        let implication = implicate(&evaluator, &trial, &Options { neurons: 384, ..Options::default() }).unwrap();
        // A neuron that is silent on this text is no fault there: nothing differs between the runs, and
        // another is drawn.
        if implication.set.is_empty() {
            continue;
        }
        n += 1;
        if first(&implication) == component {
            found += 1;
        } else {
            missed.push(format!("{component} {action:?}: {} named", first(&implication)));
        }
    }
    // Shown by `cargo test --test it planted -- --nocapture`.
    println!("{found} of {n} planted components came first");
    assert!(found >= 19, "{found} of 20; missed: {missed:#?}");
}
