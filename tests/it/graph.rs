//! The graph of a case, its parts measured one by one, and what is tried in new prompts.

use std::collections::BTreeSet;

use glitch::echo::EchoPrompt;
use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::{
    Activations, Evaluator as _, ModelEvaluator, Patch, Request, Shift, Variant, place,
};
use glitch::localize::{
    Baseline, BlockEffect, Graph, Localization, LocalizeOptions, PROFILED, PairKind, localize,
};
use glitch::model::Model;
use glitch::model::hooks::Site;
use glitch::oracle::OracleKind;
use glitch::pipeline::localize_against_controls;
use glitch::replicate::NewPrompts;
use glitch::vocabulary::Vocabulary;

fn echo(model: &Model) -> (EchoPrompt, u32) {
    let prompt = EchoPrompt::candidates(model).unwrap().remove(0);
    let [glitch] = model.encode("ashington").unwrap()[1..] else { panic!("not one token") };
    (prompt, glitch)
}

fn explain(evaluator: &ModelEvaluator, trial: &Trial) -> Localization {
    localize_against_controls(evaluator, &Vocabulary::of(evaluator.model), trial, None, 1).unwrap()
}

/// Measures a graph's faithfulness the naive way, against the clean run: every head and MLP at
/// every position that is no node is patched on its own.
fn faithfulness(evaluator: &ModelEvaluator, trial: &Trial, found: &Localization) -> f64 {
    let (symptom, graph) = (found.symptom.as_ref().unwrap(), found.graph.as_ref().unwrap());
    let at = symptom.position + 1 - trial.base.len();
    let shown = Trial::new(trial.base.clone(), [&trial.continuation[..at], &[symptom.id]].concat())
        .with_edits(trial.edits.clone());
    let clean = evaluator.activations(&shown.baseline(), &[]).unwrap();
    let config = &evaluator.model.config;
    let mut patches = Vec::new();
    for layer in 0..config.num_hidden_layers {
        let heads = (0..config.heads(layer)).map(|head| Component::Head { layer, head });
        for component in heads.chain(config.mlp(layer)) {
            for first in 0..shown.len() - 1 {
                let is_node =
                    graph.nodes.iter().any(|n| n.component == component && n.position == first);
                if !is_node && !shown.edits.iter().any(|e| e.component() == Some(&component)) {
                    let values = clean.output(&component, first..first + 1, config).unwrap();
                    patches.push(Patch { component, first, values: values.into() });
                }
            }
        }
    }
    let said =
        |request| f64::from(*evaluator.observe_alone(&request).unwrap().log_probs.last().unwrap());
    let (without, with) = (said(Request::new(shown.baseline())), said(Request::new(shown.clone())));
    assert!(
        (with - symptom.log_prob).abs() < 1e-4 && (with - without - symptom.effect).abs() < 1e-4
    );
    (said(Request::new(shown.clone()).patched(patches)) - without) / (with - without)
}

/// The model cannot repeat a token. The graph is the path from where it is shown to where it is
/// asked for, and a head that reads it is on it.
#[test]
fn the_graph_of_an_echo_is_the_path_from_shown_to_asked() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let (prompt, glitch) = echo(&model);
    let found = explain(&evaluator, &prompt.with_token(glitch));
    let (graph, symptom) = (found.graph.unwrap(), found.symptom.unwrap());
    assert!(graph.is_faithful() && graph.nodes.len() <= 6, "{graph:?}");
    assert!(graph.baseline == Baseline::Controls && symptom.effect > 5.0);
    assert!(graph.random.len() == 20 && graph.random[10] < 0.3, "{:?}", graph.random);
    let shown = prompt.slots[0];
    let first = graph.nodes.iter().position(|n| n.component == Component::Mlp { layer: 0 });
    let first = first.expect("the first MLP is not on the path");
    assert_eq!(graph.nodes[first].position, shown);
    assert_eq!(graph.nodes[first].hook.as_deref(), Some("blocks.0.hook_mlp_out"));
    let head = |n: &glitch::localize::Node| matches!(n.component, Component::Head { .. });
    let reads = graph.edges.iter().filter(|e| e.from == Some(first));
    let reads: Vec<_> = reads.map(|e| &graph.nodes[e.to]).filter(|n| head(n)).collect();
    assert!(!reads.is_empty(), "{graph:?}");
    assert!(reads.iter().all(|n| n.position == symptom.position && n.position > shown));
    // What the first MLP gets, it gets from the edits; at another position it says nothing itself.
    let edits = graph.edges.iter().find(|e| e.from.is_none() && e.to == first).unwrap();
    assert!(edits.effect > 0.5 && graph.nodes[first].direct == 0.0);
}

/// A lesion has no controls of the same component, so the background is the clean run. It does not
/// mediate itself: what is named and what is on the graph is downstream of it.
#[test]
fn the_damage_of_a_lesion_is_followed_downstream() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let ids = model.encode("The people of the United States have always been free").unwrap();
    let lesioned = Component::Mlp { layer: 0 };
    let trial = Trial::new(ids, []).with_edits(vec![Edit::lesion(lesioned, Action::Zero)]);
    let found = explain(&evaluator, &trial);
    assert!(!found.set.is_empty() && !found.set.contains(&lesioned), "{:?}", found.set);
    let graph = found.graph.as_ref().unwrap();
    assert_eq!(graph.baseline, Baseline::Clean);
    assert!(graph.nodes.iter().all(|n| n.component != lesioned));
    assert!(graph.edges.iter().any(|e| e.from.is_none()), "{graph:?}");
    // Whatever its size, its faithfulness is what patching everything else one by one gives.
    let naive = faithfulness(&evaluator, &trial, &found);
    assert!((naive - graph.faithfulness).abs() < 1e-3, "{naive} {}", graph.faithfulness);
}

/// The relations of pairs are what patching the two by hand shows.
#[test]
fn pairs_are_measured_in_centred_logits() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let (prompt, glitch) = echo(&model);
    let trial = prompt.with_token(glitch);
    let found = explain(&evaluator, &trial);
    let (symptom, interactions) = (found.symptom.unwrap(), found.interactions.unwrap());
    assert!((interactions.sufficient.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert!((interactions.necessary.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert_eq!(interactions.controls.len(), 3);
    // Controls that are the case itself have the same share.
    let same = vec![trial.clone(); 19];
    let same = localize(&evaluator, &trial, &same, &[], &LocalizeOptions::default()).unwrap();
    let same = same.interactions.unwrap();
    assert_eq!(same.controls.len(), 3);
    assert!(same.controls.iter().all(|share| (share - same.sufficient[0]).abs() < 1e-9));
    let pair = &interactions.pairs[0];
    let clean = evaluator.activations(&trial.baseline(), &[]).unwrap();
    let centred = |patches: Vec<Patch>, trial: &Trial| {
        let request = Request::new(trial.clone()).patched(patches).keeping_distributions();
        let distributions = evaluator.observe_alone(&request).unwrap().distributions.unwrap();
        let row = distributions.row(symptom.position + 1 - trial.base.len());
        let mean = row.iter().map(|p| f64::from(*p)).sum::<f64>() / row.len() as f64;
        f64::from(row[symptom.id as usize]) - mean
    };
    let (with, without) = (centred(vec![], &trial), centred(vec![], &trial.baseline()));
    assert!((with - without - interactions.effect).abs() < 1e-3);
    for (at, members) in
        [&pair.components[..1], &pair.components[1..], &pair.components].into_iter().enumerate()
    {
        let patch = |component: &Component| {
            let positions = 0..symptom.position + 1;
            let values = clean.output(component, positions, &model.config).unwrap();
            Patch { component: *component, first: 0, values: values.into() }
        };
        let patched = centred(members.iter().map(patch).collect(), &trial);
        let removed = (with - patched) / (with - without);
        assert!((removed - pair.necessity[at]).abs() < 1e-3, "{removed} {pair:?}");
    }
    assert!(interactions.pairs.iter().all(|p| p.kind != PairKind::Chain || p.direct < 0.3));
}

/// The direction that is found in one prompt makes and removes the symptom in others, and a random
/// one does not.
#[test]
fn a_direction_does_the_same_in_new_prompts() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let (prompt, glitch) = echo(&model);
    let vocabulary = Vocabulary::of(&model);
    let prompts = NewPrompts::new(&model, &vocabulary, std::slice::from_ref(&prompt)).unwrap();
    let trial = prompt.with_token(glitch);
    let new = Some((&prompts, OracleKind::Echo));
    let found =
        localize_against_controls(&evaluator, &Vocabulary::of(&model), &trial, new, 1).unwrap();
    let tried = found.generalization.unwrap();
    assert!(tried.prompts == 20 && tried.with_effect >= 15, "{tried:?}");
    // What each block does by itself there, a number a prompt.
    assert_eq!(tried.blocks.len(), 2 * model.config.num_hidden_layers);
    assert!(tried.blocks.iter().all(|block| block.necessity.len() == PROFILED));
    let mean = |block: &BlockEffect| block.necessity.iter().sum::<f64>() / PROFILED as f64;
    let most = tried.blocks.iter().max_by(|a, b| mean(a).total_cmp(&mean(b))).unwrap();
    assert!(mean(most) > 0.5 && most.component == Component::Mlp { layer: 0 }, "{most:?}");
    let direction = tried.direction.unwrap();
    assert_eq!(direction.values.len(), model.config.hidden_size);
    assert!(direction.made.max(direction.removed) > tried.with_effect / 2, "{direction:?}");
    assert!(direction.made_by_random + direction.removed_by_random <= 2, "{direction:?}");
}

/// With the same tokens at both ends, the gradient is the derivative of what is said.
#[test]
fn integrated_gradients_are_derivatives() {
    for name in ["builtin:dense", "builtin:mamba", "builtin:rwkv"] {
        let model = Model::load(name).unwrap();
        let evaluator = ModelEvaluator::new(&model);
        let config = &model.config;
        let trial = Trial::new(model.encode("It was the best of").unwrap(), [40]);
        let ids = trial.layout().ids;
        let layer = 1;
        for component in [config.mixer(layer)].into_iter().chain(config.mlp(layer)) {
            let (_, site, _) = place(&component, config).unwrap();
            let sites = BTreeSet::from([(layer, site)]);
            let gradient = evaluator.integrated_gradients(&trial, &ids, &sites).unwrap();
            let run: Activations = evaluator.activations(&trial, &[]).unwrap();
            let at = ids.len() - 3;
            let slope = gradient.output(&component, at..at + 1, config).unwrap();
            let own = run.output(&component, at..at + 1, config).unwrap();
            let steepest: f64 = slope.iter().map(|g| f64::from(g * g)).sum::<f64>();
            let step = (1e-2 / steepest.sqrt()).min(0.05) as f32;
            let said = |step: f32| {
                let values: Vec<f32> = own.iter().zip(&slope).map(|(x, g)| x + step * g).collect();
                let patch = Patch { component, first: at, values: values.into() };
                let request = Request::new(trial.clone()).patched(vec![patch]);
                f64::from(evaluator.observe_alone(&request).unwrap().log_probs[0])
            };
            let measured = (said(step) - said(-step)) / (2.0 * f64::from(step));
            let error = (measured - steepest).abs() / steepest;
            assert!(error < 0.05, "{name} {component}: {measured} for {steepest}");
        }
    }
}

/// A variant without changes is the run; the last residual stream gives what is observed; a shift
/// of it changes that, and one of an input changes the output of the block.
#[test]
fn captured_places_are_those_of_the_run() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let (config, d) = (&model.config, model.config.hidden_size);
    let trial = Trial::new(model.encode("It was the best of").unwrap(), [40]);
    let (last, position) = (config.num_hidden_layers - 1, trial.base.len() - 1);
    let run = evaluator.activations(&trial, &[]).unwrap();
    let mlp = Component::Mlp { layer: 1 };
    let output = (1, Site::MlpOut, 0..d, position..position + 1);
    let end = (last, Site::ResidPost, 0..d, position..position + 1);
    let shift = |site, layer| Variant {
        shifts: vec![Shift { layer, site, position, values: vec![0.5; d] }],
        ..Variant::default()
    };
    let got = evaluator
        .capture(
            &trial,
            vec![
                (Variant::default(), output.clone()),
                (Variant::default(), end.clone()),
                (shift(Site::ResidMid, 1), output),
                (shift(Site::ResidPost, last), end),
            ],
        )
        .unwrap();
    assert_eq!(got[0], run.output(&mlp, position..position + 1, config).unwrap());
    assert_ne!(got[0], got[2]);
    assert!(got[1].iter().zip(&got[3]).all(|(a, b)| (b - a - 0.5).abs() < 1e-3));
    let observed = evaluator.observe_alone(&Request::new(trial.clone())).unwrap();
    let read = evaluator.read_log_probs(&got[1], 40);
    assert!((read[0] - f64::from(observed.log_probs[0])).abs() < 1e-5);
    let beyond = (last + 1, Site::ResidPost, 0..d, position..position + 1);
    assert!(evaluator.capture(&trial, vec![(Variant::default(), beyond)]).is_err());
}

/// A graph is a path only if it does most of it alone and random ones do not.
#[test]
fn a_graph_is_faithful_only_if_random_ones_are_not() {
    let graph = |faithfulness, random: &[f64]| Graph {
        effect: 1.0,
        baseline: Baseline::Clean,
        nodes: Vec::new(),
        edges: Vec::new(),
        faithfulness,
        random: random.to_vec(),
    };
    assert!(graph(0.9, &[0.0; 20]).is_faithful());
    assert!(!graph(0.7, &[0.0; 20]).is_faithful());
    assert!(!graph(0.9, &[0.95; 20]).is_faithful());
}
