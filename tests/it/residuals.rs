//! The residual map and the logit lens of a case: what they say is what patching and reading the
//! whole run shows.

use std::collections::BTreeSet;
use std::sync::Arc;

use glitch::echo::EchoPrompt;
use glitch::edit::{
    Action, AttentionKnockout, Component, Edit, EmbeddingChange, InLayer, Matrix, ResidualSite,
    Steering, SteeringChange, SteeringVector, Trial,
};
use glitch::evaluate::{
    Evaluator as _, ModelEvaluator, Request, ResidualCell, ResidualRun, Shift, Variant,
};
use glitch::localize::{Baseline, Localization, Node};
use glitch::model::Model;
use glitch::model::hooks::Site;
use glitch::pipeline::localize_against_controls;
use glitch::vocabulary::Vocabulary;

use super::made;

/// Reads the log-probability of a token after a run of the whole trial with a vector added to the
/// residual stream entering one layer, from the embedding up.
fn naive(evaluator: &ModelEvaluator, trial: &Trial, last: usize, shift: Shift, id: u32) -> f64 {
    let config = &evaluator.model.config;
    let place =
        (config.num_hidden_layers - 1, Site::ResidPost, 0..config.hidden_size, last..last + 1);
    let variant = Variant { patches: Vec::new(), shifts: vec![shift] };
    let residual = evaluator.capture(trial, vec![(variant, place)]).unwrap().remove(0);
    evaluator.read_log_probs(&residual, id)[0]
}

fn difference(run: &ResidualRun, layer: usize, position: usize, values: &[f32]) -> Shift {
    let own = run.entering(layer, position).unwrap();
    let values = values.iter().zip(own).map(|(a, b)| a - b).collect();
    Shift { layer, site: Site::ResidPre, position, values }
}

/// Edits of every kind that a model can have, on 40 tokens.
fn edits(model: &Model) -> Vec<Vec<Edit>> {
    let layer = model.config.num_hidden_layers - 1;
    let mut components = vec![Component::Embed, Component::Gate { layer }];
    for layer in [0, layer] {
        let (matrix, out, input) = (Matrix::Down, 1, 2);
        components.extend([
            Component::Head { layer, head: 1 },
            model.config.mixer(layer),
            Component::Conv { layer },
            Component::Shift { layer },
            Component::State { layer, part: Some(0) },
            Component::Expert { layer, expert: 0 },
            Component::Weight { layer, matrix, out, input },
        ]);
        components.extend(model.config.mlp(layer));
    }
    let lesion = |position| {
        let actions = [Action::Zero, Action::Noise { seed: 3, strength: 0.5 }];
        let has = components.iter().filter(|component| model.config.has(component));
        has.flat_map(move |component| {
            actions.map(|action| vec![Edit::Lesion { component: *component, action, position }])
        })
    };
    let noise = EmbeddingChange::Noise { seed: 1, strength: 0.8 };
    let mut all = vec![
        vec![Edit::Replace { position: 19, id: 40 }],
        vec![Edit::Insert { position: 21, id: 41 }],
        vec![Edit::Delete { position: 18 }],
        vec![Edit::Retokenize { position: 19, pieces: vec![40, 41] }],
        vec![Edit::Embedding { position: 17, change: noise }],
    ];
    if model.config.experts.is_some() {
        all.push(vec![Edit::Replace { position: 19, id: 40 }, Edit::FreezeRouting]);
    }
    let state = Component::State { layer, part: None };
    if model.config.has(&state) {
        let from = vec![3, 4, 5];
        all.push(vec![Edit::CarryState { component: state, position: 20, from }]);
    }
    for layer in [0, layer] {
        for at in [InLayer::Pre, InLayer::Post] {
            let vector = SteeringVector::Random { seed: 1, norm: 3.0 };
            let (site, change) = (ResidualSite { layer, at }, SteeringChange::Clamp { value: 2.0 });
            for position in [None, Some(22)] {
                let steering = Steering { site, vector: vector.clone(), change };
                all.push(vec![Edit::Steering { steering, position }]);
            }
        }
    }
    for layer in [0, layer] {
        let components = [Component::Head { layer, head: 1 }, Component::Attention { layer }];
        for component in components.into_iter().filter(|c| model.check_attention(c).is_ok()) {
            for (position, key) in [(None, 16), (Some(22), 4)] {
                let knockout = AttentionKnockout { component, position, key };
                all.push(vec![Edit::AttentionKnockout(knockout)]);
            }
        }
    }
    all.extend(lesion(None));
    all.extend(lesion(Some(22)));
    all
}

/// Rows restart from the run's own residual stream, keys, values and states, whatever the edits
/// are: each cell is what the whole run from the embedding up gives.
#[test]
fn a_cell_is_a_patch_of_the_whole_run() {
    let ids: Vec<u32> = (0..40).map(|i| 3 + i * 7 % 50).collect();
    for name in [
        "llama",
        "gpt2",
        "gpt-neox",
        "gemma3",
        "mixtral",
        "deepseek-v2",
        "mamba",
        "mamba2",
        "jamba",
        "rwkv4",
        "rwkv6",
        "rwkv7",
    ] {
        let folder = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        let model = Model::load(&folder).unwrap();
        let evaluator = ModelEvaluator::new(&model);
        let depth = model.config.num_hidden_layers;
        for edits in edits(&model) {
            let trial = Trial::new(&ids[..36], &ids[36..]).with_edits(edits);
            let first = if trial.first_edited() == 0 { 0 } else { 15 };
            let last = 35;
            let run = evaluator.residual_run(&trial, first, last, &(0..depth).collect()).unwrap();
            let cells: Vec<ResidualCell> = [depth - 1, 0]
                .into_iter()
                .flat_map(|layer| [first, 19, 34, last].map(|position| (layer, position)))
                .map(|(layer, position)| {
                    let own = run.entering(layer, position).unwrap();
                    let size = own.iter().map(|x| x.abs()).fold(0.1, f32::max);
                    let change = |i: usize| 0.5 * size * (i % 3) as f32;
                    let changed = own.iter().rev().enumerate().map(|(i, x)| x + change(i));
                    ResidualCell { layer, position, values: changed.collect::<Arc<[f32]>>() }
                })
                .collect();
            let said = evaluator.patch_residual_cells(&run, &cells, 30).unwrap();
            let shown = format!("{name} {:?}", trial.edits);
            let own = evaluator.read_log_probs(run.entering(depth, last).unwrap(), 30)[0];
            let mut moved = 0f64;
            for (cell, said) in cells.iter().zip(said) {
                let shift = difference(&run, cell.layer, cell.position, &cell.values);
                let whole = naive(&evaluator, &trial, last, shift, 30);
                let place = (cell.layer, cell.position);
                assert!((said - whole).abs() < 1e-3, "{shown} {place:?}: {said} {whole}");
                moved = moved.max((said - own).abs());
            }
            assert!(moved > 1e-2, "{shown}: the cells do nothing ({moved})");
        }
    }
}

fn explain(evaluator: &ModelEvaluator, trial: &Trial) -> Localization {
    localize_against_controls(evaluator, &Vocabulary::of(evaluator.model), trial, None, 1).unwrap()
}

/// Returns the trial that ends with the symptom's token, where the edits move no position.
fn shown(trial: &Trial, found: &Localization) -> Trial {
    let symptom = found.symptom.as_ref().unwrap();
    let at = symptom.position + 1 - trial.base.len();
    let continuation = [&trial.continuation[..at], &[symptom.id]].concat();
    let end = trial.base.len() + at;
    let kept = |edit: &&Edit| edit.position().is_none_or(|position| position < end);
    Trial::new(trial.base.clone(), continuation)
        .with_edits(trial.edits.iter().filter(kept).cloned().collect())
}

/// Checks the lens against the model's own predictions, and every `nth` cell of the map against a
/// patch of the whole run.
fn check(evaluator: &ModelEvaluator, trial: &Trial, found: &Localization, nth: usize) {
    let (symptom, lens) = (found.symptom.as_ref().unwrap(), found.logit_lens.as_ref().unwrap());
    let (map, trial) = (found.residual_map.as_ref().unwrap(), shown(trial, found));
    let depth = evaluator.model.config.num_hidden_layers;
    assert!(lens.position == symptom.position && lens.layers.last() == Some(&(depth - 1)));
    for (run, trial) in [(&lens.clean, trial.baseline()), (&lens.corrupted, trial.clone())] {
        let said = evaluator.observe_alone(&Request::new(trial)).unwrap();
        let log_prob = f64::from(*said.log_probs.last().unwrap());
        assert!((run.log_probs[depth - 1] - log_prob).abs() < 1e-4, "{run:?} {log_prob}");
        let (top, _) = said.top.last().unwrap()[0];
        assert_eq!(run.top[depth - 1], top);
        assert_eq!(run.texts[depth - 1], evaluator.model.token(top));
    }
    let (first, last) = (trial.first_edited(), symptom.position);
    let all: BTreeSet<usize> = (0..depth).collect();
    let clean = evaluator.residual_run(&trial.baseline(), first, last, &all).unwrap();
    let corrupted = evaluator.residual_run(&trial, first, last, &all).unwrap();
    assert!(map.positions.iter().any(|at| at.position == last));
    let cells = (0..map.layers.len())
        .flat_map(|row| (0..map.positions.len()).map(move |column| (row, column)));
    for (row, column) in cells.step_by(nth) {
        let (layer, position) = (map.layers[row], map.positions[column].position);
        let values = clean.entering(layer, position).unwrap();
        let shift = difference(&corrupted, layer, position, values);
        let said = naive(evaluator, &trial, last, shift, symptom.id);
        let share = ((symptom.log_prob - said) / symptom.effect).clamp(0.0, 1.0);
        let measured = map.necessity[row][column];
        assert!((measured - share).abs() < 1e-3, "L{layer} @{position}: {measured} {share}");
    }
}

/// One token is replaced. At the first layer everything depends on its position, and so it does
/// until heads read it where the symptom is predicted.
#[test]
fn the_effect_hangs_on_the_edited_position_until_it_is_read() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let prompt = EchoPrompt::candidates(&model).unwrap().remove(0);
    let [glitch] = model.encode("ashington").unwrap()[1..] else { panic!("not one token") };
    let mut trial = prompt.with_token(glitch);
    trial.edits.truncate(1);
    let edited = trial.edits[0].position().unwrap();
    let found = explain(&evaluator, &trial);
    check(&evaluator, &trial, &found, 3);
    let map = found.residual_map.as_ref().unwrap();
    for (column, share) in map.necessity[0].iter().enumerate() {
        let expected = f64::from(u8::from(map.positions[column].position == edited));
        assert!((share - expected).abs() < 1e-3, "{:?}", map.necessity);
    }
    let graph = found.graph.as_ref().unwrap();
    let head = |n: &&Node| matches!(n.component, Component::Head { .. }) && n.position > edited;
    let reads = graph.nodes.iter().filter(head).map(|n| n.component.layer()).min().unwrap();
    let column = map.positions.iter().position(|at| at.position == edited).unwrap();
    let left: Vec<f64> = map.necessity[..=reads].iter().map(|shares| shares[column]).collect();
    assert!(left.iter().all(|share| *share > 0.9), "{left:?}");
    let hooks = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"];
    assert_eq!(map.hooks[..2], hooks);
    // Controls do not have the symptom, in the end.
    let (lens, effect) = (found.logit_lens.as_ref().unwrap(), graph.effect);
    let mean = *lens.mean_of_controls().last().unwrap();
    assert_eq!(graph.baseline, Baseline::Controls);
    let said = lens.corrupted.log_probs.last().unwrap();
    assert!((said - mean - effect).abs() < 1e-3, "{said} {mean} {effect}");
}

/// Below a lesion the runs are the same, so nothing is removed there; above it something is.
#[test]
fn below_a_lesion_nothing_is_removed() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let ids = model.encode("The people of the United States have always been free").unwrap();
    let lesion = Edit::lesion(Component::Mlp { layer: 1 }, Action::Zero);
    let trial = Trial::new(ids, []).with_edits(vec![lesion]);
    let found = explain(&evaluator, &trial);
    check(&evaluator, &trial, &found, 2);
    let map = found.residual_map.unwrap();
    assert!(map.necessity[..2].iter().flatten().all(|share| *share == 0.0));
    assert!(map.necessity[2..].iter().flatten().any(|share| *share > 0.2));
    assert!(found.logit_lens.unwrap().controls.is_empty());
}

/// In a recurrent model rows start at the last kept state before the cell.
#[test]
fn a_recurrent_model_has_both_views() {
    let model = Model::load("builtin:mamba").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let prompt = EchoPrompt::candidates(&model).unwrap().remove(0);
    let glitch = model.encode("ashington").unwrap()[1];
    let trial = prompt.with_token(glitch);
    check(&evaluator, &trial, &explain(&evaluator, &trial), 5);
}

/// Files of earlier versions have neither; those that have both are read as they were written.
#[test]
fn cases_with_and_without_the_views_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut case = made::case().clone();
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let found = explain(&evaluator, &case.trial());
    assert!(found.residual_map.is_some() && found.logit_lens.is_some());
    for localization in
        [found.clone(), Localization { residual_map: None, logit_lens: None, ..found }]
    {
        case.localization = Some(localization);
        let path = case.write(dir.path()).unwrap();
        let read = glitch::case::Case::read(&path).unwrap().localization.unwrap();
        let written = case.localization.as_ref().unwrap();
        assert_eq!(read.residual_map, written.residual_map);
        assert_eq!(read.logit_lens, written.logit_lens);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.contains("residual_map"), written.residual_map.is_some());
    }
}
