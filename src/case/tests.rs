use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::deficits::{Measure, Measured};
use crate::edit::{
    Action, AttentionKnockout, Component, EmbeddingChange, InLayer, Matrix, ResidualSite, Steering,
    SteeringChange, SteeringVector,
};
use crate::localize::{
    BlockEffect, ComparisonKind, ComparisonTokens, Generalization, LensRun, LogitLens, MapPosition,
    Mediation, ResidualMap, SymptomToken, TokenAttribution,
};
use crate::replicate::{InPrompt, Sampled};

/// A small valid case, for the tests of every room that keeps cases.
pub(crate) fn example() -> Case {
    let mut case = Case {
        schema_version: SCHEMA_VERSION,
        id: String::new(),
        model: ModelRef {
            name: "builtin:dense".into(),
            fingerprint: "ab".repeat(32),
            tokenizer: None,
        },
        base: vec![1, 2, 3],
        continuation: vec![4, 5],
        edits: vec![
            Edit::Replace { position: 1, id: 9 },
            Edit::Insert { position: 5, id: 7 },
            Edit::Embedding {
                position: 2,
                change: EmbeddingChange::Noise { seed: 3, strength: 0.1 },
            },
            Edit::lesion(Component::Head { layer: 1, head: 2 }, Action::Scale { factor: 2.0 }),
        ],
        verdict: Verdict {
            oracle: OracleKind::Divergence,
            score: 0.8,
            threshold: 0.3,
            margin: 0.5,
            noise_floor: 1e-4,
            controls: vec![0.1, 0.2],
            p_value: 1.0 / 3.0,
            baseline: Some(0.9),
        },
        control_seed: 1,
        search: Some(Verdict::new(OracleKind::Divergence, 0.9, &[0.1; 8], 1e-4)),
        replication: Some(Replication {
            prompts: vec![InPrompt {
                prompt: "passage 1".into(),
                score: 0.7,
                threshold: 0.2,
                holds: true,
                as_extreme: 0,
                controls: 31,
            }],
            e_value: 3.25,
            consistent: false,
        }),
        sampled: Some(Sampled { samples: 32, degenerate: 20, degenerate_baseline: 1 }),
        deficits: Some(Deficits {
            new_prompts: true,
            generated: 32,
            measures: vec![Measured {
                measure: Measure::Repetition,
                baseline: vec![0.1, 0.2],
                edited: vec![0.9, 0.8],
                controls: vec![0.0; 8],
            }],
        }),
        against: None,
        expectation: Expectation::Reproduces,
        minimization: None,
        localization: None,
        lineage: Lineage {
            seed: 1,
            evaluation: 2,
            mutators: vec!["tokens".into()],
            parent: "a".into(),
        },
        top_before: vec![TokenProbability { id: 1, text: "x".into(), probability: 0.5 }],
        top_after: vec![],
        comment: Comment::default(),
    };
    case.id = case.compute_id();
    case
}

/// The error of reading the example after `change`, with the file's name removed.
fn error(text: &str) -> String {
    let error = Case::parse(Path::new("dir/bad.json"), text.as_bytes()).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
        .strip_prefix("dir/bad.json: ")
        .unwrap_or_else(|| panic!("no file name in {error}"))
        .to_string()
}

fn changed(pointer: &str, json: &str) -> String {
    let mut value = serde_json::to_value(example()).unwrap();
    *value.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) =
        serde_json::from_str(json).unwrap();
    value.to_string()
}

#[test]
fn a_field_that_is_wrong_is_named() {
    let long = serde_json::to_string(&vec![0u32; MAX_IDS + 1]).unwrap();
    for (pointer, json, expected) in [
        ("/schema_version", "6", "schema_version: 6 is newer than this program"),
        ("/schema_version", "0", "schema_version: 0 is no version"),
        ("/schema_version", "\"2\"", "schema_version: invalid type"),
        ("/schema_version", "-1", "schema_version: invalid value"),
        ("/id", "\"0000000000000000\"", "id: does not match the content"),
        ("/id", "\"../../etc/passwd\"", "id: does not match the content"),
        ("/base", "[]", "base: empty"),
        ("/base", "[1,-2]", "base[1]: invalid value"),
        ("/base", "[4294967296]", "base[0]: invalid value"),
        ("/base", long.as_str(), "base: 65537 entries"),
        ("/continuation", long.as_str(), "continuation: 65537 entries"),
        ("/edits/0/position", "5", "edits[0].position: 5, but"),
        (
            "/edits/0/position",
            "18446744073709551615",
            "edits[0].position: 18446744073709551615, but",
        ),
        ("/edits/0/position", "18446744073709551616", "edits[0]"),
        ("/edits/1/position", "6", "edits[1].position: 6, but"),
        ("/edits/2/change/strength", "null", "edits[2]"),
        ("/edits/2/change/strength", "1e300", "edits[2].change.strength: inf"),
        ("/edits/3/action/factor", "-1e39", "edits[3].action.factor: -inf"),
        ("/edits/3/component", "\"L1.tail\"", "edits[3]"),
        ("/edits/0/edit", "\"explode\"", "edits[0]"),
        (
            "/edits/0",
            r#"{"edit":"attention_knockout","component":"L1.head2","position":3,"key":3}"#,
            "edits[0].key: 3 is not before the query at 3",
        ),
        (
            "/edits/0",
            r#"{"edit":"attention_knockout","component":"L1.mlp","key":1}"#,
            "edits[0].component: L1.mlp is no attention head or block",
        ),
        ("/verdict/score", "null", "verdict.score: invalid type: null"),
        ("/verdict/noise_floor", "-1", "verdict.noise_floor: -1 is negative"),
        ("/verdict/p_value", "1.5", "verdict.p_value: 1.5 is not between"),
        ("/verdict/baseline", "1.5", "verdict.baseline: 1.5 is not between"),
        ("/search/score", "null", "search.score: invalid type: null"),
        ("/search/p_value", "-1", "search.p_value: -1 is not between"),
        ("/replication/e_value", "-1", "replication.e_value: -1 is negative"),
        ("/replication/prompts/0/as_extreme", "32", "replication.prompts[0].as_extreme: 32 of 31"),
        ("/sampled/degenerate", "33", "sampled: more degenerate than the 32 samples"),
        ("/deficits/measures/0/edited", "[0.9]", "deficits.measures[0].edited: 1"),
        ("/deficits/measures/0/baseline/1", "null", "deficits.measures[0].baseline[1]: invalid"),
        ("/deficits/measures/0/edited", "[0.9,0.8,0.7]", "deficits.measures[0].edited: 3"),
        ("/deficits/measures/0/edited/1", "1.7e308", "deficits.measures[0].edited[1]: 17"),
        ("/deficits/measures/0/measure", "\"x\"", "deficits.measures[0].measure: unknown"),
        ("/verdict/controls", "[0.1,null]", "verdict.controls[1]: invalid type"),
        ("/verdict/oracle", "\"delphi\"", "verdict.oracle: unknown variant"),
        ("/top_before/0/probability", "2", "top_before[0].probability: 2 is not between"),
        (
            "/minimisation",
            "{\"calls\":1,\"elements_before\":1,\"elements_after\":2,\"one_minimal\":true}",
            "minimisation.elements_after",
        ),
        ("/implication", "{}", "implication: missing field"),
        ("/model", "[]", "model: invalid length"),
        ("/comment", "\"x\"", "comment: invalid type"),
    ] {
        let error = error(&changed(pointer, json));
        assert!(
            error.starts_with(expected),
            "{pointer} = {}: {error}",
            &json[..json.len().min(40)]
        );
    }
}

#[test]
fn an_attribution_that_is_wrong_is_named() {
    let mediation =
        Mediation { layerwise: vec![1.0, 0.2], attending_each: vec![0.5], ..Mediation::default() };
    let edits = vec![Edit::Replace { position: 1, id: 3 }];
    let comparison =
        ComparisonTokens { kind: ComparisonKind::Random, edits, mediation: mediation.clone() };
    let head = Component::Head { layer: 1, head: 0 };
    let attribution = TokenAttribution {
        first: 1,
        last: 1,
        attending: vec![head],
        mediation,
        comparisons: vec![comparison],
    };
    let mut case = example();
    case.localization =
        Some(Localization { attribution: Some(attribution), ..Localization::default() });
    let good = serde_json::to_value(&case).unwrap();
    Case::parse(Path::new("good.json"), good.to_string().as_bytes()).unwrap();
    for (pointer, json, expected) in [
        ("/first", "2", "last: positions 2 to 1"),
        ("/last", "5", "last: positions 1 to 5"),
        ("/readers/0", "\"L1.x\"", "readers[0]: "),
        ("/carried/each", "[]", "carried.each: 0 of 1 readers"),
        ("/carried/handover/1", "null", "carried.handover[1]"),
        ("/contrasts/0/carried/loss", "null", "contrasts[0].carried.loss"),
        ("/contrasts/0/edits/0/position", "9", "contrasts[0].edits[0].position: 9, but"),
        (
            "/contrasts/0/edits/0",
            "{\"edit\":\"delete\",\"position\":1}",
            "contrasts[0].edits[0]: not a replacement",
        ),
        ("/contrasts/0/kind", "\"x\"", "contrasts[0].kind: unknown variant"),
    ] {
        let mut value = good.clone();
        *value.pointer_mut(&format!("/implication/reading{pointer}")).unwrap() =
            serde_json::from_str(json).unwrap();
        let error = error(&value.to_string());
        assert!(
            error.starts_with(&format!("implication.reading.{expected}")),
            "{pointer}: {error}"
        );
    }
}

#[test]
fn a_residual_map_or_a_lens_that_is_wrong_is_named() {
    let mut case = example();
    let run = LensRun {
        log_probs: vec![-9.0, -0.5],
        top: vec![7, 8],
        texts: vec!["a".into(), "b".into()],
    };
    let position = |position| MapPosition { position, id: 3, text: "x".into() };
    case.localization = Some(Localization {
        symptom: Some(SymptomToken {
            id: 8,
            text: "b".into(),
            position: 4,
            log_prob: -0.5,
            effect: 3.0,
        }),
        residual_map: Some(ResidualMap {
            layers: vec![0, 2],
            hooks: vec!["blocks.0.hook_resid_pre".into(), "blocks.2.hook_resid_pre".into()],
            positions: vec![position(1), position(4)],
            necessity: vec![vec![1.0, 0.0], vec![0.25, 0.75]],
        }),
        logit_lens: Some(LogitLens {
            position: 4,
            layers: vec![1, 3],
            hooks: vec!["blocks.1.hook_resid_post".into(), "blocks.3.hook_resid_post".into()],
            clean: run.clone(),
            corrupted: run.clone(),
            controls: vec![run],
        }),
        ..Localization::default()
    });
    let good = serde_json::to_value(&case).unwrap();
    let read = Case::parse(Path::new("good.json"), good.to_string().as_bytes()).unwrap();
    assert_eq!(read.localization, case.localization);
    let many = format!("{:?}", (0..17).collect::<Vec<usize>>());
    for (pointer, json, expected) in [
        ("residual_map/layers", "[0]", "residual_map.hooks: 2 entries, 1 are expected"),
        ("residual_map/layers", "[2,2]", "residual_map.layers: not ascending"),
        ("residual_map/layers", "[]", "residual_map.layers: not ascending"),
        ("residual_map/layers", "[0,18446744073709551615]", "residual_map.layers: not ascending"),
        ("residual_map/layers", many.as_str(), "residual_map.layers: 17 entries, at most 16"),
        (
            "residual_map/hooks/1",
            "\"blocks.1.hook_resid_pre\"",
            "residual_map.hooks[1]: not blocks.2",
        ),
        ("residual_map/positions", "[]", "residual_map.positions: not ascending"),
        ("residual_map/positions/0/position", "4", "residual_map.positions: not ascending"),
        ("residual_map/positions/1/position", "99", "residual_map.positions: not ascending"),
        ("residual_map/necessity", "[]", "residual_map.necessity: 0 entries, 2 are"),
        ("residual_map/necessity/1", "[0.5]", "residual_map.necessity[1]: 1 entries, 2 are"),
        ("residual_map/necessity/1/0", "1.5", "residual_map.necessity[1]: 1.5 is not between"),
        ("residual_map/necessity/1/0", "null", "residual_map.necessity[1][0]: invalid type"),
        ("logit_lens/position", "3", "logit_lens.position: 3, which does not predict"),
        ("symptom", "null", "logit_lens.position: 4, which does not predict"),
        ("logit_lens/layers", "[3,1]", "logit_lens.layers: not ascending"),
        ("logit_lens/hooks", "[]", "logit_lens.hooks: 0 entries, 2 are"),
        ("logit_lens/clean/log_probs", "[-1]", "logit_lens.clean.log_probs: 1 entries, 2 are"),
        ("logit_lens/clean/top", "[]", "logit_lens.clean.top: 0 entries, 2 are"),
        ("logit_lens/corrupted/texts", "[]", "logit_lens.corrupted.texts: 0 entries, 2 are"),
        (
            "logit_lens/corrupted/log_probs/0",
            "0.5",
            "logit_lens.corrupted.log_probs[0]: 0.5 is no log-probability",
        ),
        (
            "logit_lens/controls/0/log_probs/1",
            "null",
            "logit_lens.controls[0].log_probs[1]: invalid type",
        ),
        ("logit_lens/controls/0/top/1", "-1", "logit_lens.controls[0].top[1]: invalid value"),
    ] {
        let mut value = good.clone();
        *value.pointer_mut(&format!("/implication/{pointer}")).unwrap() =
            serde_json::from_str(json).unwrap();
        let error = error(&value.to_string());
        assert!(error.starts_with(&format!("implication.{expected}")), "{pointer}: {error}");
    }
}

#[test]
fn a_small_file_cannot_ask_for_endless_work() {
    let mut case = example();
    let longest = |case: &mut Case, controls: usize| {
        case.base = vec![1; MAX_IDS - case.continuation.len()];
        case.edits.clear();
        case.verdict.controls = vec![0.1; controls];
        case.id = case.compute_id();
        case.validate(Path::new("x.json")).map_err(|error| error.to_string())
    };
    assert_eq!(longest(&mut case, MAX_CONTROL_TOKENS / MAX_IDS), Ok(()));
    let error = longest(&mut case, MAX_CONTROL_TOKENS / MAX_IDS + 1).unwrap_err();
    assert!(error.contains("verdict.controls: 129 controls of 65536 tokens"), "{error}");
}

#[test]
fn text_that_is_no_case_is_refused() {
    let good = serde_json::to_string(&example()).unwrap();
    let controls = format!("{:?}", vec![0; MAX_CONTROLS + 1]);
    for (text, expected) in [
        (String::new(), "(top level)"),
        ("{}".into(), "(top level): missing field `schema_version`"),
        ("[1]".into(), ""),
        ("null".into(), "(top level)"),
        ("\u{0}\u{1b}[2J".into(), "(top level)"),
        ("[".repeat(100_000), ""),
        (format!("{{\"schema_version\":2,\"x\":{}", "[".repeat(100_000)), "x"),
        (good.replacen("\"score\":0.8", "\"score\":NaN", 1), "verdict"),
        (good.replacen("\"score\":0.8", "\"score\":1e999", 1), "verdict"),
        (good.replacen("[0.1,0.2]", &controls, 1), "verdict.controls: 65537 entries"),
        (good.replacen("\"edit\":\"replace\"", "\"edit\":\"replace\",\"x\":1", 1), "edits[0]"),
        (good.replacen("{\"schema", "{\"extra\":1,\"schema", 1), "extra: unknown field"),
        (
            good.replacen("\"continuation\"", "\"base\":[1],\"continuation\"", 1),
            "(top level): duplicate field `base`",
        ),
        (format!("{good} {good}"), "(end of file)"),
    ] {
        let error = error(&text);
        assert!(error.starts_with(expected), "{}: {error}", &text[..text.len().min(60)]);
    }
}

#[test]
fn every_truncation_is_an_error() {
    let good = serde_json::to_string(&example()).unwrap();
    for cut in 0..good.len() {
        error(&good[..cut]);
    }
}

#[test]
fn an_invalid_case_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut case = example();
    case.verdict.score = f64::NAN;
    assert!(case.write(dir.path()).unwrap_err().to_string().contains("verdict.score: NaN"));
    case.verdict.score = 1.0;
    case.base.push(1);
    assert!(case.write(dir.path()).unwrap_err().to_string().contains("id: does not match"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_id_is_of_what_is_replayed() {
    let case = example();
    let check = |change: &dyn Fn(&mut Case), same: bool| {
        let mut other = case.clone();
        change(&mut other);
        assert_eq!(other.compute_id() == case.id, same);
    };
    check(&|c| c.verdict.score = 2.0, true);
    check(&|c| c.comment.title = "t".into(), true);
    check(&|c| c.model.name = "elsewhere".into(), true);
    check(&|c| c.model.fingerprint.push('0'), false);
    check(&|c| c.base = vec![1, 2, 4], false);
    // A token moved over the border is another trial.
    check(&|c| (c.base, c.continuation) = (vec![1, 2, 3, 4], vec![5]), false);
    check(&|c| c.edits.truncate(1), false);
    check(&|c| c.verdict.oracle = OracleKind::Echo, false);
    // Frozen: ids are file names in the corpus, and may not change with the program.
    assert_eq!(case.id, "980d14bd0dd2cf20");
}

fn edits(total: usize) -> impl Strategy<Value = Vec<Edit>> {
    let strength = -10.0f32..10.0;
    let change = prop_oneof![
        (any::<u64>(), strength.clone())
            .prop_map(|(seed, strength)| EmbeddingChange::Noise { seed, strength }),
        (any::<u32>(), strength.clone())
            .prop_map(|(id, strength)| EmbeddingChange::Towards { id, strength }),
        (any::<u32>(), any::<u32>(), strength.clone())
            .prop_map(|(from, to, strength)| EmbeddingChange::Direction { from, to, strength }),
    ];
    let action = prop_oneof![
        Just(Action::Zero),
        Just(Action::Mean),
        any::<u64>().prop_map(|seed| Action::Resample { seed }),
        strength.clone().prop_map(|factor| Action::Scale { factor }),
        (any::<u64>(), strength).prop_map(|(seed, strength)| Action::Noise { seed, strength }),
    ];
    let component = prop_oneof![
        Just(Component::Embed),
        (0..99usize, 0..99usize).prop_map(|(layer, head)| Component::Head { layer, head }),
        (0..99usize, 0..99usize).prop_map(|(layer, out)| Component::Weight {
            layer,
            matrix: Matrix::Down,
            out,
            input: 7
        }),
    ];
    let along = prop_oneof![
        Just(SteeringChange::Remove),
        (-10.0f32..10.0).prop_map(|strength| SteeringChange::Add { strength }),
        (-10.0f32..10.0).prop_map(|value| SteeringChange::Clamp { value }),
    ];
    let vector = prop_oneof![
        (any::<u64>(), 0.1f32..10.0).prop_map(|(seed, norm)| SteeringVector::Random { seed, norm }),
        prop::collection::vec(0.1f32..10.0, 1..9)
            .prop_map(|values| SteeringVector::Values { values }),
    ];
    let steering = (0..99usize, vector, along).prop_map(|(layer, vector, change)| {
        let site = ResidualSite { layer, at: InLayer::Mid };
        Steering { site, vector, change }
    });
    // Before the first position there is no key; all later ones may do without it.
    let knockout = (0..total, 0..99usize, any::<bool>()).prop_flat_map(|(query, layer, later)| {
        let component = Component::Attention { layer };
        let position = (!later && query > 0).then_some(query);
        (0..query.max(1)).prop_map(move |key| AttentionKnockout { component, position, key })
    });
    let is_followed = move |it: &AttentionKnockout| it.position.is_some() || it.key + 1 < total;
    let knockout = knockout.prop_filter("the last token has no query after it", is_followed);
    let retokenize = (0..total, prop::collection::vec(any::<u32>(), 2..5))
        .prop_map(|(position, pieces)| Edit::Retokenize { position, pieces });
    let edit = prop_oneof![
        knockout.prop_map(Edit::AttentionKnockout),
        retokenize,
        (0..total, any::<u32>()).prop_map(|(position, id)| Edit::Replace { position, id }),
        (0..=total, any::<u32>()).prop_map(|(position, id)| Edit::Insert { position, id }),
        (0..total).prop_map(|position| Edit::Delete { position }),
        (0..total, change).prop_map(|(position, change)| Edit::Embedding { position, change }),
        (component, action).prop_map(|(component, action)| match (component, action) {
            // A weight is the same in any text.
            (Component::Weight { .. }, Action::Resample { .. }) => {
                Edit::lesion(component, Action::Zero)
            }
            _ => Edit::lesion(component, action),
        }),
        steering.prop_map(|steering| Edit::Steering { steering, position: None }),
    ];
    prop::collection::vec(edit, 0..8)
}

prop_compose! {
    fn cases()(
        base in prop::collection::vec(any::<u32>(), 1..20),
        continuation in prop::collection::vec(any::<u32>(), 0..20),
    )(
        edits in edits(base.len() + continuation.len()),
        base in Just(base),
        continuation in Just(continuation),
        score in any::<f64>(),
        p_value in 0.0..=1.0,
        seed in any::<u64>(),
        text in ".*",
        controls in prop::collection::vec(any::<f64>(), 0..10),
    ) -> Case {
        let mut case = example();
        (case.base, case.continuation, case.edits) = (base, continuation, edits);
        (case.control_seed, case.verdict.controls) = (seed, controls);
        (case.verdict.score, case.verdict.p_value) = (score, p_value);
        (case.comment.title, case.lineage.parent) = (text.clone(), text);
        case.id = case.compute_id();
        case
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_written_is_read_again(case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        let path = case.write(dir.path()).unwrap();
        prop_assert_eq!(path.file_name().unwrap().to_str().unwrap(), format!("{}.json", case.id));
        prop_assert_eq!(&Case::read(&path).unwrap(), &case);
        // Reading and writing again changes no byte.
        let bytes = std::fs::read(&path).unwrap();
        Case::read(&path).unwrap().write(dir.path()).unwrap();
        prop_assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn damaged_bytes_never_panic(at in 0usize..4096, byte in any::<u8>()) {
        let mut bytes = serde_json::to_vec(&example()).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = Case::parse(Path::new("bad.json"), &bytes);
    }
}

#[test]
fn a_case_of_version_1_is_read_and_written_as_the_current_one() {
    let mut case = example();
    case.localization = Some(Localization { necessity: 0.5, ..Localization::default() });
    let mut old = serde_json::to_value(&case).unwrap();
    old["schema_version"] = 1.into();
    old["implication"].as_object_mut().unwrap().remove("positions");
    // Version 3 added these.
    (case.search, case.replication, case.sampled, case.deficits) = (None, None, None, None);
    let new = ["search", "replication", "sampled", "against", "deficits"];
    old.as_object_mut().unwrap().retain(|key, _| !new.contains(&key.as_str()));
    assert_eq!(Case::parse(Path::new("old.json"), old.to_string().as_bytes()).unwrap(), case);
    let mut newer = old.clone();
    newer["replication"] = serde_json::Value::Null;
    let error =
        Case::parse(Path::new("old.json"), newer.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("replication: unknown field in a case of version 2"), "{error}");
    old["implication"]["positions"] = serde_json::json!([]);
    let error =
        Case::parse(Path::new("old.json"), old.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("implication.positions"), "{error}");
}

/// The oracle says whether there is a second model; the field came with version 4.
#[test]
fn a_second_model_goes_with_the_oracle_that_compares() {
    let mut case = example();
    let model = case.model.clone();
    let read = |case: &Case| Case::parse(Path::new("x.json"), &serde_json::to_vec(case).unwrap());
    let against = Some(Against { model, swaps: Vec::new() });
    (case.against, case.id) = (against.clone(), String::new());
    case.id = case.compute_id();
    let error = read(&case).unwrap_err().to_string();
    assert!(error.contains("against: divergence compares with no other model"), "{error}");
    case.verdict.oracle = OracleKind::Disagreement;
    case.id = case.compute_id();
    assert_eq!(read(&case).unwrap(), case);
    let with = case.id.clone();
    case.against = None;
    case.id = case.compute_id();
    assert_ne!(case.id, with);
    let error = read(&case).unwrap_err().to_string();
    assert!(error.contains("against: missing"), "{error}");
    let mut old = serde_json::to_value(example()).unwrap();
    old["schema_version"] = 3.into();
    let deficits = old.as_object_mut().unwrap().remove("deficits").unwrap();
    assert!(Case::parse(Path::new("x.json"), old.to_string().as_bytes()).is_ok());
    old["against"] = serde_json::to_value(against).unwrap();
    let error = Case::parse(Path::new("x.json"), old.to_string().as_bytes()).unwrap_err();
    assert!(error.to_string().contains("against: unknown field in a case of version 3"), "{error}");
    old.as_object_mut().unwrap().remove("against");
    (old["schema_version"], old["deficits"]) = (4.into(), deficits);
    let error = Case::parse(Path::new("x.json"), old.to_string().as_bytes()).unwrap_err();
    assert!(
        error.to_string().contains("deficits: unknown field in a case of version 4"),
        "{error}"
    );
}

#[test]
fn a_profile_of_blocks_that_is_wrong_is_named() {
    let mut case = example();
    case.edits = vec![Edit::lesion(Component::Head { layer: 1, head: 0 }, Action::Zero)];
    let block = |component| BlockEffect { component, necessity: vec![0.5, 1.0] };
    let blocks = vec![block(Component::Mlp { layer: 1 }), block(Component::Attention { layer: 2 })];
    case.localization = Some(Localization {
        generalization: Some(Generalization {
            prompts: 3,
            with_effect: 2,
            set: None,
            direction: None,
            blocks,
        }),
        ..Localization::default()
    });
    case.id = case.compute_id();
    let good = serde_json::to_value(&case).unwrap();
    let read = Case::parse(Path::new("good.json"), good.to_string().as_bytes()).unwrap();
    assert_eq!(read.localization, case.localization);
    for (pointer, json, expected) in [
        ("1/component", "\"L1.mlp\"", "blocks[1].component: a second time"),
        ("0/component", "\"L1.head2\"", "blocks[0].component: L1.head2 is no mixer or MLP"),
        ("0/component", "\"L1048576.mlp\"", "blocks[0].component: L1048576.mlp is no mixer or MLP"),
        ("0/component", "\"L1.attn\"", "blocks[0].component: L1.attn is edited"),
        ("0/necessity", "[0,0,0]", "blocks[0].necessity: 3 prompts, more than have an effect"),
        ("1/necessity", "[0]", "blocks[1]: 1 entries, 2 are expected"),
        ("1/necessity/0", "1.5", "blocks[1].necessity[0]: 1.5 is not between 0 and 1"),
    ] {
        let mut bad = good.clone();
        let pointer = format!("/implication/generalization/blocks/{pointer}");
        *bad.pointer_mut(&pointer).unwrap() = serde_json::from_str(json).unwrap();
        let error = Case::parse(Path::new("bad.json"), bad.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
