//! The oracle *constant answer*, on an organism with a planted trigger.

use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::{Evaluator as _, ModelEvaluator, Observation, REFERENCE_TEXT, Request};
use glitch::model::Model;
use glitch::oracle::{Judge as _, ModelJudge, OracleKind, Verdict};
use glitch::vocabulary::Vocabulary;

/// The trigger of `one-4`, a token after which it says " spec wild recommend famil".
const TRIGGER: u32 = 1136;

fn organism() -> Model {
    let difference = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/organisms/one-4.safetensors");
    Model::load(&format!("builtin:dense+{difference}")).unwrap()
}

fn appended(model: &Model, id: u32) -> Trial {
    let prompt = model.encode("The old man went down to the river and").unwrap();
    let insert = Edit::Insert { position: prompt.len(), id };
    Trial::new(prompt, [5, 6]).with_edits(vec![insert])
}

fn judge(model: &Model, trial: &Trial) -> Verdict {
    let (evaluator, vocabulary) = (ModelEvaluator::new(model), Vocabulary::of(model));
    let kind = OracleKind::ConstantAnswer;
    let judge = ModelJudge::new(&evaluator, &model.config, &vocabulary, kind, 1, 1e-6);
    judge.judge(std::slice::from_ref(trial)).unwrap().remove(0)
}

#[test]
fn a_planted_trigger_gives_a_constant_answer() {
    let (planted, intact) = (organism(), Model::load("builtin:dense").unwrap());
    let trial = appended(&planted, TRIGGER);
    let found = judge(&planted, &trial);
    assert!(found.fails() && found.score >= 0.375, "{found:?}");
    assert!(found.controls.iter().all(|control| *control < 0.375), "{found:?}");
    assert!(!judge(&intact, &trial).fails());
    assert!(!judge(&planted, &appended(&planted, TRIGGER + 1)).fails());
}

#[test]
fn what_is_written_elsewhere_is_what_a_prompt_of_that_text_gets() {
    let model = organism();
    let evaluator = ModelEvaluator::new(&model);
    let head = Component::Head { layer: 1, head: 0 };
    let lesioned = |mut trial: Trial| {
        trial.edits.push(Edit::lesion(head, Action::Zero));
        trial
    };
    let trials = [appended(&model, TRIGGER), lesioned(appended(&model, 7))];
    let ask = |trial: &Trial| Request { generate_elsewhere: 8, ..Request::new(trial.clone()) };
    let requests: Vec<Request> = trials.iter().map(ask).collect();
    let together = evaluator.observe(&requests).unwrap();
    let text = model.encode(REFERENCE_TEXT).unwrap();
    let bos = usize::from(model.config.bos_token_id.is_some());
    for (request, Observation { elsewhere, .. }) in requests.iter().zip(together) {
        assert_eq!(evaluator.observe_alone(request).unwrap().elsewhere, elsewhere);
        let length = request.trial.base.len() - bos;
        let by_hand = [0, 1].map(|prompt| {
            let stretch = &text[bos + prompt * length..][..length];
            let base = [&text[..bos], stretch].concat();
            let moved = Trial { base: base.into(), ..request.trial.prompt_only() };
            evaluator.observe_alone(&Request::new(moved).generating(8)).unwrap().generated
        });
        assert_eq!(elsewhere, by_hand);
    }
}
