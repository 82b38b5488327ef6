use std::cell::Cell;

use super::*;
use crate::edit::{Action, AttentionKnockout, Component, EmbeddingChange};
use crate::minimize::PromptReduction;
use crate::minimize::prompt::delete_base;
use crate::oracle::OracleKind;

/// A judge that is a function of the trial to a margin (`None`: does not fail), and counts.
struct Function<F> {
    margin: F,
    calls: Cell<u64>,
    largest: Cell<usize>,
}

impl<F: Fn(&Trial) -> Option<f64>> Function<F> {
    fn new(margin: F) -> Self {
        Self { margin, calls: Cell::new(0), largest: Cell::new(0) }
    }
}

fn verdict(margin: f64) -> Verdict {
    Verdict {
        oracle: OracleKind::Divergence,
        score: margin + 0.1,
        threshold: 0.1,
        margin,
        noise_floor: 1e-3,
        controls: vec![0.05],
        p_value: 0.5,
        baseline: None,
    }
}

impl<F: Fn(&Trial) -> Option<f64>> Judge for Function<F> {
    fn judge(&self, trials: &[Trial]) -> Result<Vec<Verdict>> {
        self.calls.set(self.calls.get() + trials.len() as u64);
        self.largest.set(self.largest.get().max(trials.len()));
        Ok(trials.iter().map(|trial| verdict((self.margin)(trial).unwrap_or(-0.1))).collect())
    }
}

/// Minimizes under the margin function, checks the counts, and returns the result.
fn run(
    trial: &Trial,
    options: &MinimizeOptions,
    margin: impl Fn(&Trial) -> Option<f64>,
) -> Minimized {
    let original = verdict(margin(trial).expect("the planted trial fails"));
    let judge = Function::new(margin);
    let found = minimize(trial, &original, &judge, options).unwrap();
    assert_eq!(found.minimization.calls, judge.calls.get());
    assert!(judge.calls.get() <= options.max_calls && judge.largest.get() <= options.batch);
    assert_eq!(found.minimization.elements_after, found.trial.edits.len() + found.trial.len());
    assert!((judge.margin)(&found.trial).is_some(), "the result still fails");
    found
}

const NEUTRAL: u32 = 0;

fn options() -> MinimizeOptions<'static> {
    let prompt = PromptReduction::Tokens { neutral: Some(NEUTRAL) };
    MinimizeOptions { prompt, keep_first: 1, ..MinimizeOptions::default() }
}

fn prompt() -> Trial {
    Trial::new((100..140).collect::<Vec<u32>>(), (200..208).collect::<Vec<u32>>())
}

#[test]
fn the_planted_token_edit_is_found_with_its_context() {
    let edits = (5..35)
        .step_by(3)
        .map(|position| Edit::Replace { position, id: 7000 + position as u32 })
        .collect();
    let trial = prompt().with_edits(edits);
    // Fails when 7011 is there, somewhere after 103.
    let found = run(&trial, &options(), |trial| {
        let ids = trial.layout().ids;
        let cause = ids.iter().position(|&id| id == 103)?;
        let glitch = ids.iter().position(|&id| id == 7011)?;
        (cause < glitch).then_some(0.5)
    });
    assert_eq!(&*found.trial.base, [100, 103, 111]);
    assert_eq!(found.trial.edits, [Edit::Replace { position: 2, id: 7011 }]);
    assert_eq!(&*found.trial.continuation, [200]);
    assert!(found.minimization.one_minimal);
    assert_eq!(found.minimization.elements_before, 58);
    assert!(found.minimization.calls < 150, "{} calls", found.minimization.calls);
}

#[test]
fn tokens_that_matter_only_by_being_there_become_neutral() {
    let trial = prompt().with_edits(vec![Edit::Replace { position: 20, id: 7000 }]);
    // Needs ten tokens before the glitch, whichever.
    let found = run(&trial, &options(), |trial| {
        (trial.layout().ids.iter().position(|&id| id == 7000)? >= 10).then_some(0.5)
    });
    let mut base = vec![NEUTRAL; 11];
    (base[0], base[10]) = (100, 120);
    assert_eq!(&*found.trial.base, base);
    assert!(found.minimization.one_minimal);
}

#[test]
fn lesion_sets_shrink_to_the_pair_that_acts_jointly() {
    let lesion = |neuron| Edit::lesion(Component::Neuron { layer: 1, neuron }, Action::Zero);
    let trial = prompt().with_edits((0..50).map(lesion).collect());
    let has = |trial: &Trial, neuron| trial.edits.contains(&lesion(neuron));
    let found = run(&trial, &options(), |trial| (has(trial, 13) && has(trial, 37)).then_some(0.5));
    assert_eq!(found.trial.edits, [lesion(13), lesion(37)]);
    assert_eq!(&*found.trial.base, [100]);
    assert!(found.minimization.one_minimal);
}

#[test]
fn strengths_become_as_small_as_the_margin_allows() {
    for (initial, needed) in [(4.0f32, 1.3f32), (-4.0, 0.2)] {
        let edits = vec![
            Edit::Embedding {
                position: 3,
                change: EmbeddingChange::Noise { seed: 1, strength: initial },
            },
            Edit::lesion(Component::Mlp { layer: 2 }, Action::Scale { factor: 1.0 + initial }),
        ];
        let found = run(&prompt().with_edits(edits), &options(), |trial| {
            let strengths: Vec<f32> = trial.edits.iter().filter_map(Edit::strength).collect();
            (strengths.len() == 2 && strengths.iter().all(|s| s.abs() >= needed)).then_some(0.5)
        });
        assert_eq!(found.trial.edits.len(), 2);
        for edit in &found.trial.edits {
            let strength = edit.strength().unwrap();
            assert_eq!(strength.signum(), initial.signum());
            assert!((needed..=needed * 1.03).contains(&strength.abs()), "{strength} of {needed}");
        }
        assert!(found.minimization.one_minimal);
    }
}

#[test]
fn a_step_keeps_half_of_the_margin_and_never_slips() {
    let edit = |position| Edit::Replace { position, id: 7000 };
    let trial = prompt().with_edits((1..9).map(edit).collect());
    // Each edit adds to the failure: it would shrink to the last one.
    let found = run(&trial, &options(), |trial| Some(0.1 * trial.edits.len() as f64));
    assert_eq!(found.trial.edits.len(), 4);
    assert!(found.minimization.one_minimal && found.others.is_empty());

    // Without edit 3 it fails far worse; that is another finding.
    let margin = |trial: &Trial| {
        let ids = trial.layout().ids;
        match trial.edits.iter().any(|e| e.position() == Some(3) || ids.contains(&103)) {
            _ if trial.edits.is_empty() => None,
            true => Some(0.1),
            false => Some(0.9),
        }
    };
    let prompt_only = PromptReduction::Tokens { neutral: None };
    let plain = MinimizeOptions { prompt: prompt_only, ..options() };
    let found = run(&prompt().with_edits((5..7).map(edit).collect()), &plain, margin);
    assert!(found.trial.base.contains(&103));
    assert_eq!((found.trial.edits.len(), found.trial.base.len()), (1, 3));
    assert!(!found.others.is_empty() && found.others.len() <= plain.max_others);
    assert!(found.others.iter().all(|other| margin(other) == Some(0.9)));

    // The caller's own notion of the same failure.
    let same = |trial: &Trial, _: &Verdict| trial.edits.len() >= 2;
    let guarded = MinimizeOptions { same: Some(&same), ..options() };
    let found = run(&trial, &guarded, |trial| (!trial.edits.is_empty()).then_some(0.5));
    assert_eq!(found.trial.edits.len(), 2);
    assert!(!found.others.is_empty());
}

#[test]
fn the_budget_holds_and_costs_the_certificate() {
    let trial = prompt().with_edits(
        (5..35).map(|position| Edit::Replace { position, id: 7000 + position as u32 }).collect(),
    );
    let margin = |trial: &Trial| trial.layout().ids.contains(&7011).then_some(0.5);
    let whole = run(&trial, &options(), margin);
    assert!(whole.minimization.one_minimal);
    for max_calls in (0..whole.minimization.calls).step_by(7) {
        let cut = run(&trial, &MinimizeOptions { max_calls, ..options() }, margin);
        assert!(!cut.minimization.one_minimal, "{max_calls} of {}", whole.minimization.calls);
    }
}

#[test]
fn a_reduction_that_is_stopped_judges_nothing_more_and_has_no_certificate() {
    let trial = prompt().with_edits(
        (5..35).map(|position| Edit::Replace { position, id: 7000 + position as u32 }).collect(),
    );
    let margin = |trial: &Trial| trial.layout().ids.contains(&7011).then_some(0.5);
    let mut smaller = 0;
    for batches in 0..12 {
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > batches
        };
        let cut = run(&trial, &MinimizeOptions { stop: Some(&stop), ..options() }, margin);
        let stopped = asked.get() > batches;
        assert!(stopped && !cut.minimization.one_minimal, "{batches}: {:?}", cut.minimization);
        assert!(cut.minimization.calls <= (batches * options().batch) as u64);
        assert!(margin(&cut.trial).is_some());
        smaller += usize::from(cut.trial.edits.len() < trial.edits.len());
    }
    assert!(smaller > 0, "what was done until then is kept");
}

/// A prompt of five sentences of eight words; `fails` says where the trial fails.
fn text(
    fails: &dyn Fn(&str) -> Option<f64>,
    baseline: &dyn Fn(&str) -> f64,
) -> (Minimized, String) {
    let words = |id: u32| match id % 8 {
        7 => ".".to_owned(),
        0 => format!(" W{id}"),
        3 => "ing".to_owned(),
        _ => format!(" w{id}"),
    };
    struct Text<'a>(
        &'a dyn Fn(&Trial) -> String,
        &'a dyn Fn(&str) -> Option<f64>,
        &'a dyn Fn(&str) -> f64,
    );
    impl Judge for Text<'_> {
        fn judge(&self, trials: &[Trial]) -> Result<Vec<Verdict>> {
            Ok(trials
                .iter()
                .map(|trial| {
                    let text = self.0(trial);
                    verdict((self.1)(&text).unwrap_or(-0.1)).with_baseline((self.2)(&text))
                })
                .collect())
        }
    }
    let joined = |ids: &[u32]| ids.iter().map(|&id| words(id)).collect::<String>();
    let shown = |trial: &Trial| joined(&trial.layout().ids);
    let judge = Text(&shown, fails, baseline);
    let trial = Trial::new((0..40).collect::<Vec<u32>>(), [50]);
    let trial = trial.with_edits(vec![Edit::Replace { position: 36, id: 7 }]);
    let original = judge.judge(std::slice::from_ref(&trial)).unwrap().remove(0);
    let options = MinimizeOptions {
        prompt: PromptReduction::Text { token: &words },
        keep_first: 0,
        ..MinimizeOptions::default()
    };
    let found = minimize(&trial, &original, &judge, &options).unwrap();
    let left = joined(&found.trial.base);
    (found, left)
}

#[test]
fn a_prompt_of_text_is_reduced_to_text() {
    // Needs a word of the second sentence and one of the last, and the edit there.
    let fails = |text: &str| {
        let edited = !text.contains(" w36");
        (edited && text.contains(" w10") && text.contains(" w33")).then_some(0.5)
    };
    let (found, left) = text(&fails, &|_| 1.0);
    assert_eq!(left, " w10ing w12 w13 w14. W32 w33 w34ing w36 w37 w38.");
    assert!(found.minimization.one_minimal);
    assert_eq!(found.trial.edits, [Edit::Replace { position: 10, id: 7 }]);
    assert_eq!(found.steps.last(), Some(&found.trial));
}

/// In the first campaigns the ordinary token could not be repeated either in what was left.
#[test]
fn a_reduction_keeps_what_the_model_does_without_the_edits() {
    let quality = |text: &str| if text.contains(" w20") { 0.9 } else { 0.4 };
    let (_, left) = text(&|_| Some(0.5), &quality);
    assert!(left.contains(" w20"), "{left}");
    let (_, left) = text(&|_| Some(0.5), &|_| 0.9);
    assert!(!left.contains(" w20"), "{left}");
}

#[test]
fn no_failure_no_reduction() {
    let judge = Function::new(|_: &Trial| None);
    assert!(minimize(&prompt(), &verdict(0.0), &judge, &options()).is_err());
    assert_eq!(judge.calls.get(), 0);
}

#[test]
fn deleting_base_tokens_moves_the_edits_with_their_tokens() {
    use Edit::*;
    let check = |edits: Vec<Edit>, deleted: &[usize], base: &[u32], expected: Option<Vec<Edit>>| {
        let trial = Trial::new([10, 11, 12, 13], [20, 21]).with_edits(edits);
        let keep: Vec<bool> = (0..4).map(|p| !deleted.contains(&p)).collect();
        let found = delete_base(&trial, &keep);
        assert_eq!(found.as_ref().map(|t| t.edits.clone()), expected);
        if let Some(found) = found {
            assert_eq!(&*found.base, base);
            // The edited ids are those of before without the deleted ones.
            let gone: Vec<u32> = deleted.iter().map(|&p| trial.base[p]).collect();
            let ids: Vec<u32> =
                trial.layout().ids.into_iter().filter(|id| !gone.contains(id)).collect();
            assert_eq!(found.layout().ids, ids);
        }
    };
    check(
        vec![Replace { position: 2, id: 5 }],
        &[0, 1],
        &[12, 13],
        Some(vec![Replace { position: 0, id: 5 }]),
    );
    check(vec![Replace { position: 2, id: 5 }], &[2], &[], None);
    check(vec![Delete { position: 5 }], &[0, 3], &[11, 12], Some(vec![Delete { position: 3 }]));
    check(
        vec![Insert { position: 4, id: 5 }],
        &[3],
        &[10, 11, 12],
        Some(vec![Insert { position: 3, id: 5 }]),
    );
    check(
        vec![Insert { position: 6, id: 5 }],
        &[3],
        &[10, 11, 12],
        Some(vec![Insert { position: 5, id: 5 }]),
    );
    let retokenize = |position| vec![Retokenize { position, pieces: vec![5, 6] }];
    check(retokenize(2), &[0], &[11, 12, 13], Some(retokenize(1)));
    check(retokenize(2), &[2], &[], None);
    // A key moves with its token, and so does its query.
    let knockout = |position, key| {
        let component = Component::Head { layer: 1, head: 2 };
        AttentionKnockout(crate::edit::AttentionKnockout { component, position, key })
    };
    check(vec![knockout(Some(3), 1)], &[0, 2], &[11, 13], Some(vec![knockout(Some(1), 0)]));
    check(vec![knockout(Some(5), 2)], &[0, 3], &[11, 12], Some(vec![knockout(Some(3), 1)]));
    check(vec![knockout(None, 1)], &[0], &[11, 12, 13], Some(vec![knockout(None, 0)]));
    check(vec![knockout(Some(3), 1)], &[1], &[], None);
    check(vec![knockout(Some(3), 1)], &[3], &[], None);
    // Two inserts that meet keep their order.
    check(
        vec![Insert { position: 2, id: 6 }, Insert { position: 1, id: 5 }],
        &[1],
        &[10, 12, 13],
        Some(vec![Insert { position: 1, id: 5 }, Insert { position: 1, id: 6 }]),
    );
}

/// Found by the first campaigns on the built-in model: the edit of the prompt was dropped, and
/// "cannot repeat" became "does not say what it was not shown".
#[test]
fn what_is_shown_and_what_is_asked_for_stay_together_in_an_echo_trial() {
    let at = |position, id| Edit::Replace { position, id };
    let check = |oracle, expect: &[usize]| {
        let edits = [
            at(3, 9),
            at(5, 7),
            at(12, 9),
            Edit::Delete { position: 1 },
            Edit::Delete { position: 2 },
        ];
        assert_eq!(super::inseparable(&edits, oracle), expect);
    };
    check(OracleKind::Echo, &[0, 1, 0, 2, 3]);
    check(OracleKind::Divergence, &[0, 1, 2, 3, 4]);
    let trial = prompt().with_edits(vec![at(3, 9), at(5, 7), at(40, 9)]);
    let original = Verdict { oracle: OracleKind::Echo, ..verdict(1.0) };
    // Asking for 9 is enough to fail, by this judge.
    struct Asked;
    impl Judge for Asked {
        fn judge(&self, trials: &[Trial]) -> Result<Vec<Verdict>> {
            let asked = |t: &Trial| t.edits.iter().any(|e| e.position() == Some(t.base.len()));
            Ok(trials
                .iter()
                .map(|t| Verdict {
                    oracle: OracleKind::Echo,
                    ..verdict(if asked(t) { 1.0 } else { -0.1 })
                })
                .collect())
        }
    }
    let found = minimize(&trial, &original, &Asked, &options()).unwrap();
    let ids: Vec<u32> = found.trial.layout().ids;
    assert_eq!(
        (found.trial.edits.len(), ids.iter().filter(|id| **id == 9).count()),
        (2, 2),
        "{:?}",
        found.trial
    );
}

/// The tokens at query and key stay, as they are; the continuation keeps a query in it.
#[test]
fn a_shorter_prompt_keeps_the_edges_of_a_knockout() {
    let edges = |trial: &Trial| -> Vec<Vec<u32>> {
        let ids = [&trial.base[..], &trial.continuation].concat();
        let named = |edit: &Edit| edit.positions().map(|position| ids[position]).collect();
        trial.edits.iter().map(named).collect()
    };
    for (position, key) in [(Some(31), 7), (None, 7), (Some(prompt().base.len() + 1), 20)] {
        let component = Component::Head { layer: 1, head: 2 };
        let knockout = AttentionKnockout { component, position, key };
        let trial = prompt().with_edits(vec![Edit::AttentionKnockout(knockout)]);
        let text = |id: u32| format!(" word{}", if id.is_multiple_of(5) { "." } else { "" });
        for prompt in [options().prompt, PromptReduction::Text { token: &text }] {
            let options = MinimizeOptions { prompt, ..options() };
            let found = run(&trial, &options, |t| (!t.edits.is_empty()).then_some(1.0));
            assert!(found.trial.base.len() < trial.base.len());
            assert_eq!(edges(&found.trial), edges(&trial));
        }
    }
}
