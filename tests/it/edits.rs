//! Every edit proves that it landed, and every restore is exact: interventions that silently do
//! nothing are the classic bug of tools like this one. That a lesion does the right thing is
//! checked against checkpoints without the same weights, in `cut_out.rs`.

use glitch::case::check_edit;
use glitch::edit::{
    Action, AttentionKnockout, Component, Edit, EmbeddingChange, InLayer, Matrix, ResidualSite,
    Steering, SteeringChange, SteeringVector, Trial,
};
use glitch::evaluate::{
    Evaluator, ModelEvaluator, Observation, Patch, REFERENCE_TEXT, Request, Variant, hook_name,
};
use glitch::model::batch::Row;
use glitch::model::hooks::Site;
use glitch::model::{Forward, Model};
use glitch::vocabulary::Splits;

use super::parity::load;

fn model() -> Model {
    Model::load("builtin:dense").unwrap()
}

fn load_any(name: &str) -> Model {
    match name.strip_prefix("tests/fixtures/") {
        Some(fixture) => load(fixture),
        None => Model::load(name).unwrap(),
    }
}

fn prompt(model: &Model) -> Trial {
    let ids = model.encode("The people of the United States have always been").unwrap();
    let (base, continuation) = ids.split_at(ids.len() - 3);
    Trial::new(base, continuation)
}

fn components() -> Vec<Component> {
    vec![
        Component::Embed,
        Component::Head { layer: 1, head: 2 },
        Component::Attention { layer: 2 },
        Component::Mlp { layer: 3 },
        Component::Neuron { layer: 0, neuron: 17 },
        Component::Weight { layer: 1, matrix: Matrix::Q, out: 3, input: 5 },
        Component::Weight { layer: 1, matrix: Matrix::K, out: 3, input: 5 },
        Component::Weight { layer: 1, matrix: Matrix::V, out: 3, input: 5 },
        Component::Weight { layer: 1, matrix: Matrix::O, out: 3, input: 5 },
        Component::Weight { layer: 1, matrix: Matrix::Gate, out: 3, input: 5 },
        Component::Weight { layer: 1, matrix: Matrix::Up, out: 3, input: 5 },
        Component::Weight { layer: 1, matrix: Matrix::Down, out: 3, input: 5 },
    ]
}

/// Every change of the residual stream, everywhere and at one position.
fn steering() -> Vec<Edit> {
    let mut edits = Vec::new();
    for (layer, at) in [(0, InLayer::Pre), (1, InLayer::Mid), (2, InLayer::Post)] {
        for change in [
            SteeringChange::Add { strength: 2.0 },
            SteeringChange::Remove,
            SteeringChange::Clamp { value: 2.0 },
        ] {
            for (position, seed) in [(None, 1), (Some(2), 2)] {
                let site = ResidualSite { layer, at };
                let vector = SteeringVector::Random { seed, norm: 3.0 };
                edits
                    .push(Edit::Steering { steering: Steering { site, vector, change }, position });
            }
        }
    }
    edits
}

fn edits() -> Vec<Edit> {
    let mut edits = vec![
        Edit::Replace { position: 2, id: 900 },
        Edit::Insert { position: 2, id: 900 },
        Edit::Delete { position: 2 },
        Edit::Retokenize { position: 2, pieces: vec![900, 901, 902] },
        Edit::Embedding { position: 2, change: EmbeddingChange::Noise { seed: 1, strength: 0.5 } },
        Edit::Embedding {
            position: 2,
            change: EmbeddingChange::Direction { from: 700, to: 900, strength: 0.5 },
        },
        Edit::Embedding {
            position: 2,
            change: EmbeddingChange::Towards { id: 900, strength: 0.5 },
        },
    ];
    for component in components() {
        for action in [
            Action::Zero,
            Action::Mean,
            Action::Scale { factor: 3.0 },
            Action::Noise { seed: 1, strength: 1.0 },
        ] {
            edits.push(Edit::lesion(component, action));
        }
        edits.push(match component {
            // The lowest bits of the exponent are of moderate effect.
            Component::Weight { .. } => Edit::lesion(component, Action::Flip { bit: 5 }),
            _ => Edit::lesion(component, Action::Resample { seed: 1 }),
        });
    }
    edits.extend(steering());
    for component in [Component::Head { layer: 1, head: 2 }, Component::Attention { layer: 2 }] {
        for (position, key) in [(None, 2), (Some(5), 1)] {
            edits.push(Edit::AttentionKnockout(AttentionKnockout { component, position, key }));
        }
    }
    edits
}

fn same(a: &Observation, b: &Observation, what: &str) {
    assert_eq!(
        (&a.log_probs, &a.entropy, &a.divergence_bits),
        (&b.log_probs, &b.entropy, &b.divergence_bits),
        "{what}"
    );
}

#[test]
fn every_edit_moves_the_output() {
    let model = model();
    let evaluator = ModelEvaluator::new(&model);
    let trial = prompt(&model);
    let baseline = evaluator.observe_alone(&Request::new(trial.clone())).unwrap();
    for edit in edits() {
        let observed =
            evaluator.observe_alone(&Request::new(trial.with_edits(vec![edit.clone()]))).unwrap();
        assert_ne!(observed.log_probs, baseline.log_probs, "{edit:?} did nothing");
        assert!(observed.finite, "{edit:?}");
    }
    let again = evaluator.observe_alone(&Request::new(trial)).unwrap();
    same(&again, &baseline, "an edit left something behind");
}

/// A resampled component has the output that it has in a stretch of the reference text.
#[test]
fn a_resampled_component_is_as_in_a_stretch_of_the_reference_text() {
    for name in ["builtin:dense", "tests/fixtures/mamba2", "tests/fixtures/olmoe"] {
        let model = load_any(name);
        let (evaluator, config) = (ModelEvaluator::new(&model), &model.config);
        let text = match &model.tokenizer {
            Some(_) => model.encode(REFERENCE_TEXT).unwrap(),
            None => (0..128).map(|i| (i * 7919 % config.vocab_size) as u32).collect(),
        };
        let bos = config.bos_token_id.filter(|bos| text[0] == *bos);
        let text = &text[usize::from(bos.is_some())..];
        let stretch = |start: usize| -> Vec<u32> {
            let tokens = text.iter().cycle().skip(start).copied();
            bos.into_iter().chain(tokens).take(12).collect()
        };
        let block = config.mixer(1);
        let resampled = |trial: &Trial, component, position| {
            let action = Action::Resample { seed: 3 };
            let edits = vec![Edit::Lesion { component, action, position }];
            evaluator.observe_alone(&Request::new(trial.with_edits(edits))).unwrap()
        };
        // In the stretch itself resampling changes nothing, in others it does.
        let unchanged = |start: &usize| {
            let trial = Trial::new(stretch(*start), [1, 2]);
            let baseline = evaluator.observe_alone(&Request::new(trial.clone())).unwrap();
            resampled(&trial, block, Some(11)).log_probs == baseline.log_probs
        };
        let starts: Vec<usize> = (0..text.len()).filter(unchanged).collect();
        let [start] = starts[..] else { panic!("{name}: {starts:?}") };
        // Elsewhere it is what a patch with its output there is.
        let run = evaluator.activations(&Trial::new(stretch(start), []), &[]).unwrap();
        let trial = Trial::new(stretch(start + 40), [1, 2]);
        let mut components = vec![block, Component::Head { layer: 0, head: 1 }];
        components.extend(config.mlp(0));
        if config.experts.is_some() {
            components.push(Component::Expert { layer: 0, expert: 1 });
            components.push(Component::Router { layer: 1 });
        }
        if config.state_parts(0).0 > 0 {
            components.push(Component::State { layer: 0, part: Some(1) });
        }
        for component in components.into_iter().filter(|component| config.has(component)) {
            for (position, positions) in [(None, 0..12), (Some(5), 5..6)] {
                let values = run.output(&component, positions.clone(), config).unwrap().into();
                let patch = Patch { component, first: positions.start, values };
                // A lesion everywhere acts in the continuation too, which nothing is read after.
                let trial = Trial::new(trial.base.clone(), [1]);
                let request = Request { patches: vec![patch], ..Request::new(trial.clone()) };
                let patched = evaluator.observe_alone(&request).unwrap();
                let lesioned = resampled(&trial, component, position);
                assert_eq!(
                    lesioned.log_probs, patched.log_probs,
                    "{name} {component} {position:?}"
                );
            }
        }
    }
}

/// A flipped bit is the weight scaled by a power of two, or turned round; where the file has no
/// bits of a weight, it is refused.
#[test]
fn a_flipped_bit_changes_the_weight_as_stored() {
    let model = model();
    let evaluator = ModelEvaluator::new(&model);
    let trial = prompt(&model);
    let weight = Component::Weight { layer: 1, matrix: Matrix::Down, out: 3, input: 5 };
    let value = model.weight(1, Matrix::Down, 3, 5);
    let stored = model.stored.unwrap();
    let observed = |action| {
        let edits = vec![Edit::lesion(weight, action)];
        evaluator.observe_alone(&Request::new(trial.with_edits(edits))).unwrap().log_probs
    };
    let sign = observed(Action::Flip { bit: 0 });
    assert_eq!(sign, observed(Action::Scale { factor: -1.0 }));
    let lowest = stored.exponent_bits();
    let factor = model.flipped(value, lowest).unwrap() / value;
    assert!([0.5, 2.0].contains(&factor), "{factor}");
    assert_eq!(observed(Action::Flip { bit: lowest }), observed(Action::Scale { factor }));
    let organism = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/organisms/one-0.safetensors");
    let sum = Model::load(&format!("builtin:dense+{organism}")).unwrap();
    let flip = Edit::lesion(weight, Action::Flip { bit: 0 });
    let error = check_edit(&sum, &trial, &flip).unwrap_err().to_string();
    assert!(error.contains("does not have its weights as floats of one format"), "{error}");
    let beyond = Edit::lesion(weight, Action::Flip { bit: stored.bits() });
    assert!(check_edit(&model, &trial, &beyond).is_err());
}

/// The same text in other tokens is another input.
#[test]
fn every_split_moves_the_output_and_not_the_text() {
    let model = model();
    let (evaluator, splits) = (ModelEvaluator::new(&model), Splits::of(&model));
    let trial = prompt(&model);
    let mut requests = vec![Request::new(trial.clone())];
    for (position, &id) in trial.base.iter().enumerate() {
        let of_token = splits.of_token(id, 2);
        for pieces in (0..of_token.count()).filter_map(|index| of_token.nth(index)) {
            let edit = Edit::Retokenize { position, pieces };
            check_edit(&model, &trial, &edit).unwrap();
            let split = trial.with_edits(vec![edit]);
            assert_eq!(model.decode(&split.layout().ids), model.decode(&trial.layout().ids));
            requests.push(Request::new(split));
        }
    }
    assert!(requests.len() > 10, "{}", requests.len());
    let observed = evaluator.observe(&requests).unwrap();
    for (request, after) in requests.iter().zip(&observed).skip(1) {
        assert_ne!(after.log_probs, observed[0].log_probs, "{:?}", request.trial.edits);
    }
}

/// A batch of all edits together, by way of shared prefixes and restarts, against each alone from
/// the start: the planner's naive version.
#[test]
fn a_batch_of_edits_equals_each_alone() {
    let model = model();
    let evaluator = ModelEvaluator::new(&model);
    let trial = prompt(&model);
    let reference = evaluator
        .observe_alone(&Request::new(trial.clone()).keeping_distributions())
        .unwrap()
        .distributions
        .unwrap();
    let mut requests: Vec<Request> = edits()
        .into_iter()
        .map(|e| {
            Request::new(trial.with_edits(vec![e])).with_reference(reference.clone()).generating(4)
        })
        .collect();
    let all = edits();
    for pair in all.chunks(2).filter(|p| p.len() == 2) {
        requests
            .push(Request::new(trial.with_edits(pair.to_vec())).with_reference(reference.clone()));
    }
    let batch = evaluator.observe(&requests).unwrap();
    for (request, batched) in requests.iter().zip(&batch) {
        let alone = evaluator.observe_alone(request).unwrap();
        same(batched, &alone, &format!("{:?}", request.trial.edits));
        assert_eq!(batched.generated, alone.generated, "{:?}", request.trial.edits);
    }
}

fn vector_of(d: usize) -> Vec<f32> {
    (0..d).map(|i| (i as f32).sin()).collect()
}

/// What is left at the place of a change is what the change says, at its positions and no others.
#[test]
fn steering_leaves_what_it_says() {
    let model = model();
    let evaluator = ModelEvaluator::new(&model);
    let trial = prompt(&model);
    let d = model.config.hidden_size;
    let vector = vector_of(d);
    let square: f32 = vector.iter().map(|v| v * v).sum();
    let part = |x: &[f32]| x.iter().zip(&vector).map(|(x, v)| x * v).sum::<f32>() / square;
    for at in [InLayer::Pre, InLayer::Mid, InLayer::Post] {
        let site = ResidualSite { layer: 1, at };
        let captured = |edits: Vec<Edit>| {
            let place = (1, Site::from(at), 0..d, 0..trial.len());
            let variants = vec![(Variant::default(), place)];
            evaluator.capture(&trial.with_edits(edits), variants).unwrap().remove(0)
        };
        let before = captured(vec![]);
        for (change, expected) in [
            (SteeringChange::Add { strength: -1.5 }, None),
            (SteeringChange::Remove, Some(0.0)),
            (SteeringChange::Clamp { value: 2.5 }, Some(2.5)),
        ] {
            for position in [None, Some(4)] {
                let vector = SteeringVector::Values { values: vector.clone() };
                let steering = Steering { site, vector, change };
                let after = captured(vec![Edit::Steering { steering, position }]);
                for (i, (x, y)) in before.chunks_exact(d).zip(after.chunks_exact(d)).enumerate() {
                    if position.is_some_and(|position| position != i) {
                        assert_eq!(x, y, "{site} {change:?} at {i}");
                        continue;
                    }
                    let expected = expected.unwrap_or(part(x) - 1.5);
                    assert!((part(y) - expected).abs() < 1e-4, "{site} {change:?}: {}", part(y));
                    // What is not along the vector is as it was.
                    let rest = |x: &[f32]| -> Vec<f32> {
                        let part = part(x);
                        x.iter().zip(&vector_of(d)).map(|(x, v)| x - part * v).collect()
                    };
                    for (a, b) in rest(x).iter().zip(&rest(y)) {
                        assert!((a - b).abs() < 1e-4, "{site} {change:?}: {a} {b}");
                    }
                }
            }
        }
    }
}

/// Scaling by one, noise of nothing, a step of length zero and a component patched with its own
/// output leave every bit as it was.
#[test]
fn edits_of_no_size_are_exact() {
    let model = model();
    let evaluator = ModelEvaluator::new(&model);
    let trial = prompt(&model);
    let baseline = evaluator.observe_alone(&Request::new(trial.clone())).unwrap();
    let run = evaluator.activations(&trial, &[]).unwrap();
    for component in components() {
        let edit = Edit::lesion(component, Action::Scale { factor: 1.0 });
        let observed =
            evaluator.observe_alone(&Request::new(trial.with_edits(vec![edit]))).unwrap();
        same(&observed, &baseline, &format!("{component} scaled by 1"));
        if let Some(values) = run.output(&component, 0..run.positions, &model.config) {
            let patch = Patch { component, first: 0, values: values.into() };
            let observed =
                evaluator.observe_alone(&Request::new(trial.clone()).patched(vec![patch])).unwrap();
            same(&observed, &baseline, &format!("{component} patched with itself"));
        }
    }
}

#[test]
fn what_the_model_does_not_have_is_refused() {
    let model = model();
    let evaluator = ModelEvaluator::new(&model);
    let trial = prompt(&model);
    let check = |edit: Edit, expect: &str| {
        let error = evaluator
            .observe(&[Request::new(trial.with_edits(vec![edit]))])
            .unwrap_err()
            .to_string();
        assert!(error.contains(expect), "{error}");
    };
    let zero = |component| Edit::lesion(component, Action::Zero);
    check(zero(Component::Head { layer: 1, head: 99 }), "no component L1.head99");
    check(zero(Component::Mlp { layer: 4 }), "no component L4.mlp");
    check(
        zero(Component::Weight { layer: 0, matrix: Matrix::Down, out: 128, input: 0 }),
        "no component L0.mlp.down[128,0]",
    );
    let component = Component::Head { layer: 1, head: 99 };
    let knockout = AttentionKnockout { component, position: None, key: 1 };
    check(Edit::AttentionKnockout(knockout), "no component L1.head99");
    check(Edit::Replace { position: 1, id: 4096 }, "beyond the vocabulary");
    let remove = |layer, at, vector| {
        let site = ResidualSite { layer, at };
        let steering = Steering { site, vector, change: SteeringChange::Remove };
        Edit::Steering { steering, position: None }
    };
    let random = SteeringVector::Random { seed: 1, norm: 1.0 };
    check(remove(4, InLayer::Post, random), "has no L4.resid_post");
    let short = SteeringVector::Values { values: vec![1.0; 3] };
    check(remove(1, InLayer::Post, short), "a vector of 3 values for residual streams of 128");
}

/// Sequences of several lengths give equal log-probabilities alone and in one batch, to the bit.
/// The floor that is left is the rounding of a distribution's divergence from itself.
#[test]
fn the_noise_floor_of_the_built_in_model_is_rounding() {
    let model = model();
    let evaluator = ModelEvaluator::new(&model);
    let requests: Vec<Request> = (2..12u32)
        .map(|n| {
            let ids: Vec<u32> = (0..2 * n).map(|i| (i * 379 + 11 * n) % 4096).collect();
            Request::new(Trial::new(&ids[..n as usize], &ids[n as usize..]))
        })
        .collect();
    for (request, batched) in requests.iter().zip(evaluator.observe(&requests).unwrap()) {
        same(&batched, &evaluator.observe_alone(request).unwrap(), "a batch of several lengths");
    }
    let floor = evaluator.noise_floor().unwrap();
    assert!(floor <= f64::from(f32::EPSILON) / 2.0, "{floor:e}");
}

/// A whole block's output is what the block adds to the residual stream: after the block's own norm
/// on models that have one.
#[test]
fn block_outputs_are_what_is_added_to_the_residual_stream() {
    let ids: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 90).collect();
    for name in ["llama", "gpt2", "olmo2", "gemma3", "mixtral"] {
        let model = load(name);
        let mut forward = Forward { rows: vec![Row::new(&ids[..])], ..Forward::default() };
        let layers = 0..model.config.num_hidden_layers;
        let sites = [Site::ResidPre, Site::AttnOut, Site::ResidMid, Site::MlpOut, Site::ResidPost];
        forward.hooks.capture =
            layers.clone().flat_map(|layer| sites.map(|site| (layer, site))).collect();
        let captured = model.forward(&forward).unwrap().captured;
        for layer in layers {
            let [pre, attention, mid, mlp, post] = sites.map(|site| &captured[&(layer, site)]);
            let sum =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
            assert_eq!(&sum(pre, attention), mid, "{name}: layer {layer}");
            assert_eq!(&sum(mid, mlp), post, "{name}: layer {layer}");
        }
    }
}

#[test]
fn components_have_the_hook_names_of_transformer_lens() {
    let check = |name: &str, component: &str, expected: Option<&str>| {
        let component: Component = component.parse().unwrap();
        let found = hook_name(&component, &load(name).config);
        assert_eq!(found.as_deref(), expected, "{name}: {component}");
    };
    for name in ["llama", "gpt2", "gemma3"] {
        check(name, "embed", Some("hook_embed"));
        check(name, "L1.head2", Some("blocks.1.attn.hook_z"));
        check(name, "L1.attn", Some("blocks.1.hook_attn_out"));
        check(name, "L1.mlp", Some("blocks.1.hook_mlp_out"));
        check(name, "L1.neuron9", Some("blocks.1.mlp.hook_post"));
        check(name, "L9.mlp", None);
    }
    // TransformerLens has these before the norm, and not what is added to the residual stream.
    check("olmo2", "L1.head2", Some("blocks.1.attn.hook_z"));
    check("olmo2", "L1.attn", None);
    check("olmo2", "L1.mlp", None);
    check("olmo2", "L1.neuron9", Some("blocks.1.mlp.hook_post"));
    check("mixtral", "L1.mlp", Some("blocks.1.hook_mlp_out"));
    check("mixtral", "L1.expert0", None);
    check("mixtral", "L1.router", None);
    check("llama", "L1.mlp.down[3,4]", None);
    check("mamba2", "L1.head0", None);
    check("rwkv7", "L1.channel_mix", None);
    check("rwkv7", "L1.neuron3", None);
}
