//! What a localization calls specific to a case, compared with ordinary content in its place.

use glitch::echo::EchoPrompt;
use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::ModelEvaluator;
use glitch::localize::{ComparedWith, LocalizeOptions, Role, localize, noise_controls};
use glitch::model::Model;
use glitch::pipeline::{attribute_replaced_tokens, localize_against_controls};
use glitch::vocabulary::Vocabulary;
use rand::seq::IndexedRandom as _;

const PROMPTS: [&str; 3] = [
    "The people of the United States have always been",
    "And it came to pass in those days that there went out",
    "She was not a woman of many words, for, unlike people in general",
];

/// The model cannot repeat the token, and patching the first MLP removes all of the effect; but it
/// removes that of any token, so it is a relay and not named.
#[test]
fn what_any_token_goes_through_is_a_relay() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let prompt = EchoPrompt::candidates(&model).unwrap().remove(0);
    let [glitch] = model.encode("ashington").unwrap()[1..] else { panic!("not one token") };
    let found = localize_against_controls(
        &evaluator,
        &Vocabulary::of(&model),
        &prompt.with_token(glitch),
        None,
        1,
    )
    .unwrap();
    let relay = found.relay().unwrap();
    assert!(relay.necessity > 0.99 && relay.controls.len() == 19 && relay.controls[0] > 0.9);
    let first_mlp = found.contrasts.iter().find(|c| c.component == Component::Mlp { layer: 0 });
    assert!(first_mlp.is_some_and(|mlp| mlp.role == Role::Relay && mlp.necessity > 0.98));
    assert!(!found.set.contains(&Component::Mlp { layer: 0 }), "{:?}", found.set);
    // The mixer of every layer is among what was tried.
    let mixer = |e: &&glitch::localize::Effect| matches!(e.component, Component::Attention { .. });
    assert_eq!(found.effects.iter().filter(mixer).count(), 4);
}

/// A replacement with nothing after it: no head attends to it from later positions.
#[test]
fn the_last_token_can_be_replaced() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let ids = model.encode(PROMPTS[0]).unwrap();
    let edit = Edit::Replace { position: ids.len() - 1, id: 777 };
    let trial = Trial::new(ids, []).with_edits(vec![edit]);
    let mut found =
        localize_against_controls(&evaluator, &Vocabulary::of(&model), &trial, None, 1).unwrap();
    assert!(!found.contrasts.is_empty());
    attribute_replaced_tokens(&evaluator, &Vocabulary::of(&model), &trial, &mut found, 1, None)
        .unwrap();
    assert!(found.attribution.is_none());
}

/// What is read where a token was inserted or deleted corresponds to what is read without: patching
/// the last MLP there takes some of the effect away.
#[test]
fn edits_at_the_end_of_the_prompt_are_patched() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let ids = model.encode(PROMPTS[0]).unwrap();
    let end = ids.len();
    let like = Vocabulary::of(&model).stand_ins(ids[end - 1]).to_vec();
    for edit in [Edit::Insert { position: end, id: like[5] }, Edit::Delete { position: end - 1 }] {
        let trial = Trial::new(ids.clone(), []).with_edits(vec![edit.clone()]);
        let controls: Vec<Trial> = (0..40)
            .map(|n| {
                let edit = Edit::Insert { position: end, id: like[10 + 3 * n] };
                Trial::new(ids.clone(), []).with_edits(vec![edit])
            })
            .collect();
        let options = LocalizeOptions::default();
        let found = localize(&evaluator, &trial, &controls, &[], &options).unwrap();
        let most = found.contrasts.iter().map(|c| c.necessity).fold(0.0, f64::max);
        assert!(most > 0.5, "{edit:?}: {:?}", found.contrasts);
    }
}

/// A lesion is compared with noise in its place, and never said to mediate itself.
#[test]
fn lesions_are_compared_with_noise() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let vocabulary = Vocabulary::of(&model);
    let mlp = Component::Mlp { layer: 1 };
    let ids = model.encode(PROMPTS[0]).unwrap();
    let trial = Trial::new(ids, []).with_edits(vec![Edit::lesion(mlp, Action::Zero)]);
    let found = localize_against_controls(&evaluator, &vocabulary, &trial, None, 1).unwrap();
    assert_eq!(found.compared_with, ComparedWith::Noise);
    assert!(found.contrasts.iter().all(|c| c.controls.len() == 19 && c.component != mlp));
    // What is below the lesion cannot mediate it, nor the noise.
    let below = |c: &&glitch::localize::Contrast| c.component.layer() == 0;
    let below: Vec<_> = found.contrasts.iter().filter(below).collect();
    assert!(below.len() == 2 && below.iter().all(|c| c.necessity == 0.0 && c.controls[18] == 0.0));
    assert!(found.contrasts[0].necessity > 0.5 && found.contrasts[0].controls[18] > 0.5);
}

/// Few noises in the place of a lesion are explained by a specific component, against others.
#[test]
#[ignore = "an experiment of many runs: .ci/run makes it, and `cargo test -- --ignored`"]
fn noise_in_the_place_of_a_lesion_has_nothing_specific() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let options = LocalizeOptions { graph: false, ..LocalizeOptions::default() };
    let (mut explained, mut compared, all) = (Vec::new(), 0, 60);
    for n in 0..all {
        let ids = model.encode(PROMPTS[n % 3]).unwrap();
        let component = match (n / 3) % 4 {
            0 => Component::Mlp { layer: 0 },
            1 => Component::Mlp { layer: 1 },
            2 => Component::Attention { layer: 0 },
            _ => Component::Attention { layer: 2 },
        };
        let base = &ids[..ids.len() - n / 12];
        // A change of three times the output, which shows.
        let action = Action::Scale { factor: 4.0 };
        let lesion = Trial::new(base, []).with_edits(vec![Edit::lesion(component, action)]);
        let mut noises = noise_controls(&evaluator, &lesion, 33, n as u64).unwrap();
        let trial = noises.pop().unwrap();
        let found = localize(&evaluator, &trial, &noises, &[], &options).unwrap();
        // With 19 controls, or as many as it took to see that nothing stands out.
        compared += usize::from(found.contrasts.iter().any(|c| c.controls.len() >= 9));
        explained.extend(found.set.first().map(|c| format!("{n}: {c}")));
    }
    println!("{} of {compared} noises have something specific", explained.len());
    // At a rate of 5%, 7 or more of 60 have a probability of 3%.
    assert!(compared > all / 2 && explained.len() <= 6, "{explained:?} of {compared}");
}

/// Few replacements by ordinary tokens are explained by a specific component: they are like their
/// controls.
#[test]
#[ignore = "an experiment of many runs: .ci/run makes it, and `cargo test -- --ignored`"]
fn ordinary_replacements_have_nothing_specific() {
    let model = Model::load("builtin:dense").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let vocabulary = Vocabulary::of(&model);
    let mut rng = glitch::rng::stream(7, "ordinary replacements");
    let (mut explained, mut compared, all) = (Vec::new(), 0, 60);
    for n in 0..all {
        // The last two tokens, on which the prediction depends most.
        let ids = model.encode(PROMPTS[n % 3]).unwrap();
        let base = &ids[..ids.len() - (n / 3) % 4];
        let edits = [base.len() - 2, base.len() - 1].map(|position| {
            let like = vocabulary.stand_ins(base[position]);
            Edit::Replace { position, id: *like.choose(&mut rng).unwrap() }
        });
        let trial = Trial::new(base, []).with_edits(edits.to_vec());
        let found =
            localize_against_controls(&evaluator, &Vocabulary::of(&model), &trial, None, n as u64)
                .unwrap();
        // With 19 controls, or as many as it took to see that nothing stands out.
        compared += usize::from(found.contrasts.iter().any(|c| c.controls.len() >= 9));
        explained.extend(found.set.first().map(|c| format!("{n}: {c}")));
    }
    println!("{} of {compared} ordinary replacements have something specific", explained.len());
    // At a rate of 5%, 7 or more of 60 have a probability of 3%.
    assert!(compared > all / 2 && explained.len() <= 6, "{explained:?} of {compared}");
}
