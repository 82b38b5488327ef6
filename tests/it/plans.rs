//! Whatever the planner shares, resumes and leaves out: the answer is that of each request alone,
//! to the bit.

use glitch::edit::{
    Action, AttentionKnockout, Component, Edit, EmbeddingChange, InLayer, Matrix, ResidualSite,
    Steering, SteeringChange, SteeringVector, Trial,
};
use glitch::evaluate::{Evaluator, ModelEvaluator, Observation, Patch, Request};
use glitch::model::{Mixer, Model};
use glitch::rng::{Rng, stream};
use rand::Rng as _;

use super::parity::load;

const PROMPT: usize = 6;
const TOKENS: usize = 40;

fn trial() -> Trial {
    let ids: Vec<u32> = (0..TOKENS as u32).map(|i| (i * 37 + 5) % 90).collect();
    Trial::new(&ids[..PROMPT], &ids[PROMPT..])
}

fn knockout(component: Component, position: Option<usize>, key: usize) -> Edit {
    Edit::AttentionKnockout(AttentionKnockout { component, position, key })
}

/// Draws a component of a kind that the model has, in any layer.
fn component(model: &Model, rng: &mut Rng) -> Component {
    let config = &model.config;
    loop {
        let layer = rng.random_range(0..config.num_hidden_layers);
        let kinds = [
            Component::Head { layer, head: 0 },
            Component::Neuron { layer, neuron: 0 },
            Component::Expert { layer, expert: 0 },
            Component::Expert { layer, expert: 0 },
            Component::Router { layer },
            Component::Channel { layer, channel: 0 },
            Component::State { layer, part: Some(0) },
            Component::Shift { layer },
            Component::ChannelShift { layer },
            Component::Attention { layer },
            Component::Mlp { layer },
            Component::Weight { layer, matrix: Matrix::Down, out: 1, input: 2 },
            Component::Weight { layer, matrix: Matrix::O, out: 1, input: 2 },
        ];
        let kind = kinds[rng.random_range(0..kinds.len())];
        if matches!(kind, Component::Weight { .. }) {
            if config.has(&kind) {
                return kind;
            }
        } else if let n @ 1.. = config.count_in(layer, kind) {
            return config.nth_in(layer, kind, rng.random_range(0..n));
        }
    }
}

/// Draws an attention head, or a whole block.
fn attention(model: &Model, rng: &mut Rng) -> Component {
    loop {
        let drawn = component(model, rng);
        let has_edges = matches!(drawn, Component::Head { .. } | Component::Attention { .. });
        if has_edges && model.check_attention(&drawn).is_ok() {
            return drawn;
        }
    }
}

fn edit(model: &Model, rng: &mut Rng) -> Edit {
    let position = rng.random_range(1..TOKENS - 1);
    match rng.random_range(0..20) {
        0 => Edit::Replace { position, id: 89 },
        1 => Edit::Insert { position, id: 89 },
        2 => Edit::Delete { position },
        3 => {
            Edit::Embedding { position, change: EmbeddingChange::Noise { seed: 1, strength: 0.5 } }
        }
        5 => Edit::Retokenize { position, pieces: vec![88, 87, 89] },
        4 if model.config.experts.is_some() => Edit::FreezeRouting,
        6 | 7 if model.config.mixers.contains(&Mixer::Attention) => {
            let key = rng.random_range(0..position);
            let position = rng.random_bool(0.5).then_some(position);
            knockout(attention(model, rng), position, key)
        }
        _ => {
            let component = component(model, rng);
            let action = match rng.random_range(0..6) {
                0 => Action::Mean,
                4 if !matches!(component, Component::Weight { .. }) => {
                    Action::Resample { seed: rng.random_range(0..6) }
                }
                1 => Action::Scale { factor: 3.0 },
                2 => Action::Noise { seed: 1, strength: 1.0 },
                3 if matches!(component, Component::Expert { .. }) => Action::Mask,
                _ => Action::Zero,
            };
            Edit::Lesion { component, action, position: rng.random_bool(0.3).then_some(position) }
        }
    }
}

fn same(batched: &Observation, alone: &Observation, what: &str) {
    // A row that resumes above a layer reports no routing and no state of it.
    let routing: Vec<_> = alone
        .routing
        .iter()
        .filter(|a| batched.routing.iter().any(|b| a.layer == b.layer))
        .collect();
    assert_eq!(batched.routing.iter().collect::<Vec<_>>(), routing, "{what}");
    let norms = alone
        .state_norms
        .iter()
        .filter(|(layer, _)| batched.state_norms.iter().any(|(l, _)| l == layer));
    assert_eq!(batched.state_norms.iter().collect::<Vec<_>>(), norms.collect::<Vec<_>>(), "{what}");
    assert_eq!(
        (&batched.log_probs, &batched.entropy),
        (&alone.log_probs, &alone.entropy),
        "{what}"
    );
    assert_eq!(
        (&batched.top, &batched.divergence_bits),
        (&alone.top, &alone.divergence_bits),
        "{what}"
    );
    assert_eq!((batched.sketch, batched.finite), (alone.sketch, alone.finite), "{what}");
}

#[test]
fn any_batch_equals_each_alone() {
    const ALL: [&str; 14] = [
        "llama",
        "gpt2",
        "gpt-neox",
        "olmo2",
        "gemma3",
        "mixtral",
        "olmoe",
        "qwen2-moe",
        "deepseek-v2",
        "jamba",
        "mamba",
        "mamba2",
        "rwkv4",
        "rwkv7",
    ];
    for name in ALL {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let mut rng = stream(7, name);
        let whole = evaluator
            .activations(&trial().with_edits(vec![Edit::Replace { position: 1, id: 88 }]), &[])
            .unwrap();
        let baseline =
            evaluator.observe_alone(&Request::new(trial()).keeping_distributions()).unwrap();
        let reference = baseline.distributions.unwrap();
        let requests: Vec<Request> = (0..60)
            .map(|_| {
                let edits = (0..rng.random_range(1..=3)).map(|_| edit(&model, &mut rng)).collect();
                let request = Request::new(trial().with_edits(edits));
                let moved = request.trial.layout().ids.len() != TOKENS;
                match rng.random_range(0..4) {
                    0 if !moved => {
                        let component = Component::Mlp {
                            layer: rng.random_range(0..model.config.num_hidden_layers),
                        };
                        let component =
                            if model.config.has(&component) { component } else { Component::Embed };
                        let first = rng.random_range(0..TOKENS - 1);
                        let values =
                            whole.output(&component, first..TOKENS, &model.config).unwrap().into();
                        request.patched(vec![Patch { component, first, values }])
                    }
                    1 if request.trial.layout().ids.len() - request.trial.layout().prompt_len
                        == TOKENS - PROMPT =>
                    {
                        request.with_reference(reference.clone())
                    }
                    _ => request,
                }
            })
            .collect();
        for (request, batched) in requests.iter().zip(evaluator.observe(&requests).unwrap()) {
            let alone = evaluator.observe_alone(request).unwrap();
            let what = format!("{name}: {:?}", request.trial.edits);
            same(&batched, &alone, &what);
            // By itself it continues whatever is cached and begins like it.
            let single = evaluator.observe(std::slice::from_ref(request)).unwrap();
            same(&single[0], &alone, &what);
            // Without lesions and patches no row resumes above a layer: all layers are reported.
            if request.trial.edits.iter().all(Edit::is_token_edit) && request.patches.is_empty() {
                assert_eq!(batched.routing, alone.routing, "{what}");
                assert_eq!(batched.state_norms, alone.state_norms, "{what}");
            }
        }
    }
}

/// Patches above lesions and steering that many requests share resume above these.
#[test]
fn patches_behind_shared_edits_equal_each_alone() {
    for name in ["llama", "gpt2", "gpt-neox", "olmo2", "gemma3", "qwen2-moe", "mamba"] {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let mut rng = stream(3, name);
        let (layers, d) = (model.config.num_hidden_layers, model.config.hidden_size);
        let whole = evaluator
            .activations(&trial().with_edits(vec![Edit::Replace { position: 1, id: 88 }]), &[])
            .unwrap();
        let steering = |position| {
            let values = (0..d).map(|i| (i % 5) as f32 - 2.0).collect();
            Edit::Steering {
                steering: Steering {
                    site: ResidualSite { layer: 0, at: InLayer::Post },
                    vector: SteeringVector::Values { values },
                    change: SteeringChange::Add { strength: 0.5 },
                },
                position,
            }
        };
        let zero = |component, position| Edit::Lesion { component, action: Action::Zero, position };
        let (first, last) = (model.config.mixer(0), model.config.mixer(layers - 1));
        let mut shared = vec![
            vec![zero(first, None)],
            vec![zero(first, Some(3))],
            vec![steering(Some(9)), steering(Some(20))],
            vec![steering(None), zero(first, Some(12)), zero(last, Some(30))],
        ];
        if model.check_attention(&first).is_ok() {
            shared.push(vec![knockout(first, None, 9), knockout(last, Some(30), 2)]);
            shared.push(vec![knockout(first, Some(20), 19), steering(Some(9))]);
        }
        for edits in shared {
            let request = |_| {
                let layer = rng.random_range(1..layers);
                let mixer = model.config.mixer(layer);
                let component = model.config.mlp(layer).filter(|_| rng.random_bool(0.5));
                let (component, at) = (component.unwrap_or(mixer), rng.random_range(0..TOKENS - 1));
                let values = whole.output(&component, at..TOKENS, &model.config).unwrap().into();
                let patch = Patch { component, first: at, values };
                Request::new(trial().with_edits(edits.clone())).patched(vec![patch])
            };
            let requests: Vec<Request> = (0..12).map(request).collect();
            for (request, batched) in requests.iter().zip(evaluator.observe(&requests).unwrap()) {
                let alone = evaluator.observe_alone(request).unwrap();
                same(&batched, &alone, &format!("{name}: {:?}", request.trial.edits));
            }
        }
    }
}

/// Counts the tokens that go through layers for a request with this edit, once there is a cached
/// forward to resume from.
fn computed(name: &str, edit: &Edit) -> u64 {
    let model = load(name);
    let evaluator = ModelEvaluator::new(&model);
    let requests = [(); 2].map(|()| Request::new(trial().with_edits(vec![edit.clone()])));
    evaluator.observe(&requests).unwrap();
    let before = evaluator.tokens();
    evaluator.observe(&requests).unwrap();
    (evaluator.tokens() - before) / 2
}

#[test]
fn a_row_begins_where_its_edits_take_hold() {
    let read = TOKENS as u64 - 1; // the last token predicts nothing that is read
    let check = |name: &str, edit: Edit, tokens: u64| {
        assert_eq!(computed(name, &edit), tokens, "{name}: {edit:?}")
    };
    let at = |component, position| Edit::Lesion { component, action: Action::Zero, position };
    check("llama", at(Component::Mlp { layer: 1 }, None), read);
    check("llama", at(Component::Mlp { layer: 1 }, Some(30)), read - 30);
    check("llama", at(Component::Head { layer: 0, head: 0 }, Some(30)), read - 30);
    // States are kept every 16 positions.
    check("mamba", at(Component::Ssm { layer: 1 }, Some(30)), read - 16);
    check("gpt-neox", at(Component::Mlp { layer: 1 }, Some(30)), read - 30);
    check("llama", knockout(Component::Attention { layer: 1 }, Some(30), 3), read - 30);
    check("llama", knockout(Component::Head { layer: 1, head: 0 }, None, 29), read - 30);
    // The row of an expert's lesion begins at the first token that is routed to it.
    let model = load("olmoe");
    let evaluator = ModelEvaluator::new(&model);
    let run = evaluator.activations(&trial(), &[]).unwrap();
    let (layer, d) = (1, model.config.hidden_size);
    for expert in 0..model.config.num_experts(layer) {
        let component = Component::Expert { layer, expert };
        let values = run.output(&component, 0..TOKENS - 1, &model.config).unwrap();
        let first =
            values.chunks(d).position(|v| v.iter().any(|x| *x != 0.0)).unwrap_or(TOKENS - 2) as u64;
        check("olmoe", at(component, None), read - first);
        check("olmoe", Edit::lesion(component, Action::Mask), read);
    }
}

/// Sampled tokens come with the probabilities of the distribution they are drawn from, edits and
/// all, and do not depend on what shares the batch.
#[test]
fn sampled_tokens_have_the_probabilities_of_the_distribution() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let ids = model.encode("The people of the United States").unwrap();
    let lesion = Edit::lesion(Component::Mlp { layer: 2 }, Action::Zero);
    let trial = Trial::new(&ids[..], []).with_edits(vec![lesion]);
    let whole = evaluator.observe_alone(&Request::new(trial.clone()).keeping_distributions());
    let (top, log_prob) = whole.unwrap().top[0][0];
    let requests: Vec<Request> =
        (0..2000).map(|seed| Request::new(trial.clone()).sampling(3, seed)).collect();
    let sampled = evaluator.observe(&requests).unwrap();
    let (n, p) = (sampled.len() as f64, f64::from(log_prob).exp());
    let drawn = sampled.iter().filter(|o| o.generated[0] == top).count() as f64;
    let deviation = (n * p * (1.0 - p)).sqrt();
    assert!((drawn - n * p).abs() < 4.0 * deviation, "{drawn} of {n} at {p}");
    for index in [0, 7] {
        let alone = evaluator.observe_alone(&requests[index]).unwrap();
        assert_eq!(alone.generated, sampled[index].generated);
    }
}
