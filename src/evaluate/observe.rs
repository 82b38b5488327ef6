//! Observes many requests: plans them, computes the forwards that several of them start from, runs
//! the rows in forwards of bounded size, and generates greedily.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng as _;

use super::batching::{cut, forwards};
use super::cache::CachedForward;
use super::engine::ModelEvaluator;
use super::lower::{Lowering, Place};
use super::plan::{Plan, check};
use super::rows::Job;
use super::{Evaluator, Observation, Request};
use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::model::batch::{Row, Segment};
use crate::model::hooks::Hooks;
use crate::model::{Forward, Read};
use crate::rng;

/// The number of tokens, given and generated, of the rows that generate in step. A step reads all
/// weights for one token a row, so more rows are faster; keys and values of SmolLM2 take 46 kB per
/// token.
const TOKENS_GENERATING: usize = 8192;

/// Smallest noise floor of a score: the measured one is far below it on a CPU, and a score adds
/// rounding of its own.
const LEAST_SCORE_FLOOR: f64 = 1e-6;

/// What one row generated.
#[derive(Debug, Clone, Default)]
struct Generated {
    ids: Vec<u32>,
    /// Entropy of the distribution that each was chosen from, nats.
    entropy: Vec<f32>,
}

/// A plain forward and the number of its leading tokens that a row has in common with it.
type Start = Option<(Arc<CachedForward>, usize)>;

/// A request to generate, and the forward that it continues.
struct Generating<'a> {
    request: &'a Request,
    plan: &'a Plan,
    start: Start,
}

impl Generating<'_> {
    /// Returns the number of tokens that are computed for the row.
    fn tokens(&self) -> usize {
        let shared = self.start.as_ref().map_or(0, |(_, shared)| *shared);
        self.plan.layout.prompt_len - shared + self.request.generate
    }
}

impl ModelEvaluator<'_> {
    /// Measures how far log-probabilities (nats) and divergences (bits) move when only the batch
    /// changes: the largest difference between random sequences alone, in one batch, and behind a
    /// shared prefix.
    ///
    /// # Errors
    /// Errors of the forward pass.
    pub fn noise_floor(&self) -> Result<f64> {
        let vocabulary = self.model.config.vocab_size;
        let mut rng = rng::stream(0, "noise floor");
        let start: Vec<u32> = self
            .model
            .config
            .bos_token_id
            .into_iter()
            .chain((0..7).map(|_| rng.random_range(0..vocabulary) as u32))
            .collect();
        let trials: Vec<Trial> = (2..10usize)
            .map(|n| {
                let more: Vec<u32> =
                    (0..n).map(|_| rng.random_range(0..vocabulary) as u32).collect();
                Trial::new([start.clone(), more.clone()].concat(), more)
            })
            .collect();
        let mut floor = 0f64;
        let requests: Vec<Request> = trials.iter().cloned().map(Request::new).collect();
        for (request, batched) in requests.iter().zip(self.observe(&requests)?) {
            let alone = self.observe_alone(&request.clone().keeping_distributions())?;
            let reference = alone
                .distributions
                .clone()
                .ok_or_else(|| Error::internal("distributions were not kept"))?;
            // Two requests of one trial share its forward and compute only the read positions.
            let again = self.observe(&[
                request.clone().with_reference(reference.clone()),
                request.clone().with_reference(reference),
            ])?;
            let moved = alone
                .log_probs
                .iter()
                .zip(&batched.log_probs)
                .map(|(a, b)| f64::from((a - b).abs()));
            let bits = again.iter().flat_map(|o| o.divergence_bits.iter().map(|d| f64::from(*d)));
            floor = moved.chain(bits).fold(floor, f64::max);
        }
        Ok(floor)
    }

    /// Measures the noise floor that is granted to a score, in the unit of its oracle: that of
    /// [`ModelEvaluator::noise_floor`], and never less than 1e-6.
    ///
    /// # Errors
    /// Errors of the forward pass.
    pub fn score_noise_floor(&self) -> Result<f64> {
        Ok(self.noise_floor()?.max(LEAST_SCORE_FLOOR))
    }

    /// Returns the forward that each of these plans starts from, if any. A plain one is computed if
    /// at least two plans start from it, and used if it is cached already; one with lesions is
    /// computed if it saves more layers than it takes.
    fn forwards_for(&self, plans: &[Plan]) -> Result<Vec<Option<Arc<CachedForward>>>> {
        // The forwards with lesions that plans could resume from, and how many layers each saves.
        let mut lesioned: Vec<(&[u32], &[Edit], usize)> = Vec::new();
        let mut lesioned_of = vec![None; plans.len()];
        for (at, plan) in plans.iter().enumerate() {
            let Some((_, lesions)) = &plan.below else { continue };
            let known = lesioned.iter().position(|(ids, l, _)| *ids == plan.source && l == lesions);
            let index = known.unwrap_or_else(|| {
                lesioned.push((&plan.source, lesions, 0));
                lesioned.len() - 1
            });
            lesioned[index].2 += plan.saved_below();
            lesioned_of[at] = Some(index);
        }
        let lesioned: Vec<Option<Arc<CachedForward>>> = lesioned
            .into_iter()
            .map(|(ids, lesions, saved)| {
                let pays = saved > self.model.config.num_hidden_layers;
                pays.then(|| self.cached_forward(ids, lesions)).transpose()
            })
            .collect::<Result<_>>()?;
        let resumed: Vec<Option<Arc<CachedForward>>> =
            lesioned_of.into_iter().map(|index| lesioned[index?].clone()).collect();
        let mut wanted: BTreeMap<&[u32], usize> = BTreeMap::new();
        plans
            .iter()
            .zip(&resumed)
            .filter(|(plan, resumed)| plan.gains() && resumed.is_none())
            .for_each(|(plan, _)| *wanted.entry(&plan.source).or_default() += 1);
        let mut plain = BTreeMap::new();
        for (ids, count) in wanted {
            match self.kept_forward(ids, &[]) {
                Some(cached) => drop(plain.insert(ids.to_vec(), cached)),
                None if count >= 2 => {
                    drop(plain.insert(ids.to_vec(), self.cached_forward(ids, &[])?))
                }
                None => {}
            }
        }
        let start = |(plan, resumed): (&Plan, Option<Arc<CachedForward>>)| {
            resumed.or_else(|| plain.get(&plan.source).cloned())
        };
        Ok(plans.iter().zip(resumed).map(start).collect())
    }

    /// Returns the forward whose keys, values and states a generation can continue, and the number
    /// of tokens that it has in common with it: `start`, or for a row without one any that begins
    /// like it. Lesions change what a forward keeps, so with one only what is before it is taken.
    fn start_of_generation(&self, plan: &Plan, start: Option<&Arc<CachedForward>>) -> Start {
        match start.filter(|_| plan.reach.entry.is_none()) {
            Some(start) => Some((start.clone(), plan.shared)),
            None => self.start_of(&plan.layout.ids[..plan.plain]),
        }
        .filter(|(_, shared)| *shared > 0)
    }

    /// Generates for requests, greedily or by sampling, all in step. A row stops at an end token,
    /// and at logits that are not finite.
    fn generate(&self, rows: &[Generating]) -> Result<Vec<Generated>> {
        let mut generated = vec![Generated::default(); rows.len()];
        struct Live {
            index: usize,
            next: Vec<u32>,
            prefix: Vec<Segment>,
            sampler: Option<rng::Rng>,
        }
        let mut live: Vec<Live> = (rows.iter().enumerate())
            .map(|(index, row)| {
                let shared = row.start.as_ref().map_or(0, |(_, shared)| *shared);
                Live {
                    index,
                    next: row.plan.layout.ids[shared..row.plan.layout.prompt_len].to_vec(),
                    prefix: row.start.as_ref().map_or_else(Vec::new, |(f, len)| f.prefix(*len)),
                    sampler: row.request.sample.map(|seed| rng::stream(seed, "sampled tokens")),
                }
            })
            .collect();
        live.retain(|l| rows[l.index].request.generate > 0);
        while !live.is_empty() {
            let next = live
                .iter()
                .map(|l| Row { prefix: l.prefix.clone(), ids: l.next.clone(), restart: None })
                .collect();
            let mut forward = Forward { rows: next, keep_kv: true, ..Forward::default() };
            let offsets = forward.offsets();
            let mut hooks = Hooks::default();
            for (i, l) in live.iter().enumerate() {
                let place = Place {
                    tokens: offsets[i]..offsets[i + 1],
                    position: forward.rows[i].prefix_len(),
                    layer: 0,
                };
                let Generating { request, plan, .. } = &rows[l.index];
                let trial = &request.trial;
                Lowering { baselines: self, trial, layout: &plan.layout, place, hooks: &mut hooks }
                    .run(&[])?;
            }
            forward.hooks = hooks;
            let output = self.forward(&forward)?;
            let store =
                output.kv.ok_or_else(|| Error::internal("keys and values were not kept"))?;
            let reads: Vec<Read> = offsets[1..]
                .iter()
                .zip(&live)
                .map(|(end, l)| Read {
                    token: end - 1,
                    target: None,
                    reference: None,
                    keep: l.sampler.is_some(),
                    centre: false,
                })
                .collect();
            let readouts = self.model.read(&output.residual, &reads);
            for (i, (l, readout)) in live.iter_mut().zip(readouts).enumerate() {
                l.prefix.push(Segment {
                    store: store.clone(),
                    start: offsets[i],
                    len: l.next.len(),
                });
                let chosen = match (&mut l.sampler, &readout.distribution) {
                    (Some(rng), Some(row)) => sample(row, rng.random()),
                    _ => readout.top.first().map(|(id, _)| *id),
                };
                let Some(id) = chosen.filter(|_| readout.finite) else {
                    l.next.clear();
                    continue;
                };
                let so_far = &mut generated[l.index];
                so_far.ids.push(id);
                so_far.entropy.push(readout.entropy);
                l.next = vec![id];
                if self.model.config.eos_token_ids.contains(&id)
                    || so_far.ids.len() >= rows[l.index].request.generate
                {
                    l.next.clear();
                }
            }
            live.retain(|l| !l.next.is_empty());
        }
        Ok(generated)
    }
}

/// Returns the token at which the cumulative probability passes `at` (0 to 1); the last one that
/// has any where rounding keeps the sum below it. `None` if no token has a probability.
fn sample(log_probs: &[f32], at: f64) -> Option<u32> {
    let (mut sum, mut last) = (0.0, None);
    for (id, log_prob) in log_probs.iter().enumerate() {
        let probability = f64::from(*log_prob).exp();
        if probability > 0.0 {
            sum += probability;
            last = Some(id as u32);
            if sum > at {
                break;
            }
        }
    }
    last
}

impl Evaluator for ModelEvaluator<'_> {
    fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>> {
        let plans: Vec<Plan> = requests.iter().map(|r| Plan::new(r, &self.model.config)).collect();
        for (request, plan) in requests.iter().zip(&plans) {
            check(self.model, request, &plan.layout)?;
        }
        let starts = self.forwards_for(&plans)?;
        // Rows ascend in the layer they start at, and within a layer in length, so that the rows of
        // a forward are about equally long.
        let jobs = requests.iter().zip(&plans).zip(&starts).map(|((request, plan), start)| {
            let row = match start {
                Some(start) => plan.row(Some(start), &self.model.config),
                None => self.lone_row(plan),
            };
            Job { request, plan, start: start.clone(), row }
        });
        let mut jobs: Vec<(usize, Job)> = jobs.enumerate().collect();
        jobs.sort_by_key(|(i, job)| (job.row.entry(), job.row.ids.len(), *i));
        let mut observations = vec![Observation::default(); requests.len()];
        for chunk in forwards(jobs, |(_, job)| job.row.ids.len()) {
            let (indices, chunk): (Vec<usize>, Vec<Job>) = chunk.into_iter().unzip();
            let answers = self.observe_rows(chunk)?;
            indices.into_iter().zip(answers).for_each(|(i, answer)| observations[i] = answer);
        }
        let generating = (0..requests.len()).filter(|i| requests[*i].generate > 0).map(|i| {
            let start = self.start_of_generation(&plans[i], starts[i].as_ref());
            (i, Generating { request: &requests[i], plan: &plans[i], start })
        });
        for chunk in cut(generating, |(_, row)| row.tokens(), TOKENS_GENERATING) {
            let (indices, rows): (Vec<usize>, Vec<Generating>) = chunk.into_iter().unzip();
            let generated = self.generate(&rows)?;
            for (i, Generated { ids, entropy }) in indices.into_iter().zip(generated) {
                (observations[i].generated, observations[i].generated_entropy) = (ids, entropy);
            }
        }
        let remembering: Vec<usize> = (0..requests.len()).filter(|i| requests[*i].memory).collect();
        let asked: Vec<&Request> = remembering.iter().map(|i| &requests[*i]).collect();
        let memory = self.memory(&asked)?;
        remembering
            .into_iter()
            .zip(memory)
            .for_each(|(i, memory)| observations[i].memory = Some(memory));
        let moved: Vec<usize> =
            (0..requests.len()).filter(|i| requests[*i].generate_elsewhere > 0).collect();
        let asked: Vec<&Request> = moved.iter().map(|i| &requests[*i]).collect();
        let elsewhere = self.elsewhere(&asked, false)?;
        moved.into_iter().zip(elsewhere).for_each(|(i, said)| observations[i].elsewhere = said);
        Ok(observations)
    }

    fn observe_alone(&self, request: &Request) -> Result<Observation> {
        let plan = Plan::new(request, &self.model.config);
        check(self.model, request, &plan.layout)?;
        let row = plan.row(None, &self.model.config);
        let mut observations =
            self.observe_rows(vec![Job { request, plan: &plan, start: None, row }])?;
        let mut observation =
            observations.pop().ok_or_else(|| Error::internal("a row was not observed"))?;
        let alone = Generating { request, plan: &plan, start: None };
        let generated = self.generate(&[alone])?.pop().unwrap_or_default();
        (observation.generated, observation.generated_entropy) = (generated.ids, generated.entropy);
        if request.memory {
            observation.memory = self.memory(&[request])?.pop();
        }
        if request.generate_elsewhere > 0 {
            observation.elsewhere = self.elsewhere(&[request], true)?.pop().unwrap_or_default();
        }
        Ok(observation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_by_their_probabilities() {
        let row: Vec<f32> = [0.5f32, 0.0, 0.25, 0.25].iter().map(|p| p.ln()).collect();
        let drawn = [0.0, 0.49, 0.51, 0.74, 0.76, 0.999_999, 1.0].map(|at| sample(&row, at));
        assert_eq!(drawn.map(Option::unwrap), [0, 0, 2, 2, 3, 3, 3]);
        assert_eq!(sample(&[f32::NEG_INFINITY; 3], 0.5), None);
    }
}
