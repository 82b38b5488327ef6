//! Runs a finding, its baseline and its controls in new prompts, and measures what they write.

use rand::Rng as _;

use super::texts::{fragment_share, missing_share, repeated_share, shared_with_others};
use super::{CONTROLS, Deficits, GENERATED, Measure, Measured, PROMPTS};
use crate::edit::{Edit, Trial};
use crate::error::Result;
use crate::evaluate::{Evaluator, Observation, Request};
use crate::model::Config;
use crate::oracle::{OracleKind, controls};
use crate::replicate::{NewPrompts, is_echo};
use crate::rng;
use crate::stats::mean;
use crate::vocabulary::Vocabulary;

/// Tokens of a passage that is to be copied, at most and at least.
const PASSAGE: usize = 24;
const LEAST_PASSAGE: usize = 8;
/// The passage is shown once and begun again: the share of it that is given the second time.
const GIVEN: usize = 3;

/// The state that all measurements of a finding share.
struct Measuring<'a> {
    evaluator: &'a dyn Evaluator,
    config: &'a Config,
    vocabulary: &'a Vocabulary,
    /// The number of prompts.
    prompts: usize,
    /// True if these are echo prompts, whose continuation is a copy.
    asks_for_copy: bool,
}

/// Measures the deficits that the edits of `trial`, a finding of `oracle`, cause in new prompts;
/// in its own prompt where they cannot be put anywhere else. Returns them with the number of trials
/// that were run. `seed` draws the prompts and the controls.
///
/// # Errors
/// Those of the evaluator.
pub fn measure(
    evaluator: &dyn Evaluator,
    (config, vocabulary): (&Config, &Vocabulary),
    trial: &Trial,
    (new_prompts, oracle): (&NewPrompts, OracleKind),
    seed: u64,
) -> Result<(Deficits, u64)> {
    let mut rng = rng::stream(seed, "prompts of the deficits");
    let bos = config.bos_token_id;
    let chosen = new_prompts.choose(evaluator, trial, oracle, bos, PROMPTS, &mut rng)?;
    let are_new = !chosen.is_empty();
    let mut prompts: Vec<Trial> = chosen.into_iter().map(|(_, trial)| trial).collect();
    if !are_new {
        prompts.push(trial.clone());
    }
    // Leave room for the generated tokens.
    let longest = config.max_position_embeddings;
    let room = |there: &Trial| there.len() + there.edits.len() + GENERATED <= longest;
    prompts.retain(room);
    if prompts.is_empty() {
        let nothing = Deficits { new_prompts: are_new, generated: GENERATED, measures: Vec::new() };
        return Ok((nothing, 0));
    }
    let drawn = controls::substitutions(trial, CONTROLS, rng.random(), config, vocabulary);
    let prompts: &[Trial] = &prompts;
    let baselines = prompts.iter().map(Trial::baseline);
    let of_controls = drawn.iter().flat_map(|made| prompts.iter().map(|there| made.apply(there)));
    let variants: Vec<Trial> =
        baselines.chain(prompts.iter().cloned()).chain(of_controls).collect();
    let asks_for_copy = is_echo(trial);
    let measuring =
        Measuring { evaluator, config, vocabulary, prompts: prompts.len(), asks_for_copy };
    let mut measures = Vec::new();
    let mut calls = variants.len() as u64;
    let written = measuring.write(&variants)?;
    for (measure, values) in measuring.of_texts(&written) {
        measures.extend(measured(measure, &values, prompts.len()));
    }
    let (agreement, ran) = measuring.prompt_agreement(&variants, &written)?;
    calls += ran;
    measures.extend(measured(Measure::PromptAgreement, &agreement, prompts.len()));
    let (copying, ran) = measuring.copying(&variants)?;
    calls += ran;
    measures.extend(measured(Measure::Copying, &copying, prompts.len()));
    measures.sort_by_key(|measured| measured.measure);
    Ok((Deficits { new_prompts: are_new, generated: GENERATED, measures }, calls))
}

/// Divides the values of a measure, `[variants, prompts]`, into baseline, edits and controls;
/// `None` if it was not measured.
fn measured(measure: Measure, values: &[f64], prompts: usize) -> Option<Measured> {
    let mut variants = values.chunks(prompts);
    let (baseline, edited) = (variants.next()?.to_vec(), variants.next()?.to_vec());
    let before = mean(&baseline);
    let controls = variants.map(|control| mean(control) - before).collect();
    Some(Measured { measure, baseline, edited, controls })
}

impl Measuring<'_> {
    /// Lets the model write on after each trial's prompt.
    fn write(&self, variants: &[Trial]) -> Result<Vec<Observation>> {
        let request = |trial: &Trial| Request::new(trial.prompt_only()).generating(GENERATED);
        let requests: Vec<Request> = variants.iter().map(request).collect();
        self.evaluator.observe(&requests)
    }

    /// Returns what can be read off the texts themselves, `[variants, prompts]` each.
    fn of_texts(&self, written: &[Observation]) -> Vec<(Measure, Vec<f64>)> {
        let end = &self.config.eos_token_ids;
        let texts: Vec<&[u32]> = written.iter().map(|text| &text.generated[..]).collect();
        let each = |f: &dyn Fn(&[u32]) -> f64| texts.iter().map(|text| f(text)).collect();
        let entropy = |text: &Observation| {
            let nats = text.generated_entropy.iter().map(|nats| f64::from(*nats));
            mean(&nats.collect::<Vec<f64>>())
        };
        let mut all: Vec<(Measure, Vec<f64>)> = vec![
            (Measure::Repetition, each(&repeated_share)),
            (Measure::Missing, each(&|text| missing_share(text, GENERATED, end))),
        ];
        // Logits that are not finite end a text before its first token.
        if texts.iter().all(|text| !text.is_empty()) {
            all.push((Measure::Entropy, written.iter().map(entropy).collect()));
        }
        if !self.vocabulary.forms.is_empty() {
            all.push((Measure::Fragments, each(&|text| fragment_share(text, self.vocabulary))));
        }
        if self.prompts > 1 {
            let shared = texts.chunks(self.prompts).flat_map(shared_with_others);
            all.push((Measure::SameText, shared.collect()));
        }
        all
    }

    /// Returns by how many nats per token each text is more probable after its own prompt than
    /// after another with the same edits, `[variants, prompts]`, and the number of trials run;
    /// nothing with a single prompt. The model that is asked has none of the edits but those of the
    /// tokens.
    fn prompt_agreement(
        &self,
        variants: &[Trial],
        written: &[Observation],
    ) -> Result<(Vec<f64>, u64)> {
        let prompts = self.prompts;
        if prompts < 2 || written.iter().any(|text| text.generated.is_empty()) {
            return Ok((Vec::new(), 0));
        }
        let requests: Vec<Request> = (written.iter().enumerate())
            .flat_map(|(at, text)| {
                let other = at - at % prompts + (at + 1) % prompts;
                [at, other].map(|prompt| {
                    let layout = variants[prompt].layout();
                    let base = &layout.ids[..layout.prompt_len];
                    Request::new(Trial::new(base, text.generated.clone()))
                })
            })
            .collect();
        let observed = self.evaluator.observe(&requests)?;
        let agreement = observed.chunks(2).map(|pair| match pair {
            [own, other] if own.finite && other.finite => other.loss() - own.loss(),
            _ => 0.0,
        });
        Ok((agreement.collect(), requests.len() as u64))
    }

    /// Returns the share of the tokens that are copied, `[variants, prompts]`, and the number of
    /// trials run. An echo prompt asks for a copy itself; any other is shown and begun again, with
    /// its token edits made, and the most probable tokens are compared with the rest of it. Nothing
    /// if other edits act at single positions: each position is there twice.
    fn copying(&self, variants: &[Trial]) -> Result<(Vec<f64>, u64)> {
        let mut requests = Vec::new();
        for trial in variants {
            let copy = match self.asks_for_copy {
                true => Some(trial.clone()),
                false => copy_trial(trial, self.config.bos_token_id),
            };
            let longest = self.config.max_position_embeddings;
            let copy = copy.filter(|copy| copy.len() <= longest);
            let Some(copy) = copy else { return Ok((Vec::new(), 0)) };
            requests.push(Request::new(copy));
        }
        let share = |(request, observed): (&Request, Observation)| {
            let layout = request.trial.layout();
            let asked = &layout.ids[layout.prompt_len..];
            let right = (observed.top.iter().zip(asked))
                .filter(|(top, id)| top.first().is_some_and(|(best, _)| best == *id));
            right.count() as f64 / asked.len().max(1) as f64
        };
        let observed = self.evaluator.observe(&requests)?;
        let shares = requests.iter().zip(observed).map(share).collect();
        Ok((shares, requests.len() as u64))
    }
}

/// Returns a trial in which the last tokens of the edited prompt are shown and begun again, with
/// the edits that act at all positions; `None` if the prompt is too short, or if an edit other than
/// of tokens acts at a position.
fn copy_trial(trial: &Trial, bos: Option<u32>) -> Option<Trial> {
    let inside: Vec<Edit> =
        trial.edits.iter().filter(|edit| !edit.is_token_edit()).cloned().collect();
    if inside.iter().any(|edit| edit.positions().next().is_some()) {
        return None;
    }
    let layout = trial.layout();
    let prompt = &layout.ids[..layout.prompt_len];
    let text = &prompt[usize::from(bos.is_some() && prompt.first().copied() == bos)..];
    let passage = &text[text.len().saturating_sub(PASSAGE)..];
    if passage.len() < LEAST_PASSAGE {
        return None;
    }
    let (given, rest) = passage.split_at(passage.len() / GIVEN);
    let base = [&bos.into_iter().collect::<Vec<u32>>()[..], passage, given].concat();
    Some(Trial::new(base, rest).with_edits(inside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deficits::Deficit;
    use crate::edit::{Action, AttentionKnockout, Component};
    use crate::testing::fake::{self, FakeEvaluator};

    fn shown(edits: Vec<Edit>) -> Vec<Deficit> {
        let (config, vocabulary) = (fake::config(), fake::vocabulary());
        let trial = Trial::new((0..=14).collect::<Vec<u32>>(), [20, 21]).with_edits(edits);
        let (prompts, divergence) = (fake::new_prompts(), OracleKind::Divergence);
        let models = (&config, &vocabulary);
        let (found, calls) =
            measure(&FakeEvaluator, models, &trial, (&prompts, divergence), 3).unwrap();
        assert!(found.new_prompts && calls > 0);
        let again = measure(&FakeEvaluator, models, &trial, (&prompts, divergence), 3).unwrap();
        assert_eq!(again.0, found);
        found.shown().map(|(deficit, _)| deficit).collect()
    }

    #[test]
    fn planted_deficits_are_shown_and_ordinary_tokens_show_none() {
        let token = |id| vec![Edit::Replace { position: 10, id }];
        assert_eq!(shown(token(77)), []);
        // Token 668 makes the fake model say one token for ever; 666 and the lesion break it, and
        // the evaluator's entropy is that of a broken model.
        assert_eq!(shown(token(668)), [Deficit::Loops]);
        let broken = [Deficit::NoCopying, Deficit::HighEntropy];
        assert_eq!(shown(token(666)), broken);
        let head = Component::Head { layer: 1, head: 2 };
        assert_eq!(shown(vec![Edit::lesion(head, Action::Zero)]), broken);
    }

    #[test]
    fn a_passage_is_shown_and_begun_again() {
        let ids: Vec<u32> = std::iter::once(9).chain(100..130).collect();
        let trial = Trial::new(ids, [7]).with_edits(vec![Edit::Replace { position: 30, id: 5 }]);
        let copy = copy_trial(&trial, Some(9)).unwrap();
        let passage: Vec<u32> = (106..129).chain([5]).collect();
        assert_eq!(copy.base[..], [&[9], &passage[..], &passage[..8]].concat());
        assert_eq!(copy.continuation[..], passage[8..]);
        let short = Trial::new([9, 1, 2, 3], [7]);
        assert_eq!(copy_trial(&short, Some(9)), None);
        let head = Component::Head { layer: 0, head: 0 };
        let lesion = |position| Edit::Lesion { component: head, action: Action::Zero, position };
        assert!(copy_trial(&trial.with_edits(vec![lesion(None)]), Some(9)).is_some());
        assert_eq!(copy_trial(&trial.with_edits(vec![lesion(Some(4))]), Some(9)), None);
        // A key is a position, although later queries are anywhere.
        let knockout = AttentionKnockout { component: head, position: None, key: 4 };
        let knockout = trial.with_edits(vec![Edit::AttentionKnockout(knockout)]);
        assert_eq!(copy_trial(&knockout, Some(9)), None);
    }
}
