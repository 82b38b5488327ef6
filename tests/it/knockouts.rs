//! Attention knockout: what is cut is cut in every head, layer and numeric mode, and nothing else.

use candle_core::Var;
use glitch::edit::{AttentionKnockout, Component, Edit, Trial};
use glitch::evaluate::{Evaluator as _, ModelEvaluator, Request};
use glitch::model::batch::Row;
use glitch::model::hooks::Knockout;
use glitch::model::{Forward, Mixer};
use glitch::mutate::select;

use super::parity::{ATTENTION, RECURRENT, load};

const KEY: usize = 3;

fn knockout(component: Component, position: Option<usize>, key: usize) -> Edit {
    Edit::AttentionKnockout(AttentionKnockout { component, position, key })
}

fn trial() -> Trial {
    let ids: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 90).collect();
    Trial::new(&ids[..8], &ids[8..])
}

/// The same trial with another token at the key.
fn replaced() -> Trial {
    let mut base = trial().base.to_vec();
    base[KEY] = 89;
    Trial::new(base, trial().continuation)
}

/// A token that no later position attends to, in any layer, is to them as if it were another one.
#[test]
fn a_key_that_is_cut_from_all_later_queries_is_not_read() {
    for name in ATTENTION {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let layers = 0..model.config.num_hidden_layers;
        let blocks = layers.map(|layer| knockout(Component::Attention { layer }, None, KEY));
        let edits: Vec<Edit> = blocks.collect();
        let log_probs = |trial: Trial| {
            let request = Request::new(trial);
            let alone = evaluator.observe_alone(&request).unwrap().log_probs;
            let batched = evaluator.observe(&[request.clone(), request]).unwrap();
            assert!(batched.iter().all(|observed| observed.log_probs == alone), "{name}");
            alone
        };
        let cut = log_probs(trial().with_edits(edits.clone()));
        assert_eq!(cut, log_probs(replaced().with_edits(edits.clone())), "{name}");
        assert_ne!(cut, log_probs(trial()), "{name}");
        assert_ne!(log_probs(trial()), log_probs(replaced()), "{name}");
        // Head by head it is the same, and so it is when an edit puts the other token there.
        let heads = (0..model.config.num_hidden_layers).flat_map(|layer| {
            let head = move |head| knockout(Component::Head { layer, head }, None, KEY);
            (0..model.config.num_attention_heads).map(head)
        });
        assert_eq!(cut, log_probs(trial().with_edits(heads.collect())), "{name}");
        let token = Edit::Replace { position: KEY, id: 89 };
        let edits = edits.into_iter().chain([token]).collect();
        assert_eq!(cut, log_probs(trial().with_edits(edits)), "{name}");
    }
}

/// The gradient of a later logit at such a token is zero to the bit; both modes have the same
/// logits.
#[test]
fn a_key_that_is_cut_has_no_gradient() {
    for name in ATTENTION {
        let model = load(name);
        let ids = [&trial().base[..], &trial().continuation].concat();
        // Near enough to the last position to be in every window.
        let (tokens, key) = (ids.len(), ids.len() - 4);
        let mut forward = Forward { rows: vec![Row::new(ids)], ..Forward::default() };
        for layer in 0..model.config.num_hidden_layers {
            let (tokens, heads) = (key + 1..tokens, 0..model.config.num_attention_heads);
            forward.hooks.push_knockout(layer, Knockout { tokens, heads, key });
        }
        let start = Var::from_tensor(&model.embed_tensor(&forward).unwrap()).unwrap();
        let logits = model.forward_gradient(&forward, start.as_tensor()).unwrap();
        let last = logits.get(tokens - 1).unwrap();
        let gradients = last.get(7).unwrap().backward().unwrap();
        let gradient: Vec<Vec<f32>> = gradients.get(&start).unwrap().to_vec2().unwrap();
        for (position, gradient) in gradient.iter().enumerate().skip(key - 2) {
            let none = gradient.iter().all(|g| *g == 0.0);
            assert_eq!(none, position == key, "{name}: {position}");
        }
        let residual = model.forward(&forward).unwrap().residual;
        let fused = &model.logits(&residual)[(tokens - 1) * model.config.vocab_size..];
        let composed: Vec<f32> = last.to_vec1().unwrap();
        assert!(fused.iter().zip(composed).all(|(a, b)| (a - b).abs() < 1e-4), "{name}");
    }
}

/// An edge whose query or key is deleted is no edge; tokens inserted after the key are later ones.
#[test]
fn edges_move_with_their_tokens() {
    let model = load("llama");
    let evaluator = ModelEvaluator::new(&model);
    let log_probs = |trial: &Trial, edits: &[Edit]| {
        evaluator.observe_alone(&Request::new(trial.with_edits(edits.to_vec()))).unwrap().log_probs
    };
    let block = Component::Attention { layer: 0 };
    let delete = |position| Edit::Delete { position };
    for (edge, gone) in [
        (knockout(block, Some(7), KEY), 7),
        (knockout(block, Some(7), KEY), KEY),
        (knockout(block, None, KEY), KEY),
    ] {
        let without = log_probs(&trial(), &[delete(gone)]);
        assert_eq!(log_probs(&trial(), &[delete(gone), edge]), without);
    }
    // The same as on the edited sequence itself.
    let insert = Edit::Insert { position: 5, id: 80 };
    let ids = trial().with_edits(vec![insert.clone(), delete(1)]).layout().ids;
    let there = Trial::new(&ids[..8], &ids[8..]);
    for (position, moved) in [(None, None), (Some(7), Some(7)), (Some(4), Some(3))] {
        let edits = [insert.clone(), delete(1), knockout(block, position, KEY)];
        let moved = knockout(block, moved, KEY - 1);
        let here = log_probs(&trial(), &edits);
        assert_eq!(here, log_probs(&there, &[moved]), "{position:?}");
        assert_ne!(here, log_probs(&there, &[]), "{position:?}");
    }
}

/// Continuations that are written token by token are written without the edge.
#[test]
fn generation_does_not_attend_to_the_key() {
    let model = load("llama");
    let evaluator = ModelEvaluator::new(&model);
    let layers = 0..model.config.num_hidden_layers;
    let last = trial().base.len() - 1;
    let edits = layers.map(|layer| knockout(Component::Attention { layer }, None, last - 1));
    let edits: Vec<Edit> = edits.collect();
    let written = |id: u32, edits: &[Edit]| {
        let mut base = trial().base.to_vec();
        base[last - 1] = id;
        let request = Request::new(Trial::new(base, []).with_edits(edits.to_vec())).generating(12);
        let alone = evaluator.observe_alone(&request).unwrap();
        let batched = evaluator.observe(&[request.clone(), request]).unwrap();
        assert!(batched.iter().all(|observed| observed.generated == alone.generated));
        (alone.generated, alone.generated_entropy)
    };
    assert_eq!(written(80, &edits), written(81, &edits));
    assert_ne!(written(80, &[]).1, written(81, &[]).1);
    assert_ne!(written(80, &edits).1, written(80, &[]).1);
}

#[test]
fn models_without_attention_have_no_edges() {
    for name in RECURRENT {
        let model = load(name);
        let config = &model.config;
        let has = config.mixers.contains(&Mixer::Attention);
        let mutators = select(&["lesions".into()]).unwrap();
        let mutator = mutators.iter().find(|mutator| mutator.name() == "knockouts").unwrap();
        // A model with few heads has no controls either.
        assert!(has || !mutator.applies(config), "{name}");
        let evaluator = ModelEvaluator::new(&model);
        for layer in (0..config.num_hidden_layers).filter(|l| config.heads(*l) > 0) {
            let edit = knockout(Component::Head { layer, head: 0 }, None, KEY);
            let observed = evaluator.observe(&[Request::new(trial().with_edits(vec![edit]))]);
            match config.mixers[layer] {
                Mixer::Attention => assert!(observed.is_ok(), "{name}"),
                _ => {
                    let error = observed.unwrap_err().to_string();
                    assert!(error.contains("L0.head0 attends to nothing"), "{name}: {error}");
                    break;
                }
            }
        }
    }
}
