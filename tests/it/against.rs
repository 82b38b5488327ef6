//! Two models side by side: how far they disagree, which components' weights make the difference,
//! and cases of it. The organisms are the built-in dense model with one component changed.

use candle_core::{Device, Tensor};
use glitch::edit::{Component, Edit, Trial};
use glitch::evaluate::{Evaluator as _, ModelEvaluator, Request, TwoModels};
use glitch::localize::swaps;
use glitch::model::Model;
use glitch::sweep::{AgainstSweep, InsertOptions};

use crate::cli::glitch;
use crate::cut_out::load_changed;

fn organism(name: &str) -> Model {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/organisms");
    Model::load(&format!("builtin:dense+{folder}/{name}.safetensors")).unwrap()
}

fn triggered(model: &Model, trigger: u32) -> Trial {
    let prompt = model.encode("It was a cold winter and the river").unwrap();
    let position = prompt.len();
    Trial::new(prompt, []).with_edits(vec![Edit::Insert { position, id: trigger }])
}

/// With the other model's weights in the one component that differs, the models are the same; in no
/// other component does a swap change anything, also downstream of it.
#[test]
fn swapping_the_changed_component_removes_all_of_the_disagreement() {
    let dense = Model::load("builtin:dense").unwrap();
    for (name, trigger, component) in [
        ("one-4", 1136, Component::Mlp { layer: 2 }),
        ("one-3", 2662, Component::Head { layer: 3, head: 0 }),
    ] {
        let model = organism(name);
        let (ours, theirs) = (ModelEvaluator::new(&model), ModelEvaluator::new(&dense));
        let models = TwoModels::new(&ours, &theirs).unwrap();
        let found = swaps(&models, &triggered(&model, trigger)).unwrap();
        assert_eq!(found[0].component, component, "{name}");
        assert!(found[0].necessity > 0.999 && found[0].sufficiency > 0.999, "{:?}", found[0]);
        for other in &found[1..] {
            let whole = other.component == model.config.mixer(component.layer());
            let none = other.necessity.abs() < 1e-3 && other.sufficiency.abs() < 1e-3;
            assert!(whole || none, "{name}: {other:?}");
        }
    }
}

/// In every kind of model: serial and parallel blocks, mixtures, a recurrence with MLPs, norms
/// after the blocks. Only the block that was changed has a share, and all of it.
#[test]
fn only_the_changed_block_has_a_share() {
    for (name, tensor, layer, of_mlp) in [
        ("llama", "model.layers.0.mlp.down_proj.weight", 0, true),
        ("llama", "model.layers.1.self_attn.o_proj.weight", 1, false),
        ("gpt-neox", "gpt_neox.layers.0.mlp.dense_4h_to_h.weight", 0, true),
        ("gpt-neox", "gpt_neox.layers.1.attention.dense.weight", 1, false),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.1.w2.weight", 0, true),
        ("olmo2", "model.layers.1.mlp.down_proj.weight", 1, true),
        ("jamba", "model.layers.0.mamba.out_proj.weight", 0, false),
        ("jamba", "model.layers.1.self_attn.o_proj.weight", 1, false),
        ("jamba", "model.layers.2.feed_forward.down_proj.weight", 2, true),
    ] {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
        let intact = Model::load(&format!("{fixtures}/{name}")).unwrap();
        let changed = load_changed(name, |tensors| {
            // Larger, and with its rows in reverse: a norm behind it takes the size away again.
            let rows = tensors[tensor].dims()[0] as u32;
            let reversed: Vec<u32> = (0..rows).rev().collect();
            let reversed = Tensor::new(reversed, &Device::Cpu).unwrap();
            let other = (tensors[tensor].index_select(&reversed, 0).unwrap() * 30.0).unwrap();
            tensors.insert(tensor.to_owned(), other);
        });
        let (ours, theirs) = (ModelEvaluator::new(&changed), ModelEvaluator::new(&intact));
        let models = TwoModels::new(&ours, &theirs).unwrap();
        let ids: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 90).collect();
        let trial = Trial::new(&ids[..16], &ids[16..]);
        let found = swaps(&models, &trial).unwrap();
        let in_block =
            |component: &Component| component.layer() == layer && component.is_of_mlp() == of_mlp;
        assert!(!found.is_empty(), "{name}, {tensor}");
        assert!(in_block(&found[0].component), "{name}, {tensor}: {:?}", found[0]);
        for effect in &found {
            let none = effect.necessity.abs() < 1e-3 && effect.sufficiency.abs() < 1e-3;
            assert!(none || in_block(&effect.component), "{name}, {tensor}: {effect:?}");
        }
        let whole = if of_mlp { found[0].necessity.min(found[0].sufficiency) } else { 1.0 };
        assert!(whole > 0.999, "{name}, {tensor}: {:?}", found[0]);
    }
}

/// In batches and alone, with a reference of its own or without, a request is told the same.
#[test]
fn the_disagreement_is_that_of_the_distributions() {
    let (model, dense) = (organism("one-4"), Model::load("builtin:dense").unwrap());
    let (ours, theirs) = (ModelEvaluator::new(&model), ModelEvaluator::new(&dense));
    let models = TwoModels::new(&ours, &theirs).unwrap();
    let trial = triggered(&model, 1136);
    let request = Request { compare: true, ..Request::new(trial.clone()) };
    let kept = |evaluator: &ModelEvaluator| {
        let request = Request::new(trial.clone()).keeping_distributions();
        evaluator.observe_alone(&request).unwrap().distributions.unwrap()
    };
    let (p, q) = (kept(&ours), kept(&theirs));
    let bits: f64 = (p.log_probs.iter().zip(&q.log_probs))
        .map(|(p, q)| {
            let (p, q) = (f64::from(*p).exp(), f64::from(*q).exp());
            let half = |a: f64| if a > 0.0 { 0.5 * a * (2.0 * a / (p + q)).log2() } else { 0.0 };
            half(p) + half(q)
        })
        .sum();
    let baseline = Request::new(trial.baseline()).keeping_distributions();
    let baseline = ours.observe_alone(&baseline).unwrap().distributions.unwrap();
    let with_reference = request.clone().with_reference(baseline);
    let plain = Request::new(trial.clone());
    let both = models.observe(&[request.clone(), with_reference, plain]).unwrap();
    let alone = models.observe_alone(&request).unwrap();
    for observation in [&both[0], &both[1], &alone] {
        assert!((f64::from(observation.disagreement_bits[0]) - bits).abs() < 1e-4, "{bits}");
    }
    assert!(bits > 0.5);
    assert!(both[0].divergence_bits.is_empty() && both[1].divergence_bits.len() == 1);
    assert!(both[1].divergence_bits != both[1].disagreement_bits);
    assert!(both[2].disagreement_bits.is_empty());
}

#[test]
fn a_trigger_is_what_a_model_disagrees_about_and_a_model_agrees_with_itself() {
    let (model, dense) = (organism("one-4"), Model::load("builtin:dense").unwrap());
    let (ours, theirs) = (ModelEvaluator::new(&model), ModelEvaluator::new(&dense));
    let options = InsertOptions { prompts: 4, limit: Some(1024), ..InsertOptions::default() };
    let run = |a, b| {
        let models = TwoModels::new(a, b).unwrap();
        AgainstSweep::run(&models, &options, &|_, _| {}, &|| false).unwrap()
    };
    let found = run(&ours, &theirs);
    assert!(found.complete && found.rows[0].is_flagged());
    assert_eq!((&found.rows[0].ids[..], &found.rows[0].says[..]), (&[1136][..], " spec"));
    let same = run(&theirs, &theirs);
    assert!(same.complete && same.rows.iter().all(|row| row.bits < 1e-6 && !row.is_flagged()));
}

#[test]
fn models_of_different_vocabularies_are_refused() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let other = Model::load(&format!("{fixtures}/llama")).unwrap();
    let dense = Model::load("builtin:dense").unwrap();
    let (ours, theirs) = (ModelEvaluator::new(&dense), ModelEvaluator::new(&other));
    let error = TwoModels::new(&ours, &theirs).err().unwrap().to_string();
    assert!(error.contains("cannot be compared: their vocabularies have 4096 and"), "{error}");
}

/// From the sweep to a case, its replay, its explanation, its reduction; and without the second
/// model an error, not another verdict.
#[test]
fn a_case_of_two_models_is_replayed_with_both() {
    let folder = tempfile::tempdir().unwrap();
    let cases = folder.path().join("cases");
    let organism = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/organisms/one-4.safetensors");
    let (model, cases) = (format!("builtin:dense+{organism}"), cases.to_str().unwrap());
    let made = glitch(&[
        "sweep",
        "insert",
        &model,
        "--against",
        "builtin:dense",
        "--cases",
        cases,
        "--limit",
        "1024",
        "--prompts",
        "4",
    ]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let files: Vec<_> = std::fs::read_dir(cases).unwrap().map(|f| f.unwrap().path()).collect();
    let trigger = files.iter().find_map(|path| {
        let case = glitch::case::Case::read(path).unwrap();
        matches!(case.edits[..], [Edit::Insert { id: 1136, .. }]).then_some((path, case))
    });
    let (path, case) = trigger.unwrap();
    let against = case.against.clone().unwrap();
    assert_eq!(against.model.name, "builtin:dense");
    assert_eq!(against.swaps[0].component, Component::Mlp { layer: 2 });
    assert!(case.replication.as_ref().unwrap().consistent && case.minimization.is_some());
    let run = |command: &str| {
        let ran = glitch(&[command, path.to_str().unwrap()]);
        (ran.code, ran.stdout)
    };
    let (code, text) = run("replay");
    assert!(code == 0 && text.contains("reproduced"), "{text}");
    let (code, text) = run("implicate");
    assert!(code == 0 && text.contains("The weights of L2.mlp make the difference"), "{text}");
    let (code, text) = run("minimize");
    assert!(code == 0 && text.contains("no single element can go"), "{text}");

    let mut lost = case.clone();
    lost.against.as_mut().unwrap().model.fingerprint = "0123456789abcdef".into();
    lost.id = lost.compute_id();
    assert_ne!(lost.id, case.id);
    lost.write(folder.path()).unwrap();
    let file = folder.path().join(format!("{}.json", lost.id));
    let ran = glitch(&["replay", file.to_str().unwrap()]);
    assert_eq!(ran.code, 103, "{}", ran.stderr);
}
