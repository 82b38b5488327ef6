//! Lesions of state spaces and RWKV: they land, they are what they say, and they are per row.

use std::collections::BTreeSet;

use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::{Evaluator, ModelEvaluator, Patch, Request};
use glitch::model::Model;
use glitch::model::hooks::Site;
use glitch::sweep::{LesionOptions, LesionSweep, PairOptions, PairSweep, Target};

use super::parity::load;

const FAMILIES: [&str; 7] = ["mamba", "mamba2", "falcon-mamba", "jamba", "rwkv4", "rwkv6", "rwkv7"];

fn trial() -> Trial {
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 96).collect();
    Trial::new(&ids[..30], &ids[30..])
}

/// One of every kind that the first recurrent layer has.
fn components(model: &Model) -> Vec<Component> {
    let layer = (0..model.config.num_hidden_layers)
        .find(|layer| model.config.state_parts(*layer).0 > 0)
        .unwrap();
    let all = [
        Component::Head { layer, head: 1 },
        Component::Channel { layer, channel: 5 },
        model.config.mixer(layer),
        Component::Conv { layer },
        Component::Gate { layer },
        Component::Dt { layer },
        Component::Shift { layer },
        Component::ChannelShift { layer },
        Component::ChannelMix { layer },
        Component::State { layer, part: None },
        Component::State { layer, part: Some(1) },
    ];
    let matrices = glitch::edit::Matrix::ALL.map(|matrix| Component::Weight {
        layer,
        matrix,
        out: 3,
        input: 2,
    });
    all.into_iter().chain(matrices).filter(|c| model.config.has(c)).collect()
}

fn lesions(model: &Model) -> Vec<Edit> {
    let actions = [
        Action::Zero,
        Action::Mean,
        Action::Resample { seed: 1 },
        Action::Scale { factor: 3.0 },
        Action::Noise { seed: 1, strength: 1.0 },
    ];
    let edits = |component| actions.into_iter().map(move |action| Edit::lesion(component, action));
    let at = |component| Edit::Lesion {
        component,
        action: Action::Scale { factor: 3.0 },
        position: Some(20),
    };
    let state = components(model).into_iter().filter(|c| matches!(c, Component::State { .. }));
    let carry =
        state.map(|component| Edit::CarryState { component, position: 20, from: vec![7, 8, 9] });
    // One weight may well do nothing at one position: that of a silent neuron, say.
    let silent = |c: &Component| matches!(c, Component::Weight { .. });
    let placed = components(model).into_iter().filter(|c| !silent(c)).map(at);
    // A weight is the same in any text.
    let resampled = |edit: &Edit| match edit {
        Edit::Lesion { component, action, .. } => {
            silent(component) && matches!(action, Action::Resample { .. })
        }
        _ => false,
    };
    let all = components(model).into_iter().flat_map(edits).filter(|edit| !resampled(edit));
    all.chain(placed).chain(carry).collect()
}

#[test]
fn every_lesion_lands_and_a_batch_equals_each_alone() {
    for name in FAMILIES {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let request = |edits| Request::new(trial().with_edits(edits)).generating(3);
        let baseline = evaluator.observe_alone(&request(vec![])).unwrap();
        let edits = lesions(&model);
        assert!(edits.len() > 30, "{name}");
        let requests: Vec<Request> = edits.iter().map(|edit| request(vec![edit.clone()])).collect();
        for ((edit, request), batched) in
            edits.iter().zip(&requests).zip(evaluator.observe(&requests).unwrap())
        {
            let alone = evaluator.observe_alone(request).unwrap();
            assert_ne!(alone.log_probs, baseline.log_probs, "{name}: {edit:?} did nothing");
            assert!(alone.finite, "{name}: {edit:?}");
            assert_eq!(
                (&batched.log_probs, &batched.entropy),
                (&alone.log_probs, &alone.entropy),
                "{name}: {edit:?}"
            );
            assert_eq!(batched.generated, alone.generated, "{name}: {edit:?}");
        }
        let again = evaluator.observe_alone(&request(vec![])).unwrap();
        assert_eq!(again.log_probs, baseline.log_probs, "{name}: an edit left something behind");
    }
}

/// Token edits start from the states kept every so-many positions; alone they start from nothing.
#[test]
fn a_shared_prefix_changes_nothing() {
    for name in FAMILIES {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let edits = (1..30).map(|position| Edit::Replace { position, id: 90 });
        let requests: Vec<Request> =
            edits.map(|e| Request::new(trial().with_edits(vec![e])).generating(3)).collect();
        let before = evaluator.tokens();
        let batch = evaluator.observe(&requests).unwrap();
        let computed = evaluator.tokens() - before;
        assert!(computed < 29 * 65, "{name}: {computed} tokens: nothing was shared");
        for (request, batched) in requests.iter().zip(batch) {
            let alone = evaluator.observe_alone(request).unwrap();
            assert_eq!(
                (batched.log_probs, batched.generated),
                (alone.log_probs, alone.generated),
                "{name}: {:?}",
                request.trial.edits
            );
        }
    }
}

#[test]
fn a_component_patched_with_itself_leaves_every_bit() {
    for name in FAMILIES {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let baseline = evaluator.observe_alone(&Request::new(trial())).unwrap();
        let run = evaluator.activations(&trial(), &[]).unwrap();
        let mut compared = 0;
        for component in components(&model) {
            let Some(values) = run.output(&component, 0..run.positions, &model.config) else {
                continue;
            };
            let patch = Patch { component, first: 0, values: values.into() };
            let observed =
                evaluator.observe_alone(&Request::new(trial()).patched(vec![patch])).unwrap();
            assert_eq!(observed.log_probs, baseline.log_probs, "{name}: {component}");
            compared += 1;
        }
        assert!(compared >= 5, "{name}");
    }
}

/// The state is changed where and as the edit says: not before, not elsewhere, and what is carried
/// over is what the other tokens leave.
#[test]
fn states_are_what_the_edits_say() {
    for name in FAMILIES {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let component = components(&model)
            .into_iter()
            .find(|c| matches!(c, Component::State { part: Some(_), .. }))
            .unwrap();
        let of = |trial: &Trial, at: usize| {
            evaluator
                .activations(trial, &[])
                .unwrap()
                .output(&component, at..at + 1, &model.config)
                .unwrap()
        };
        let zeroed = trial().with_edits(vec![Edit::Lesion {
            component,
            action: Action::Zero,
            position: Some(12),
        }]);
        assert_eq!(of(&zeroed, 11), of(&trial(), 11), "{name}");
        assert!(
            of(&zeroed, 12).iter().all(|x| *x == 0.0) && of(&trial(), 12).iter().any(|x| *x != 0.0),
            "{name}"
        );
        assert_ne!(of(&zeroed, 13), of(&trial(), 13), "{name}");

        let from = vec![3u32, 1, 4, 1, 5];
        let carried = trial().with_edits(vec![Edit::CarryState {
            component,
            position: 12,
            from: from.clone(),
        }]);
        assert_eq!(of(&carried, 11), of(&trial(), 11), "{name}");
        assert_eq!(of(&carried, 12), of(&Trial::new(from, []), 4), "{name}");

        // Nothing before the position of a lesion can know of it.
        let late = trial().with_edits(vec![Edit::Lesion {
            component,
            action: Action::Zero,
            position: Some(33),
        }]);
        let observe = |trial: &Trial| {
            evaluator.observe_alone(&Request::new(trial.clone())).unwrap().log_probs
        };
        let (plain, late) = (observe(&trial()), observe(&late));
        assert_eq!(plain[..3], late[..3], "{name}");
        assert_ne!(plain[4..], late[4..], "{name}");
    }
}

/// A head of RWKV without its state has nothing but the present: what it puts out does not depend
/// on what came before (with token shift off, which looks back one token).
#[test]
fn without_state_and_shift_there_is_no_past() {
    for name in ["rwkv6", "rwkv7"] {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let blind: Vec<Edit> = (0..model.config.num_hidden_layers)
            .flat_map(|layer| {
                [
                    Component::State { layer, part: None },
                    Component::Shift { layer },
                    Component::ChannelShift { layer },
                ]
            })
            .map(|component| Edit::lesion(component, Action::Zero))
            .collect();
        let last = |prefix: &[u32], edits: &[Edit]| {
            let ids: Vec<u32> = prefix.iter().copied().chain([50]).collect();
            let request = Request::new(Trial::new(ids, [60]).with_edits(edits.to_vec()));
            evaluator.observe_alone(&request).unwrap().log_probs
        };
        let (one, other) = ([1u32, 2, 3].as_slice(), [80u32, 70, 60, 50].as_slice());
        assert_ne!(last(one, &[]), last(other, &[]), "{name}");
        if name == "rwkv6" {
            assert_eq!(last(one, &blind), last(other, &blind), "{name}");
        } else {
            // Version 7 reads the state after the token has been written into it, so nothing is
            // read at all.
            let z = Component::Head { layer: 0, head: 0 };
            let run = evaluator
                .activations(&Trial::new([1, 2, 3], []).with_edits(blind.clone()), &[])
                .unwrap();
            assert!(run.output(&z, 0..3, &model.config).unwrap().iter().all(|x| x.is_finite()));
            assert_eq!(last(one, &blind), last(other, &blind), "{name}");
        }
    }
}

#[test]
fn a_sweep_of_states_has_every_part_and_is_refused_where_there_are_none() {
    for (name, target, count) in [
        ("mamba", Target::States, 128),
        ("mamba2", Target::States, 8),
        ("rwkv7", Target::States, 6),
        ("rwkv7", Target::Heads, 6),
        ("rwkv7", Target::Mlps, 2),
        ("jamba", Target::Heads, 8),
        ("jamba", Target::Blocks, 8),
        ("mamba", Target::Blocks, 2),
        ("rwkv7", Target::Blocks, 4),
    ] {
        let model = load(name);
        let ids: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 96).collect();
        let (evaluator, options) = (ModelEvaluator::new(&model), LesionOptions::new(target));
        let sweep = LesionSweep::run(&evaluator, &[ids], &options, &|_, _| {}).unwrap();
        let named: BTreeSet<Component> = sweep.rows.iter().map(|row| row.component).collect();
        assert_eq!((named.len(), sweep.rows.len()), (count, count), "{name} {target:?}");
    }
    for (name, target) in [
        ("llama", Target::States),
        ("mamba", Target::Heads),
        ("mamba", Target::Mlps),
        ("rwkv7", Target::Experts),
    ] {
        let model = load(name);
        let (evaluator, options) = (ModelEvaluator::new(&model), LesionOptions::new(target));
        let refused = LesionSweep::run(&evaluator, &[vec![1, 2, 3]], &options, &|_, _| {});
        let error = refused.err().unwrap().to_string();
        assert!(error.contains("has no meaning for"), "{name} {target:?}: {error}");
    }
    let (model, options) =
        (load("mamba"), PairOptions { target: Target::States, ..PairOptions::default() });
    let text = Trial::new([1, 2], [3, 4]);
    let refused = PairSweep::run(&ModelEvaluator::new(&model), &text, &options, &|_, _| {})
        .err()
        .unwrap()
        .to_string();
    assert_eq!(
        refused,
        "8128 pairs of states are more than the limit of 4096, and states have no gradient to pick \
        some by"
    );
    let model = load("rwkv7");
    let sweep = PairSweep::run(&ModelEvaluator::new(&model), &text, &options, &|_, _| {}).unwrap();
    assert_eq!((sweep.rows.len(), sweep.pairs), (15, 15));
}

/// The sites of a state are not kept where they would take more than there is room for; here they
/// do.
#[test]
fn states_are_captured_with_the_rest() {
    let model = load("rwkv7");
    let run = ModelEvaluator::new(&model).activations(&trial(), &[]).unwrap();
    let (parts, size) = model.config.state_parts(0);
    assert_eq!(run.sites[&(0, Site::State)].len(), run.positions * parts * size);
}

/// A state that is scaled up grows, one without memory forgets; observed alike alone and in a
/// batch.
#[test]
fn growth_and_forgetting_are_observed() {
    use glitch::oracle::OracleKind;
    for name in ["mamba", "mamba2", "rwkv6", "rwkv7"] {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let lesion = |action, position| {
            let layers = 0..model.config.num_hidden_layers;
            let state = |layer| Edit::Lesion {
                component: Component::State { layer, part: None },
                action,
                position,
            };
            layers.map(state).collect::<Vec<_>>()
        };
        let request = |edits: Vec<Edit>| {
            let mut request = Request::new(trial().with_edits(edits));
            request.memory = true;
            request
        };
        let requests = [
            request(vec![]),
            request(lesion(Action::Scale { factor: 1e3 }, Some(38))),
            request(lesion(Action::Zero, Some(36))),
        ];
        let batch = evaluator.observe(&requests).unwrap();
        for (request, batched) in requests.iter().zip(&batch) {
            let alone = evaluator.observe_alone(request).unwrap();
            assert_eq!(
                (&alone.state_norms, alone.memory),
                (&batched.state_norms, batched.memory),
                "{name}"
            );
        }
        let score =
            |kind: OracleKind, o: &glitch::evaluate::Observation| kind.oracle().score(o, &batch[0]);
        assert_eq!(
            (score(OracleKind::StateBlowup, &batch[0]), score(OracleKind::StateMemory, &batch[0])),
            (0.0, 0.0),
            "{name}"
        );
        let growth = score(OracleKind::StateBlowup, &batch[1]);
        assert!((growth - 1e3f64.ln()).abs() < 0.5, "{name}: grown by {growth}");
        assert!(
            batch[2].memory < batch[0].memory,
            "{name}: {:?} after forgetting, {:?}",
            batch[2].memory,
            batch[0].memory
        );
    }
}
