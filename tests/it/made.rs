//! A real case of the built-in model, made once for the tests that need one.

use std::sync::OnceLock;

use glitch::campaign::{Explain, Finding, Follow};
use glitch::case::{Case, Lineage};
use glitch::edit::{Edit, Trial};
use glitch::evaluate::ModelEvaluator;
use glitch::model::Model;
use glitch::mutate::vocabulary::Vocabulary;
use glitch::oracle::{ModelJudge, OracleKind};

const PROMPT: &str = "The people of the United States have always been willing to";
const CONTINUATION: usize = 4;

/// The first of a few anomalous tokens that, put before the last word, shifts the distributions.
pub fn case() -> &'static Case {
    static CASE: OnceLock<Case> = OnceLock::new();
    CASE.get_or_init(|| {
        let model = Model::load("builtin:dense").unwrap();
        let evaluator = ModelEvaluator::new(&model);
        let vocabulary = Vocabulary::of(&model);
        let ids = model.encode(PROMPT).unwrap();
        let (base, continuation) = ids.split_at(ids.len() - CONTINUATION);
        let judge = ModelJudge::new(&evaluator, &model.config, &vocabulary, OracleKind::Divergence, 7, 1e-4);
        let (trial, verdict) = vocabulary
            .anomalous
            .iter()
            .take(64)
            .find_map(|&id| {
                let edits = vec![Edit::Replace { position: base.len() - 1, id }];
                let trial = Trial::new(base, continuation).with_edits(edits);
                let verdict = judge.judge_alone(&trial).unwrap();
                verdict.fails().then_some((trial, verdict))
            })
            .expect("one anomalous token in 64 is a glitch");
        let lineage = Lineage { seed: 7, evaluation: 0, mutators: vec!["by hand".into()], parent: "tests".into() };
        let finding = Finding { trial, verdict, control_seed: 7, minimisation: None, lineage };
        Explain { evaluator: &evaluator, model: &model.reference() }.follow(&finding).unwrap().0
    })
}
