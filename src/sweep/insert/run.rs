//! The runs of a sweep of insertions: continuations, the texts they have in common, and lifts.

use super::super::Progress;
use super::InsertOptions;
use super::agreed::Agreed;
use super::rarity::{Rarity, completes_word};
use super::row::{InsertRow, insertion};
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::{Evaluator as _, ModelEvaluator, Observation, Request};
use crate::rng;
use crate::vocabulary::TokenForm;

use rand::seq::SliceRandom as _;

/// The largest share of a token in a lift, nats: a factor of 22,000. No single token that the model
/// would never say decides.
const MOST_PER_TOKEN: f64 = 10.0;
/// The share of the lift that the text keeps when its end is cut off.
const KEPT: f64 = 0.9;
/// By how much more probable several tokens have to make the text than any part of them, nats: a
/// factor of 150. With less, their lift is this difference alone.
const LEAST_BEYOND_PARTS: f64 = 5.0;
/// Requests in one call.
const CHUNK: usize = 1024;

/// What all runs of a sweep share.
pub struct Runs<'a, 'm> {
    /// Runs them.
    pub evaluator: &'a ModelEvaluator<'m>,
    /// How.
    pub options: &'a InsertOptions,
    /// The form of each token.
    pub forms: Vec<TokenForm>,
    /// Told of each insertion in a prompt.
    pub progress: Progress<'a>,
    /// The number of insertions in prompts that there will be.
    pub total: u64,
    /// Asked between batches.
    pub stop: &'a dyn Fn() -> bool,
}

impl Runs<'_, '_> {
    /// Continues each prompt after each insertion; returns the continuations of each insertion and
    /// false if it was ended early. Then they are those of the prompts until then.
    pub fn continuations(
        &self,
        prompts: &[Vec<u32>],
        inserted: &[Vec<u32>],
    ) -> Result<(Vec<Vec<Vec<u32>>>, bool)> {
        let mut continuations: Vec<Vec<Vec<u32>>> = vec![Vec::new(); inserted.len()];
        for prompt in prompts {
            let base = Trial::new(&prompt[..], []);
            let mut said = Vec::with_capacity(inserted.len());
            for chunk in inserted.chunks(CHUNK) {
                if (self.stop)() {
                    return Ok((continuations, false));
                }
                let request = |ids: &Vec<u32>| {
                    Request::new(insertion(&base, ids, self.options.before_end))
                        .generating(self.options.tokens)
                };
                let requests: Vec<Request> = chunk.iter().map(request).collect();
                said.extend(self.evaluator.observe(&requests)?.into_iter().map(|o| o.generated));
                (self.progress)(chunk.len() as u64, self.total);
            }
            if self.options.null {
                let purpose = format!("null continuations of {prompt:?}");
                said.shuffle(&mut rng::stream(self.options.seed, &purpose));
            }
            continuations.iter_mut().zip(said).for_each(|(all, said)| all.push(said));
        }
        Ok((continuations, true))
    }

    /// Returns a row for each insertion, with what its continuations have in common.
    pub fn rows(
        &self,
        inserted: Vec<Vec<u32>>,
        continuations: &[Vec<Vec<u32>>],
        rarity: &Rarity,
    ) -> Vec<InsertRow> {
        let model = self.evaluator.model;
        let row = |(ids, said): (Vec<u32>, &Vec<Vec<u32>>)| {
            let own = Rarity::of(std::slice::from_ref(said), 0);
            let agreed =
                Agreed::of(said, |said, at| match completes_word(&said[..=at], &self.forms) {
                    true => 0.0,
                    false => rarity.nats(said[at], &own),
                });
            InsertRow {
                text: model.decode(&ids),
                form: ids.last().map_or(TokenForm::Other, |id| self.forms[*id as usize]),
                ids,
                said_text: model.decode(&agreed.ids),
                agreeing: agreed.followers.last().copied().unwrap_or(0),
                said: agreed.ids,
                score: agreed.score,
                lift: None,
                log_prob: None,
                says_in: Vec::new(),
                alike: 0,
                p_value: None,
                q_value: None,
            }
        };
        inserted.into_iter().zip(continuations).map(row).collect()
    }

    /// Measures the lift of a row in prompts that did not choose its text, and cuts off the end of
    /// the text that the insertion does not make more probable.
    pub fn measure_lift(&self, row: &mut InsertRow, prompts: &[Vec<u32>]) -> Result<()> {
        // What the insertion is compared with: nothing, and each part of several tokens.
        let others = parts(&row.ids);
        let before_end = self.options.before_end;
        let of_prompt = |prompt: &Vec<u32>| {
            let with = row.trial(prompt, before_end);
            let without = others.iter().map(|ids| insertion(&with.baseline(), ids, before_end));
            std::iter::once(with.clone()).chain(without).map(Request::new).collect::<Vec<_>>()
        };
        let requests: Vec<Request> = prompts.iter().flat_map(of_prompt).collect();
        let observed = self.evaluator.observe(&requests)?;
        let by_prompt = || observed.chunks_exact(others.len() + 1);
        // The sum over the tokens that count of some difference, mean over the prompts. A part of
        // several tokens cannot copy the others.
        let copies = |at: usize| row.ids.len() > 1 && row.ids.contains(&row.said[at]);
        let counts = |at| !completes_word(&row.said[..=at], &self.forms) && !copies(at);
        let counted: Vec<bool> = (0..row.said.len()).map(counts).collect();
        let sums = |nats: &dyn Fn(&[Observation], usize) -> f64| -> Vec<f64> {
            let mean = |at| by_prompt().map(|t| nats(t, at)).sum::<f64>() / prompts.len() as f64;
            (0..counted.len()).map(|at| if counted[at] { mean(at) } else { 0.0 }).collect()
        };
        let log_prob = |trial: &Observation, at: usize| f64::from(trial.log_probs[at]);
        let capped = |nats: f64| nats.clamp(-MOST_PER_TOKEN, MOST_PER_TOKEN);
        let lifts = sums(&|t, at| capped(log_prob(&t[0], at) - log_prob(&t[1], at)));
        let kept = shortest(&lifts);
        let lift = lifts[..kept].iter().sum::<f64>();
        // A part that leads to the text is what is found, and not the whole.
        let part = |t: &[Observation], at| {
            t[2..].iter().map(|trial| log_prob(trial, at)).fold(f64::NEG_INFINITY, f64::max)
        };
        let beyond = match row.ids.len() {
            1 => lift,
            _ => sums(&|t, at| capped(log_prob(&t[0], at) - part(t, at)))[..kept].iter().sum(),
        };
        row.lift = Some(if beyond >= LEAST_BEYOND_PARTS { lift } else { lift.min(beyond) });
        row.log_prob = Some(sums(&|t, at| log_prob(&t[0], at))[..kept].iter().sum());
        row.said.truncate(kept);
        row.said_text = self.evaluator.model.decode(&row.said);
        let says = |trial: &Observation| {
            let best = |at: usize| trial.top[at].first().map_or(f32::INFINITY, |(_, p)| *p);
            kept > 0 && (0..kept).all(|at| trial.log_probs[at] >= best(at))
        };
        row.says_in = by_prompt()
            .enumerate()
            .filter(|(_, trials)| says(&trials[0]))
            .map(|(i, _)| i)
            .collect();
        Ok(())
    }
}

/// Returns all subsequences of tokens but themselves, the shortest first.
fn parts(ids: &[u32]) -> Vec<Vec<u32>> {
    let of = |set: u32| -> Vec<u32> {
        let members = ids.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1);
        members.map(|(_, id)| *id).collect()
    };
    let mut parts: Vec<Vec<u32>> = (0..(1u32 << ids.len()) - 1).map(of).collect();
    parts.sort_by_key(Vec::len);
    parts
}

/// Returns the length of the shortest beginning that has most of the largest sum of a beginning.
fn shortest(lifts: &[f64]) -> usize {
    let add = |sum: &mut f64, lift: &f64| {
        *sum += lift;
        Some(*sum)
    };
    let sums: Vec<f64> = lifts.iter().scan(0.0, add).collect();
    let most = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let enough = |sum: &f64| *sum >= if most > 0.0 { KEPT * most } else { most };
    sums.iter().position(enough).map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_triple_are_its_members_and_their_pairs() {
        assert_eq!(parts(&[7]), [Vec::<u32>::new()]);
        assert_eq!(parts(&[7, 8]), [vec![], vec![7], vec![8]]);
        let of_three: [&[u32]; 7] = [&[], &[7], &[8], &[9], &[7, 8], &[7, 9], &[8, 9]];
        assert_eq!(parts(&[7, 8, 9]), of_three);
    }

    #[test]
    fn the_end_that_adds_little_is_cut_off() {
        assert_eq!(shortest(&[8.0, 9.0, 8.0, 0.5, 0.2, -3.0]), 3);
        assert_eq!(shortest(&[0.0, 10.0]), 2);
        assert_eq!(shortest(&[-1.0, -2.0]), 1);
        assert_eq!(shortest(&[]), 0);
    }
}
