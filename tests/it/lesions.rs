//! Sweeps of lesions: the change that a lesion makes is measured where its block writes, noise
//! takes its place without being flagged, and what matters is flagged.

use glitch::edit::{Action, Component, Edit, Matrix, Trial};
use glitch::evaluate::{Evaluator, ModelEvaluator, Patch, Request, block_of};
use glitch::model::Model;
use glitch::model::hooks::Site;
use glitch::model::{Forward, batch::Row};
use glitch::sweep::{LesionOptions, LesionSweep, Target, WeightRank, head_scores};

use crate::parity::load;

fn ids() -> Vec<u32> {
    (0..24).map(|i| (i * 37 + 5) % 96).collect()
}

fn passages(model: &Model, count: usize) -> Vec<Vec<u32>> {
    glitch::replicate::passages().take(count).map(|p| model.encode(p).unwrap()).collect()
}

/// The block with a lesion in it puts out what it does under the lesion: patching that output in
/// gives the loss of the lesion.
#[test]
fn a_patch_of_the_lesioned_block_is_the_lesion() {
    for name in ["llama", "qwen2-moe", "gpt-neox", "gemma3", "mamba", "mamba2", "rwkv7", "jamba"] {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let ids = ids();
        let trial = Trial::new([ids[0]], &ids[1..]);
        let kinds = [
            Component::Head { layer: 0, head: 0 },
            Component::Neuron { layer: 0, neuron: 0 },
            Component::Expert { layer: 0, expert: 0 },
            Component::Router { layer: 0 },
            Component::State { layer: 0, part: Some(0) },
            Component::Mlp { layer: 0 },
            Component::Attention { layer: 0 },
            Component::Ssm { layer: 0 },
            Component::TimeMix { layer: 0 },
            Component::ChannelMix { layer: 0 },
        ];
        let mut tried = 0;
        for component in kinds.into_iter().flat_map(|like| model.config.all_like(like).step_by(3)) {
            let lesion = Edit::lesion(component, Action::Zero);
            let block = block_of(&component, &model.config).unwrap();
            let outputs =
                evaluator.block_outputs(&ids, block, std::slice::from_ref(&lesion)).unwrap();
            let patch =
                |values: &[f32]| Patch { component: block, first: 0, values: values.into() };
            let requests = [
                Request::new(trial.clone()),
                Request::new(trial.clone()).patched(vec![patch(&outputs.intact)]),
                Request::new(trial.with_edits(vec![lesion])),
                Request::new(trial.clone()).patched(vec![patch(&outputs.lesioned[0])]),
            ];
            let loss: Vec<f64> =
                evaluator.observe(&requests).unwrap().iter().map(|o| o.loss()).collect();
            assert!((loss[0] - loss[1]).abs() < 1e-5, "{name} {component}: {loss:?}");
            assert!((loss[2] - loss[3]).abs() < 1e-5, "{name} {component}: {loss:?}");
            tried += 1;
        }
        assert!(tried > 4, "{name}: {tried}");
    }
}

/// Values weighted by the pattern are what the heads put out, on every kind of attention.
#[test]
fn patterns_times_values_are_the_heads() {
    for name in ["llama", "gemma3", "gpt-neox", "deepseek-v2", "mistral"] {
        let model = load(name);
        let (config, ids) = (&model.config, ids());
        let patterns = ModelEvaluator::new(&model).patterns(&ids).unwrap();
        let mut forward = Forward { rows: vec![Row::new(ids.clone())], ..Forward::default() };
        forward.hooks.capture = [(1, Site::Z)].into();
        let captured = model.forward(&forward).unwrap().captured;
        let dim = config.v_head_dim();
        for (at, z) in captured[&(1, Site::Z)].chunks(config.z_width(1)).enumerate() {
            for head in 0..config.heads(1) {
                let row = patterns.row(1, head, at).unwrap();
                assert!(row[at + 1..].iter().all(|a| *a == 0.0), "{name}: attends ahead");
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{name}: {row:?}");
                for i in 0..dim {
                    let sum: f32 = (0..=at)
                        .map(|key| row[key] * patterns.value(1, head, key, config)[i])
                        .sum();
                    let z = z[head * dim + i];
                    assert!((sum - z).abs() < 1e-5, "{name} {head} {at}: {sum} {z}");
                }
            }
        }
    }
}

#[test]
fn what_matters_is_flagged_and_noise_is_not() {
    let model = Model::load("builtin:moe").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let texts = passages(&model, 8);
    let sweep = |null| {
        let options = LesionOptions { null, ..LesionOptions::new(Target::Blocks) };
        LesionSweep::run(&evaluator, &texts, &options, &|_, _| {}).unwrap()
    };
    let flagged = |sweep: &LesionSweep| -> Vec<String> {
        let rows = sweep.rows.iter().filter(|row| row.is_flagged());
        rows.map(|row| row.component.to_string()).collect()
    };
    let real = sweep(false);
    assert!(flagged(&real).contains(&"L0.mlp".to_owned()), "{:?}", real.rows);
    let first = &real.rows[0];
    let (low, high) = first.effect_interval.unwrap();
    assert!(first.component == Component::Mlp { layer: 0 } && low > 4.0 && high < 8.0, "{first:?}");
    // Noise costs something too, and is like other noise.
    let null = sweep(true);
    assert!(null.rows[0].effect > 0.5 && flagged(&null).is_empty(), "{:?}", null.rows);
    // The same again: nothing is drawn from a clock.
    let again = sweep(false);
    let figures = |s: &LesionSweep| s.rows.iter().map(|r| r.noise_effect()).collect::<Vec<_>>();
    assert_eq!(figures(&real), figures(&again));
}

#[test]
fn a_sweep_negates_what_it_is_told_to() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let texts = passages(&model, 2);
    let (action, rank) = (Action::Scale { factor: -1.0 }, WeightRank::Magnitude);
    let options =
        LesionOptions { action, rank, limit: Some(4), ..LesionOptions::new(Target::Weights) };
    let sweep = LesionSweep::run(&evaluator, &texts, &options, &|_, _| {}).unwrap();
    assert_eq!(sweep.rows.len(), 4);
    let mut largest: Vec<f32> = (0..model.config.num_hidden_layers)
        .flat_map(|layer| {
            let model = &model;
            [Matrix::Down, Matrix::O].into_iter().flat_map(move |matrix| {
                let (rows, _) = model.config.matrix_shape(layer, matrix).unwrap();
                (0..rows).flat_map(move |out| model.weight_row(layer, matrix, out))
            })
        })
        .map(f32::abs)
        .collect();
    largest.sort_by(|a, b| b.total_cmp(a));
    for row in &sweep.rows {
        let Component::Weight { layer, matrix, out, input } = row.component else { panic!() };
        assert!(model.weight_row(layer, matrix, out)[input].abs() >= largest[3]);
        // The loss is that of the weight with its sign flipped.
        let edit = Edit::lesion(row.component, Action::Scale { factor: -1.0 });
        let losses = texts.iter().map(|ids| {
            let trial = Trial::new(&ids[..1], &ids[1..]).with_edits(vec![edit.clone()]);
            evaluator.observe_alone(&Request::new(trial)).unwrap().loss()
        });
        let loss = losses.sum::<f64>() / texts.len() as f64;
        assert!((row.loss - loss).abs() < 1e-9, "{row:?}: {loss}");
    }
    assert!(sweep.rows.iter().any(|row| row.effect.abs() > 1e-4));
}

#[test]
fn few_texts_are_not_tested() {
    let model = load("llama");
    let evaluator = ModelEvaluator::new(&model);
    let options = LesionOptions::new(Target::Heads);
    let sweep = |texts: &[Vec<u32>]| LesionSweep::run(&evaluator, texts, &options, &|_, _| {});
    let one = sweep(&[ids()]).unwrap();
    assert!(one.rows.iter().all(|row| {
        (row.effect_interval, row.p_value, row.q_value, row.noise_effect())
            == (None, None, None, None)
    }));
    let five = sweep(&vec![ids(); 5]).unwrap();
    assert!(five.rows.iter().all(|row| row.effect_interval.is_some() && row.q_value.is_none()));
    for texts in [vec![], vec![ids(), vec![1]], vec![vec![]]] {
        assert!(sweep(&texts).is_err());
    }
}

/// A sweep that is ended early has what the whole sweep measured on the texts until then.
#[test]
fn an_interrupted_sweep_keeps_the_texts_so_far() {
    let model = load("llama");
    let evaluator = ModelEvaluator::new(&model);
    let options = LesionOptions::new(Target::Mlps);
    let texts: Vec<Vec<u32>> = (0..7).map(|shift| (shift + 2..shift + 12).collect()).collect();
    let losses = |sweep: &LesionSweep| sweep.rows.iter().map(|row| row.loss).collect::<Vec<_>>();
    let ended_after = |calls: usize| {
        let mut called = 0;
        let mut each = |_: &LesionSweep| {
            called += 1;
            Ok(called < calls)
        };
        LesionSweep::run_with(&evaluator, &texts, &options, &|_, _| {}, &mut each).unwrap()
    };
    let two = ended_after(2);
    assert!(!two.complete && two.texts == 2);
    let whole = LesionSweep::run(&evaluator, &texts[..2], &options, &|_, _| {}).unwrap();
    assert!(whole.complete && losses(&whole) == losses(&two));
    // Ended while noise is measured: all texts, and no test.
    let all = ended_after(8);
    assert!(!all.complete && all.texts == 7);
    assert!(all.rows.iter().all(|row| row.q_value.is_none() && row.noise_effect().is_none()));
    assert!(ended_after(usize::MAX).rows.iter().all(|row| row.q_value.is_some()));
}

/// The trained model has heads that attend to the previous token and heads that do induction, each
/// where the literature finds them; random weights have none.
#[test]
fn heads_have_the_names_of_the_literature() {
    let names = |model: &Model| -> Vec<(String, &'static str)> {
        let scores = head_scores(&ModelEvaluator::new(model), &[ids()], 1).unwrap();
        let named = scores.iter().filter_map(|(c, s)| Some((c.to_string(), s.name()?)));
        named.collect()
    };
    let dense = names(&Model::load("builtin:dense").unwrap());
    let layers = |name: &str| -> Vec<usize> {
        let of = dense.iter().filter(|(_, n)| *n == name);
        of.map(|(c, _)| c.parse::<Component>().unwrap().layer()).collect()
    };
    let (previous, induction) = (layers("previous"), layers("induction"));
    assert!(!previous.is_empty() && !induction.is_empty(), "{dense:?}");
    assert!(previous.iter().min() < induction.iter().min(), "{dense:?}");
    assert_eq!(names(&load("llama")), []);
    assert_eq!(names(&load("mamba")), []);
}
