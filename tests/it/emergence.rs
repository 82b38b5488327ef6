//! Emergence: the additive surrogate is additive, planted interactions are found, drawn sets agree
//! with all of them, and an interrupted run says what it has.

use std::cell::Cell;

use glitch::Error;
use glitch::emergence::{Emergence, EmergenceOptions, Function, Replacement, Scale};
use glitch::evaluate::ModelEvaluator;
use glitch::model::Model;
use glitch::sweep::Target;
use serde_json::{Value, json};

use crate::cli::glitch;

fn passages(model: &Model, count: usize) -> Vec<Vec<u32>> {
    glitch::replicate::passages().take(count).map(|text| model.encode(text).unwrap()).collect()
}

fn run(model: &Model, options: &EmergenceOptions) -> Emergence {
    let evaluator = ModelEvaluator::new(model);
    let (texts, more) = (passages(model, 3), passages(model, 32));
    let mut each = |_: &[_]| Ok(());
    Emergence::run(&evaluator, &texts, &more, options, &|_, _| {}, &|| true, &mut each).unwrap()
}

fn orders(found: &Emergence, function: Function, scale: Scale) -> Vec<f64> {
    let of = found.shares.iter().find(|of| of.function == function && of.scale == scale);
    of.unwrap().orders.iter().map(|order| order.value).collect()
}

#[test]
fn the_surrogate_is_additive_in_logits_and_planted_interactions_are_not() {
    let model = Model::load("builtin:dense").unwrap();
    let found = run(&model, &EmergenceOptions::new(Target::Blocks));
    assert!(found.exact && found.complete && found.sets_run == 256);
    assert_eq!(found.sets_used + found.dead, 162);
    let spectrum = |function, scale| {
        let of = found.spectra.iter().find(|of| of.function == function && of.scale == scale);
        of.unwrap().orders.iter().map(|order| order.value).collect::<Vec<f64>>()
    };
    let surrogate = spectrum(Function::Surrogate, Scale::Logit);
    assert!(surrogate[0] >= 0.99, "{surrogate:?}");
    assert!((surrogate.iter().sum::<f64>() - 1.0).abs() < 1e-9 && surrogate.len() == 8);
    // The same on sets held out from the fit, of those that are alive.
    let held_out = orders(&found, Function::Surrogate, Scale::Logit);
    assert!(held_out[0] >= 0.99, "{held_out:?} of {} sets", found.sets_used);
    // AND and OR are of order 2, a chain is of order 3, each by what was planted.
    for (function, order) in [(Function::And, 2), (Function::Or, 2), (Function::Chain, 3)] {
        let weights = spectrum(function, Scale::Logit);
        assert!(weights[order - 1] > 1e-3, "{function:?} {weights:?}");
        assert!(weights[order..].iter().all(|weight| *weight < 1e-6), "{function:?} {weights:?}");
    }
    assert!(found.planted.iter().all(|p| p.named == p.terms.len()), "{:?}", found.planted);
    // The model is neither additive nor noise: pairs explain more of sets they were not fitted to.
    let model = orders(&found, Function::Model, Scale::Logit);
    assert!(model[0] < 0.95 && model[1] > model[0] + 0.05, "{model:?}");
    assert!(found.interactions.iter().all(|i| i.parts.len() > 1 && i.loss.interval.is_some()));
    let left = &found.unexplained[0];
    assert!(left.by_size.iter().all(|of| (1..=4).contains(&of.at)) && left.by_layer.len() == 4);
}

#[test]
fn drawn_sets_agree_with_all_of_them() {
    let model = Model::load("builtin:dense").unwrap();
    let all = EmergenceOptions { sets_of: Some(8), ..EmergenceOptions::new(Target::Blocks) };
    let exact = run(&model, &all);
    let drawn = run(&model, &EmergenceOptions { sets: Some(200), ..all });
    assert!(exact.exact && !drawn.exact && drawn.sets_run < 200);
    for scale in Scale::ALL {
        let of = |found: &Emergence| {
            let mut of = found.spectra.iter();
            let of = of.find(|of| of.function == Function::Model && of.scale == scale).unwrap();
            (of.exact, of.cumulative.clone())
        };
        let ((is_exact, exact), (_, drawn)) = (of(&exact), of(&drawn));
        assert!(is_exact && drawn.len() == 3);
        for (exact, drawn) in exact.iter().zip(&drawn) {
            let (low, high) = drawn.interval.unwrap();
            assert!((drawn.value - exact.value).abs() < 0.1, "{scale:?} {drawn:?} {exact:?}");
            assert!(low < drawn.value && drawn.value < high, "{drawn:?}");
        }
    }
    assert!(!drawn.interactions.is_empty());
}

#[test]
fn parts_are_replaced_by_other_texts_too() {
    let model = Model::load("builtin:moe").unwrap();
    for replacement in [Replacement::Mean, Replacement::Resample] {
        let options = EmergenceOptions {
            limit: Some(3),
            replacement,
            ..EmergenceOptions::new(Target::Experts)
        };
        let found = run(&model, &options);
        assert_eq!((found.sets_run, found.parts.len()), (8, 3));
        let surrogate = |of: &&glitch::emergence::Spectrum| {
            of.function == Function::Surrogate && of.scale == Scale::Logit
        };
        let spectrum = found.spectra.iter().find(surrogate).unwrap();
        assert!(spectrum.orders[0].value >= 0.99, "{:?}", spectrum.orders);
    }
}

#[test]
fn an_interrupted_run_has_the_texts_until_then() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let texts = passages(&model, 3);
    let options = EmergenceOptions::new(Target::Blocks);
    let done = Cell::new(0);
    let rows = Cell::new(0);
    let mut each = |so_far: &[_]| {
        done.set(done.get() + 1);
        rows.set(so_far.len());
        Ok(())
    };
    let go_on = || done.get() < 1;
    let quiet = |_: u64, _: u64| {};
    let found =
        Emergence::run(&evaluator, &texts, &[], &options, &quiet, &go_on, &mut each).unwrap();
    assert!(!found.complete && found.texts == 1 && rows.get() == 256);
    assert!(found.shares.iter().flat_map(|of| &of.orders).all(|order| order.interval.is_none()));
    let ended =
        Emergence::run(&evaluator, &texts, &[], &options, &quiet, &|| false, &mut |_: &[_]| Ok(()));
    assert!(matches!(ended, Err(Error::Interrupted)));
}

#[test]
fn the_command_prints_json_and_keeps_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (folder.path().join("text"), folder.path().join("sets.jsonl"));
    std::fs::write(&text, "The boat came back late.\n\nWe walked to the old harbour.\n").unwrap();
    let args = ["emergence", "--of", "mlps", "--text", text.to_str().unwrap(), "--out"];
    let args = [&args[..], &[out.to_str().unwrap(), "--json"]].concat();
    let ran = glitch(&args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let found: Value = serde_json::from_str(&ran.stdout).unwrap();
    for field in [
        "work",
        "of",
        "parts",
        "replacement",
        "measure",
        "exact",
        "sets_used",
        "dead",
        "texts",
        "baseline_loss",
        "unigram_loss",
        "shares",
        "with_dead",
        "sum_of_parts",
        "beyond_surrogate",
        "spectra",
        "unexplained",
        "interactions",
        "planted",
        "complete",
    ] {
        assert!(!found[field].is_null(), "{field} is missing");
    }
    assert_eq!((found["texts"].as_u64(), found["sets_run"].as_u64()), (Some(2), Some(16)));
    let rows = std::fs::read_to_string(&out).unwrap();
    assert_eq!(rows.lines().count(), 16);
    let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    assert_eq!(row["set"].as_array().map(Vec::len), Some(0));
    // An earlier file of ours is replaced when asked, and tables fit 80 columns.
    let tables = glitch(&[&args[..args.len() - 1], &["--force"]].concat());
    assert_eq!(tables.code, 0, "{}", tables.stderr);
    let wide = tables.stdout.lines().find(|l| l.chars().count() > 80 && !l.contains("sets.jsonl"));
    assert_eq!(wide, None);
    let none = glitch(&["emergence", "--of", "experts", "--text", text.to_str().unwrap()]);
    assert!(none.code == 2 && none.stderr.contains("emergence --of experts has no meaning"));
}

/// The figures of one scale that a comparison takes from those of `glitch emergence --json`.
fn explained(found: &Value, rows: &str, beyond: &str, scale: usize) -> Value {
    let name = ["loss", "logit"][scale];
    let of = |function: &str| {
        let rows = found[rows].as_array().unwrap();
        let row = rows.iter().find(|row| row["function"] == function && row["scale"] == name);
        row.unwrap()["orders"].clone()
    };
    json!({
        "model": of("model"),
        "surrogate": of("surrogate"),
        "beyond_surrogate": found[beyond][scale],
    })
}

#[test]
fn a_comparison_has_the_spectrum_that_the_command_measures() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("compare");
    let compare = |model: &str, passages: &str| {
        let budget = ["--max-evals", "1", "--seeds", "1", "--passages", passages];
        let to = ["--force", "--out", out.to_str().unwrap()];
        let ran = glitch(&[&["compare", model][..], &budget, &to].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let all = std::fs::read_to_string(out.join("comparison.json")).unwrap();
        let all: Value = serde_json::from_str(&all).unwrap();
        (all["models"][0]["spectrum"].clone(), ran.stdout)
    };
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama-tok");
    let (none, table) = compare(tiny, "0");
    assert!(none.is_null() && !table.contains("sum of its parts"), "{table}");
    // It was never trained: every set leaves it worse than a unigram model.
    let (dead, table) = compare(tiny, "2");
    assert_eq!((dead["alive"].as_u64(), dead["dead"].as_u64()), (Some(0), Some(16)));
    assert_eq!(dead["loss"]["alive"]["verdict"], "not_judged");
    assert!(table.contains("not judged"), "{table}");
    let (spectrum, table) = compare("builtin:dense", "2");
    assert!(table.contains("loss: sum of its parts?"), "{table}");

    let ran = glitch(&["emergence", "--model", "builtin:dense", "--passages", "2", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let found: Value = serde_json::from_str(&ran.stdout).unwrap();
    let figures = [
        ("up_to", "largest"),
        ("exact", "exact"),
        ("alive", "sets_used"),
        ("dead", "dead"),
        ("passages", "texts"),
        ("tokens", "tokens"),
    ];
    for (of_spectrum, of_command) in figures {
        assert_eq!(spectrum[of_spectrum], found[of_command], "{of_spectrum}");
    }
    assert_eq!((spectrum["blocks"].as_u64(), spectrum["passages"].as_u64()), (Some(8), Some(2)));
    for (at, scale) in ["loss", "logit"].into_iter().enumerate() {
        for (part, rows, beyond) in [
            ("alive", "shares", "beyond_surrogate"),
            ("with_dead", "with_dead", "beyond_surrogate_with_dead"),
        ] {
            let mut compared = spectrum[scale][part].clone();
            let verdict = compared.as_object_mut().unwrap().remove("verdict").unwrap();
            let expected = explained(&found, rows, beyond, at);
            assert_eq!(compared, expected, "{scale} {part}");
            // All orders of the command, and a judgement where there is something to judge by.
            assert_eq!(compared["model"].as_array().map(Vec::len), Some(3));
            assert_eq!(verdict == "not_judged", expected["beyond_surrogate"].is_null());
        }
    }
}
