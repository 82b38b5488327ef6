//! Adversarial suffixes: gradients of the one-hot tokens, successive halving, and searches that end
//! where they should.

use glitch::edit::{Edit, Trial};
use glitch::evaluate::{
    Evaluator, Expected, LayerwisePatching, ModelEvaluator, Observation, Request,
};
use glitch::model::batch::Row;
use glitch::model::hooks::{Block, Change, Site};
use glitch::model::{Forward, Model};
use glitch::mutate::suffix::{
    Algorithm, Goal, GoalKind, Mean, Problem, Prompt, Search, SuffixOptions, Tokens,
};

use super::cli::glitch;
use super::parity::{ATTENTION, RECURRENT, fixtures, load};

fn goal(kind: GoalKind, continuation: &[u32]) -> Goal {
    Goal { kind, continuation: continuation.to_vec(), mean: Mean::Arithmetic }
}

/// Cross entropy of the tokens after `reads` when `h` of token `id` is added to the one-hot row at
/// `position`, and the router logits on the way.
fn moved(
    model: &Model,
    ids: &[u32],
    reads: &[usize],
    position: usize,
    id: u32,
    h: f32,
) -> (f64, Vec<f32>) {
    let row: Vec<f32> = model.embedding(id).into_iter().map(|e| h * e).collect();
    let mut forward = Forward { rows: vec![Row::new(ids)], ..Forward::default() };
    let change = Change::Affine { scale: 1.0, shift: Some(row.into()) };
    let columns = 0..model.config.hidden_size;
    forward.hooks.push(0, Site::Embed, Block { tokens: position..position + 1, columns, change });
    forward.hooks.capture =
        (0..model.config.num_hidden_layers).map(|layer| (layer, Site::RouterLogits)).collect();
    let output = model.forward(&forward).unwrap();
    let logits = model.logits(&output.residual);
    let vocabulary = model.config.vocab_size;
    let losses = reads.iter().map(|read| {
        let row = &logits[read * vocabulary..][..vocabulary];
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
        sum.ln() - f64::from(row[ids[read + 1] as usize] - most)
    });
    let loss = losses.sum::<f64>() / reads.len() as f64;
    let experts = model.config.experts.as_ref();
    let chosen = experts.map_or(Vec::new(), |experts| {
        output
            .captured
            .values()
            .flat_map(|l| glitch::model::chosen_experts(l, experts))
            .map(|e| e as f32)
            .collect()
    });
    (loss, chosen)
}

/// What the issue asks for: the 32 largest entries, within a hundredth.
#[test]
fn one_hot_gradients_are_derivatives_in_every_family() {
    for name in ATTENTION.into_iter().chain(RECURRENT) {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let ids: Vec<u32> = (0..24).map(|i| (i * 37 + 5) % 90).collect();
        let (positions, reads) = (6..12, (14..23).collect::<Vec<usize>>());
        let target = goal(GoalKind::Target, &ids[15..]);
        let gradient = evaluator
            .one_hot_gradient(&ids, positions.clone(), &reads, &[1], &|logits, v| {
                target.loss_of_logits(logits, v, None)
            })
            .unwrap();
        let vocabulary = model.config.vocab_size;
        assert_eq!(gradient.tokens.len(), positions.len() * vocabulary, "{name}");
        for row in gradient.embeddings.chunks(model.config.hidden_size) {
            assert!(row.iter().any(|g| *g != 0.0), "{name}: a position without a gradient");
        }
        assert!(
            gradient.residuals[&1].iter().any(|g| *g != 0.0),
            "{name}: a layer without a gradient"
        );
        let (base, routing) = moved(&model, &ids, &reads, 6, 0, 0.0);
        assert!((base - gradient.loss).abs() < 1e-4, "{name}: {base} {}", gradient.loss);
        let mut order: Vec<usize> = (0..gradient.tokens.len()).collect();
        order.sort_by(|a, b| gradient.tokens[*b].abs().total_cmp(&gradient.tokens[*a].abs()));
        let mut compared = 0;
        for at in order.into_iter().take(256) {
            let (position, id) = (positions.start + at / vocabulary, (at % vocabulary) as u32);
            let analytic = f64::from(gradient.tokens[at]);
            // Curvature against rounding: the better of several steps. Where a token goes to
            // another expert the loss has a step and no derivative.
            let errors = [0.1f32, 0.03, 0.01, 0.003, 0.001].map(|h| {
                let (up, down) = (
                    moved(&model, &ids, &reads, position, id, h),
                    moved(&model, &ids, &reads, position, id, -h),
                );
                let numeric = (up.0 - down.0) / f64::from(2.0 * h);
                let same = up.1 == routing && down.1 == routing;
                if same { (numeric - analytic).abs() / analytic.abs() } else { f64::NAN }
            });
            let error = errors.into_iter().filter(|e| !e.is_nan()).fold(f64::NAN, f64::min);
            if error.is_nan() {
                continue;
            }
            assert!(
                error <= 1e-2,
                "{name}: position {position}, token {id}: {analytic}, relative errors {errors:?}"
            );
            compared += 1;
            if compared == 32 {
                break;
            }
        }
        assert_eq!(compared, 32, "{name}");
    }
}

/// Candidates that are never pruned get the observations of a batch, to the bit.
#[test]
fn halving_measures_what_a_batch_does() {
    for name in ["llama", "gemma3", "gpt-neox", "mixtral", "deepseek-v2"] {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let ids: Vec<u32> = (0..24).map(|i| (i * 37 + 5) % 90).collect();
        let candidates: Vec<Vec<(usize, u32)>> = (0..20)
            .map(|i| vec![(3 + i % 9, 90 - i as u32)])
            .chain([vec![], vec![(4, 80), (9, 81)]])
            .collect();
        let mut halving = evaluator.successive_halving(&ids, 15, &candidates).unwrap();
        halving.advance(1).unwrap();
        let target = goal(GoalKind::Target, &ids[15..]);
        let reads: Vec<usize> = (14..23).collect();
        let gradient = evaluator
            .one_hot_gradient(&ids, 3..12, &reads, &[1], &|logits, v| {
                target.loss_of_logits(logits, v, None)
            })
            .unwrap();
        let expected = halving.expected(3, &gradient.residuals[&1]).unwrap();
        assert_eq!(expected[20], Some(Expected::default()), "{name}: nothing was changed");
        halving.prune(|i| i % 2 == 0);
        let left = halving.finish(None).unwrap();
        let trial = Trial::new(&ids[..15], &ids[15..]);
        let request = |c: &Vec<(usize, u32)>| {
            Request::new(trial.with_edits(
                c.iter().map(|&(position, id)| Edit::Replace { position, id }).collect(),
            ))
        };
        let batch = evaluator.observe(&candidates.iter().map(request).collect::<Vec<_>>()).unwrap();
        for (i, (halved, observed)) in left.iter().zip(&batch).enumerate() {
            let halved = halved.as_ref().map(|o| (&o.log_probs, &o.entropy, &o.top, o.finite));
            let observed = (&observed.log_probs, &observed.entropy, &observed.top, observed.finite);
            assert_eq!(halved, (i % 2 == 0).then_some(observed), "{name}: {i}");
        }
        assert!(
            halving_error(&evaluator, &ids, 0, &candidates)
                && halving_error(&evaluator, &ids, 3, &candidates),
            "{name}"
        );
    }
    let model = load("mamba");
    assert!(halving_error(&ModelEvaluator::new(&model), &[1, 2, 3], 2, &[vec![(1, 5)]]));
}

/// An exempt candidate runs to the end even where it would be pruned, and the others are pruned as
/// before.
#[test]
fn exempt_candidates_run_to_the_end() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let target = goal(GoalKind::Target, &ids(&model, " the king"));
    let problem = problem(&evaluator, &["It was a fine day in the garden"], target);
    let suffix = vec![problem.tokens.neutral; 6];
    let rungs = [(1, 0.5), (2, 0.5)];
    let gradients = [problem.gradient(0, &suffix, &[1, 2]).unwrap()];
    let candidates: Vec<Vec<(usize, u32)>> =
        (0..16).map(|i| vec![(i % 6, 300 + 7 * i as u32)]).collect();
    let halve = |exempt: &[bool]| {
        problem.score_by_halving(&suffix, &candidates, exempt, &gradients, &rungs).unwrap()
    };
    let (exact, left) = (problem.score(1, &suffix, &candidates).unwrap(), halve(&[false; 16]));
    assert_eq!(left.iter().flatten().count(), 4);
    let exempt: Vec<bool> =
        left.iter().enumerate().map(|(i, score)| score.is_none() && i % 2 == 0).collect();
    let again = halve(&exempt);
    let others = exempt.iter().filter(|exempt| !**exempt).count().div_ceil(2).div_ceil(2);
    assert_eq!(
        again.iter().flatten().count(),
        exempt.iter().filter(|exempt| **exempt).count() + others
    );
    for i in 0..16 {
        assert!(!exempt[i] || again[i].is_some(), "{i} was exempt");
        assert!(
            again[i].is_none_or(|score| score == exact[i]),
            "{i}: {:?} {:?}",
            again[i],
            exact[i]
        );
    }
}

fn halving_error(
    evaluator: &ModelEvaluator,
    ids: &[u32],
    prompt: usize,
    candidates: &[Vec<(usize, u32)>],
) -> bool {
    evaluator.successive_halving(ids, prompt, candidates).is_err()
}

fn options(steps: usize) -> SuffixOptions {
    SuffixOptions {
        algorithm: Algorithm::Gcg,
        seed: 1,
        length: 6,
        steps,
        width: 48,
        last_width: 48,
        top_k: 64,
        replace: 1,
        buffer: 0,
        merge: 6,
        copies: false,
        text: true,
        rungs: Vec::new(),
    }
}

fn prompt(model: &Model, text: &str) -> Prompt {
    Prompt {
        before: model.encode(text).unwrap(),
        after: model.encode(" and").unwrap()[1..].to_vec(),
    }
}

fn problem<'a, 'm>(
    evaluator: &'a ModelEvaluator<'m>,
    prompts: &[&str],
    goal: Goal,
) -> Problem<'a, 'm> {
    let model = evaluator.model;
    let prompts = prompts.iter().map(|text| prompt(model, text)).collect();
    Problem::new(evaluator, prompts, goal, Tokens::new(model, true).unwrap(), 6).unwrap()
}

fn ids(model: &Model, text: &str) -> Vec<u32> {
    model.encode(text).unwrap()[1..].to_vec()
}

#[test]
#[cfg_attr(not(builtin = "rwkv"), ignore = "needs the feature rwkv")]
fn a_search_reaches_its_target_and_is_the_same_when_resumed() {
    for name in ["builtin:dense", "builtin:rwkv"] {
        let model = Model::load(name).unwrap();
        let evaluator = ModelEvaluator::new(&model);
        let target = goal(GoalKind::Target, &ids(&model, " the king"));
        let problem = problem(&evaluator, &["It was a fine day in the garden"], target);
        let mut whole = Search::new(&problem, options(12)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("suffix.json");
        for step in 0..12 {
            if step == 5 {
                whole.write(&path).unwrap();
            }
            whole.advance(&problem).unwrap();
        }
        let first = whole.state.trace[0].loss;
        assert!(whole.state.best.loss < first - 0.5, "{name}: {first} {}", whole.state.best.loss);
        assert!(!whole.state.reached.is_empty(), "{name}: {:?}", whole.state.best);
        // Each says the target greedily and round-trips through the tokenizer.
        for reached in &whole.state.reached {
            let trial = problem.trial(0, &reached.suffix);
            assert!(
                evaluator.observe_alone(&Request::new(trial)).unwrap().says_continuation(),
                "{name}: {reached:?}"
            );
            assert!(
                reached.round_trips && problem.round_trips(1, &reached.suffix),
                "{name}: {reached:?}"
            );
        }
        let mut resumed =
            Search::new(&problem, options(12)).unwrap().resume(&path, &model).unwrap();
        assert_eq!(resumed.state.step, 5);
        while resumed.state.step < 12 {
            resumed.advance(&problem).unwrap();
        }
        assert_eq!(resumed, whole, "{name}");
        let other = Search::new(&problem, options(13))
            .unwrap()
            .resume(&path, &model)
            .unwrap_err()
            .to_string();
        assert!(other.contains("options: is of another search"), "{other}");
    }
}

#[test]
fn beams_and_embeddings_descend_and_are_the_same_when_resumed() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let target = goal(GoalKind::Target, &ids(&model, " the king"));
    let problem = problem(&evaluator, &["It was a fine day in the garden"], target);
    for (algorithm, steps) in [(Algorithm::Beast, 6), (Algorithm::Soft, 60)] {
        let options = SuffixOptions { algorithm, ..options(steps) };
        let mut whole = Search::new(&problem, options.clone()).unwrap();
        let start = whole.state.best.loss;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("suffix.json");
        while !whole.state.ended(&options) {
            if whole.state.step == 4 {
                whole.write(&path).unwrap();
            }
            whole.advance(&problem).unwrap();
        }
        let mut resumed =
            Search::new(&problem, options.clone()).unwrap().resume(&path, &model).unwrap();
        while !resumed.state.ended(&options) {
            resumed.advance(&problem).unwrap();
        }
        assert_eq!(resumed, whole, "{algorithm:?}");
        match (algorithm, &whole.state.soft) {
            (Algorithm::Beast, None) => {
                assert!(whole.state.best.loss < start - 0.3, "{start} {}", whole.state.best.loss);
                assert!(
                    whole.state.buffer.len() > 1
                        && whole.state.buffer.iter().all(|entry| entry.suffix.len() == 6)
                );
            }
            (Algorithm::Soft, Some(soft)) => {
                // What embeddings allow is far more than what the nearest tokens do.
                assert!(
                    soft.best < 0.5 && soft.reached.is_some(),
                    "{} {:?}",
                    soft.best,
                    soft.reached
                );
                assert!(
                    soft.best < whole.state.best.loss,
                    "{} {}",
                    soft.best,
                    whole.state.best.loss
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_damaged_search_is_named() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let problem =
        problem(&evaluator, &["It was a fine day"], goal(GoalKind::Target, &ids(&model, " the")));
    let options = SuffixOptions { algorithm: Algorithm::Soft, ..options(3) };
    let mut search = Search::new(&problem, options.clone()).unwrap();
    search.advance(&problem).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("suffix.json");
    let check = |damage: &dyn Fn(&mut Search), expect: &str| {
        let mut damaged = search.clone();
        damage(&mut damaged);
        damaged.write(&path).unwrap();
        let error = Search::new(&problem, options.clone())
            .unwrap()
            .resume(&path, &model)
            .unwrap_err()
            .to_string();
        assert!(error.contains("suffix.json") && error.contains(expect), "{error}");
    };
    check(&|s| s.state.best.suffix[2] = 1 << 20, "state: token id 1048576");
    check(&|s| s.state.buffer.clear(), "state: expected suffixes");
    check(&|s| s.state.best.suffix.truncate(2), "state: expected suffixes");
    check(&|s| s.state.soft.as_mut().unwrap().moments[1].truncate(2), "state.soft");
    check(&|s| s.state.prompts = 2, "state: counts");
    check(&|s| s.model.fingerprint.push('0'), "model");
    check(&|s| s.schema_version = 9, "schema_version");
}

/// From the command line: a suffix is found, its case replayed and tried on other models. The
/// residual stream of another run: all of it at the embeddings, none of it beyond what is read, its
/// own changes nothing.
#[test]
fn a_residual_patch_loses_its_effect_where_later_positions_have_attended() {
    for name in ATTENTION.into_iter().chain(RECURRENT) {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let ids: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 90).collect();
        let mut other = ids.clone();
        other[4..7].copy_from_slice(&[11, 80, 3]);
        let observe = |ids: &[u32]| {
            let request = Request::new(Trial::new(&ids[..12], &ids[12..])).keeping_distributions();
            evaluator.observe_alone(&request).unwrap()
        };
        let (own, others) = (observe(&ids), observe(&other));
        let reference = others.distributions.clone().unwrap();
        let close = |a: &Observation, b: &Observation| {
            a.log_probs.iter().zip(&b.log_probs).all(|(a, b)| (a - b).abs() < 1e-5)
        };
        assert!(!close(&own, &others), "{name}: the tokens make no difference");
        let patching = LayerwisePatching {
            ids: &ids,
            prompt_len: 12,
            positions: 4..7,
            source: &other,
            reference: &reference,
        };
        let layers = evaluator.patch_residual_by_layer(&patching).unwrap();
        assert_eq!(layers.len(), model.config.num_hidden_layers, "{name}");
        assert!(
            close(&layers[0], &others) && layers[0].mean_divergence_bits() < 1e-5,
            "{name}: at the embeddings"
        );
        for layer in &layers[1..] {
            assert!(
                !close(layer, &others) && !close(layer, &own),
                "{name}: what the layers before have read stays"
            );
        }
        let same = LayerwisePatching { source: &ids, ..patching };
        let same = evaluator.patch_residual_by_layer(&same).unwrap();
        assert!(same.iter().all(|layer| close(layer, &own)), "{name}: its own residual stream");
    }
    let model = load("llama");
    let evaluator = ModelEvaluator::new(&model);
    let reference = evaluator
        .observe_alone(&Request::new(Trial::new([1, 2], [3])).keeping_distributions())
        .unwrap();
    let reference = reference.distributions.unwrap();
    for (positions, source) in [(0..0, &[1, 2, 3][..]), (2..4, &[1, 2, 3]), (0..1, &[1, 2])] {
        let ids = &[1, 2, 3];
        let reference = &reference;
        let patching = LayerwisePatching { ids, prompt_len: 2, positions, source, reference };
        assert!(
            evaluator.patch_residual_by_layer(&patching).is_err(),
            "{:?} {source:?}",
            patching.positions
        );
    }
}

#[test]
#[cfg_attr(not(builtin = "moe"), ignore = "needs the feature moe")]
fn a_suffix_becomes_a_case_that_replays_and_transfers() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let prompt = "It was a fine day in the garden{suffix} and";
    let args = [
        "suffix",
        "--prompt",
        prompt,
        "--target",
        " the king",
        "--length",
        "6",
        "--steps",
        "30",
        "--width",
        "64",
    ];
    let ran = glitch(&[&args[..], &["--stop-on-success", "--out", out, "--json"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let said: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(said["cases"].as_array().unwrap().len(), 1, "{}", ran.stdout);
    assert!(said["search"]["state"]["step"].as_u64().unwrap() < 30, "{}", ran.stdout);
    let cases = format!("{out}/cases");
    let case = format!("{cases}/{}.json", said["cases"][0].as_str().unwrap());
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&case).unwrap()).unwrap();
    let reading = &value["implication"]["reading"];
    let kinds: Vec<&str> = reading["contrasts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["random", "random", "random", "random", "fails"]);
    let loss = |carried: &serde_json::Value| carried["loss"].as_f64().unwrap();
    for contrast in reading["contrasts"].as_array().unwrap() {
        assert!(
            loss(&contrast["carried"]) > loss(&reading["carried"]),
            "{contrast} does as well as the case"
        );
        assert!(
            (contrast["carried"]["handover"][0].as_f64().unwrap() - 1.0).abs() < 1e-3,
            "{contrast}"
        );
    }
    let readers = reading["readers"].as_array().unwrap();
    assert!(readers.iter().all(|r| r.as_str().unwrap().contains(".head")), "{readers:?}");
    // Where nothing but the replaced tokens is patched, in the whole stream of every layer, less
    // and less of it goes.
    let handover: Vec<f64> = reading["carried"]["handover"]
        .as_array()
        .unwrap()
        .iter()
        .map(|h| h.as_f64().unwrap())
        .collect();
    assert!((handover[0] - 1.0).abs() < 1e-3 && handover[3] < handover[0], "{handover:?}");
    let ran = glitch(&["implicate", &case]);
    let said_so =
        |text: &str| assert!(ran.stdout.contains(text), "{text}: {}{}", ran.stdout, ran.stderr);
    ["attribution of the replaced tokens", "  these ", "  4 random ", "  fails "]
        .into_iter()
        .for_each(said_so);
    let ran = glitch(&["replay", &cases]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let other = fixtures().join("gguf/f32.gguf");
    let models = format!("builtin:dense,builtin:moe,{}", other.to_str().unwrap());
    let ran = glitch(&["transfer", &cases, "--models", &models, "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let matrix: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let on = &matrix[0]["on"];
    assert_eq!(
        (&on[0]["reached"], &on[0]["of"], &on[0]["by_text"]),
        (&1.into(), &1.into(), &0.into()),
        "{matrix}"
    );
    assert_eq!((&on[1]["of"], &on[1]["by_text"]), (&1.into(), &0.into()), "{matrix}");
    assert_eq!(
        (&on[2]["reached"], &on[2]["of"], &on[2]["by_text"]),
        (&0.into(), &1.into(), &1.into()),
        "{matrix}"
    );
    // The same search again, cut off after some steps, ends in the same case.
    let again =
        glitch(&[&args[..], &["--stop-on-success", "--out", out, "--resume", "--json"]].concat());
    let resumed: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(
        (&resumed["cases"], &resumed["search"]),
        (&said["cases"], &said["search"]),
        "{}",
        again.stderr
    );
}

/// The file, the page and the printed summary agree with a count by hand.
#[test]
fn held_out_prompts_are_tested_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (out, prompts) = (at("out"), at("prompts.txt"));
    std::fs::write(
        &prompts,
        "It was a fine day in the garden\nHe wrote a letter\nThe people of the town\n",
    )
    .unwrap();
    let args = [
        "suffix",
        "--prompt",
        &prompts,
        "--target",
        " the",
        "--length",
        "6",
        "--width",
        "48",
        "--held-out",
        "2",
    ];
    let ran = glitch(&[&args[..], &["--steps", "6", "--no-implication", "--out", &out]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let file = std::fs::read(dir.path().join("out/suffix.json")).unwrap();
    let search: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(search["prompts"].as_array().unwrap().len(), 1, "{search}");
    // Counted again by hand: after which of them the model says the target, greedily.
    let model = Model::load("builtin:dense").unwrap();
    let found: Search = Search::read(&dir.path().join("out/suffix.json")).unwrap();
    let suffix =
        found.state.reached.first().map_or(&found.state.best.suffix, |reached| &reached.suffix);
    let target = ids(&model, " the");
    let says_target = |text: &&str| {
        let base = [&model.encode(text).unwrap()[..], suffix].concat();
        let request = Request::new(Trial::new(base, [])).generating(target.len());
        ModelEvaluator::new(&model).observe_alone(&request).unwrap().generated == target
    };
    let held_out = ["He wrote a letter", "The people of the town"];
    let reached = held_out.iter().filter(|text| says_target(text)).count();
    assert_eq!(search["held_out"], serde_json::json!({ "reached": reached, "of": 2 }));
    assert!(reached > 0, "a suffix that works nowhere else tests nothing");
    let said = format!("held out  {reached} of 2 prompts");
    assert!(ran.stdout.contains(&said), "{said}: {}", ran.stdout);
    let page = std::fs::read_to_string(dir.path().join("out/report.html")).unwrap();
    assert!(
        page.contains(&format!("<b>{reached} of 2</b><span>held-out prompts reached</span>")),
        "{page}"
    );
    for held in [(3, 2), (0, 0)] {
        let mut odd = search.clone();
        odd["held_out"] = serde_json::json!({ "reached": held.0, "of": held.1 });
        std::fs::write(dir.path().join("out/suffix.json"), odd.to_string()).unwrap();
        let ran = glitch(&["report", &out]);
        assert_eq!(ran.code, 2, "{held:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("suffix.json: held_out: "), "{held:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
}

/// Killed, not asked to stop: whatever it was writing then.
#[test]
fn a_killed_search_ends_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (killed, whole) = (at("killed"), at("whole"));
    let prompt = "It was a fine day in the garden{suffix} and";
    let args = [
        "suffix",
        "--prompt",
        prompt,
        "--target",
        " a whale ate",
        "--length",
        "6",
        "--steps",
        "40",
        "--width",
        "48",
    ];
    let args = [&args[..], &["--no-implication", "--json", "--out"]].concat();
    let path = dir.path().join("killed/suffix.json");
    let step = || -> Option<u64> {
        let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        value["state"]["step"].as_u64()
    };
    let run = [&args[..], &[&killed]].concat();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_glitch"))
        .args(&run)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while step().unwrap_or(0) < 7 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!((7..40).contains(&step().unwrap()), "killed on its way");
    let search =
        |ran: &str| serde_json::from_str::<serde_json::Value>(ran).unwrap()["search"].clone();
    let resumed = glitch(&[&run[..], &["--resume"]].concat());
    let undisturbed = glitch(&[&args[..], &[&whole]].concat());
    assert_eq!(search(&resumed.stdout), search(&undisturbed.stdout), "{}", resumed.stderr);
}

#[test]
fn what_makes_no_sense_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let check = |args: &[&str], expect: &str| {
        let ran = glitch(&[&["suffix", "--out", out], args].concat());
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(
            ran.stderr.contains(expect) && !ran.stderr.contains("panicked"),
            "{args:?}: {}",
            ran.stderr
        );
    };
    check(&["--prompt", "To be"], "--target");
    check(&["--prompt", "To be", "--target", ""], "a value is required for '--target");
    check(&["--prompt", "To be", "--target", "x", "--mellowmax=-1"], "above 0");
    check(&["--prompt", "To be", "--target", "x", "--held-out", "1"], "leaves none");
    check(&["--prompt", "To be", "--target", "x", "--length", "400"], "the context holds 256");
    check(&["--prompt", "To be", "--target", "x", "--resume"], "suffix.json");
    std::fs::write(dir.path().join("suffix.json"), "{\"schema_version\": 1}").unwrap();
    check(&["--prompt", "To be", "--target", "x", "--resume"], "suffix.json");
}

/// A suffix for several prompts: one more whenever all so far are reached.
#[test]
fn prompts_are_added_as_they_are_reached() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let prompts = [
        "It was a fine day in the garden",
        "The people of the United States",
        "He wrote a long letter to her",
    ];
    let problem = problem(&evaluator, &prompts, goal(GoalKind::Target, &ids(&model, " the")));
    let mut search = Search::new(&problem, options(10)).unwrap();
    assert_eq!(search.state.prompts, 1);
    for _ in 0..10 {
        search.advance(&problem).unwrap();
    }
    assert_eq!(search.state.prompts, 3, "{:?}", search.state.trace);
    let best = search.state.reached.first().unwrap();
    for prompt in 0..best.prompts {
        let trial = problem.trial(prompt, &best.suffix);
        assert!(
            evaluator.observe_alone(&Request::new(trial)).unwrap().says_continuation(),
            "prompt {prompt}"
        );
    }
}

#[test]
fn other_goals_descend_as_well() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    // What it expects after a neutral suffix, which is `x` over and over.
    let text = ids(&model, " x x x x");
    let eos = [model.config.eos_token_ids[0]];
    for goal in [
        goal(GoalKind::Away, &[]),
        goal(GoalKind::Loss, &text),
        goal(GoalKind::End, &eos),
        goal(GoalKind::Loop, &[text[0]; 4]),
    ] {
        let problem = problem(&evaluator, &["It was a fine day in the garden"], goal.clone());
        let mut search = Search::new(&problem, options(8)).unwrap();
        for _ in 0..8 {
            search.advance(&problem).unwrap();
        }
        let (first, last) = (search.state.trace[0].loss, search.state.trace[7].loss);
        assert!(last < first - 0.01, "{goal:?}: {:?}", search.state.trace);
    }
}
