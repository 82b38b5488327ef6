//! A real case of the built-in model, made once for the tests that need one.

use std::sync::OnceLock;

use glitch::case::{Case, Lineage};
use glitch::echo::EchoPrompt;
use glitch::evaluate::ModelEvaluator;
use glitch::model::Model;
use glitch::oracle::{ModelJudge, OracleKind};
use glitch::pipeline::{Explainer as _, Finding, ModelExplainer};
use glitch::vocabulary::Vocabulary;

/// The first anomalous token that the model cannot repeat.
pub fn case() -> &'static Case {
    static CASE: OnceLock<Case> = OnceLock::new();
    CASE.get_or_init(|| {
        let model = Model::load("builtin:dense").unwrap();
        let evaluator = ModelEvaluator::new(&model);
        let vocabulary = Vocabulary::of(&model);
        let (echo, _) =
            EchoPrompt::ranked(&model, &evaluator, &vocabulary.ordinary).unwrap().remove(0);
        let judge =
            ModelJudge::new(&evaluator, &model.config, &vocabulary, OracleKind::Echo, 7, 1e-4);
        let failing = |&id: &u32| {
            let trial = echo.with_token(id);
            let verdict = judge.judge_alone(&trial).unwrap();
            verdict.fails().then_some((trial, verdict))
        };
        let found = vocabulary.anomalous.iter().take(64).find_map(failing);
        let (trial, verdict) = found.expect("one anomalous token in 64 cannot be repeated");
        let lineage = Lineage {
            seed: 7,
            evaluation: 0,
            mutators: vec!["by hand".into()],
            parent: "tests".into(),
        };
        let finding = Finding {
            trial,
            verdict,
            control_seed: 7,
            search: None,
            minimization: None,
            replication: None,
            sampled: None,
            lineage,
        };
        let reference = model.reference();
        let explainer = ModelExplainer {
            evaluator: &evaluator,
            vocabulary: &Vocabulary::of(&model),
            model: &reference,
            new_prompts: None,
            against: None,
            attribution: None,
        };
        explainer.explain(&finding, true).unwrap().0
    })
}
