//! The evaluator over a model: plans a set of requests into few forwards, and reads them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use rand::Rng as _;

use super::activations::{Activations, COMPONENT_SITES, Means, width};
use super::lower::{Lowering, Place};
use super::plan::{Plan, Run, Runs, check};
use super::rows::{Job, forwards};
use super::{Evaluator, Observation, Request};
use crate::edit::{Edit, Trial};
use crate::error::{Error, Result};
use crate::model::batch::{Residuals, Row, Segment};
use crate::model::hooks::{Hooks, Site};
use crate::model::{Forward, Model, Pooled, Read};
use crate::rng;

/// Tokens, given and generated, of the rows that generate in step. A step reads all weights for one
/// token a row, so the more rows the better; keys and values of SmolLM2 take 46 kB a token.
const TOKENS_GENERATING: usize = 8192;

/// Most values that [`ModelEvaluator::activations`] keeps of what experts add, and of recurrent
/// states (256 MB each); where there would be more, these have no activations to patch with and no
/// means.
const LARGE_SITE_VALUES: usize = 64 << 20;

/// The plain English over which mean ablation takes its means.
pub const REFERENCE_TEXT: &str = include_str!("../../corpus/seeds/reference.txt");

/// Answers requests with a model.
pub struct ModelEvaluator<'m> {
    pub model: &'m Model,
    runs: Mutex<Runs>,
    means: OnceLock<Arc<Means>>,
    routing: Mutex<Vec<(Trial, Arc<Routing>)>>,
    sketch: Vec<f32>,
    tokens: AtomicU64,
}

/// Logits of every router, `[positions, num_experts]` by layer.
pub type Routing = BTreeMap<usize, Vec<f32>>;

/// Baselines whose routing is remembered.
const ROUTINGS: usize = 8;

/// Bits of [`Observation::sketch`].
const SKETCH_BITS: usize = 64;

impl<'m> ModelEvaluator<'m> {
    pub fn new(model: &'m Model) -> Self {
        let mut rng = rng::stream(0, "sketch");
        let sketch = (0..SKETCH_BITS * model.config.hidden_size)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        Self {
            model,
            runs: Mutex::default(),
            means: OnceLock::new(),
            routing: Mutex::default(),
            sketch,
            tokens: AtomicU64::new(0),
        }
    }

    /// Tokens that went through layers so far.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Mean outputs over the reference text.
    pub fn means(&self) -> Result<Arc<Means>> {
        if let Some(means) = self.means.get() {
            return Ok(means.clone());
        }
        let ids = match &self.model.tokenizer {
            Some(_) => self.model.encode(REFERENCE_TEXT)?,
            // Without a tokenizer: every so-manieth id, which is at least not one token over and
            // over.
            None => (0..128).map(|i| (i * 7919 % self.model.config.vocab_size) as u32).collect(),
        };
        let skip = usize::from(self.model.config.bos_token_id.is_some());
        let ids = &ids[..ids.len().min(self.model.config.max_position_embeddings)];
        let run = self.activations(&Trial::new(ids, []), &[])?;
        Ok(self.means.get_or_init(|| Arc::new(Means::new(&run, skip, &self.model.config))).clone())
    }

    /// Outputs of all components of a trial at every position; `patches` are applied first.
    pub fn activations(&self, trial: &Trial, patches: &[super::Patch]) -> Result<Activations> {
        let layout = trial.layout();
        self.model.check_ids(&layout.ids)?;
        let mut forward =
            Forward { rows: vec![Row::new(layout.ids.clone())], ..Forward::default() };
        let place = Place { tokens: 0..layout.ids.len(), position: 0, layer: 0 };
        Lowering { evaluator: self, trial, layout: &layout, place, hooks: &mut forward.hooks }
            .run(patches)?;
        let config = &self.model.config;
        let all = |site: Site| (0..config.num_hidden_layers).map(move |layer| (layer, site));
        let values = |site: Site| {
            layout.ids.len()
                * all(site).map(|(layer, site)| width(layer, site, config)).sum::<usize>()
        };
        let fits = |site: &Site| {
            !matches!(site, Site::Experts | Site::State) || values(*site) <= LARGE_SITE_VALUES
        };
        let sites = COMPONENT_SITES.into_iter().filter(fits);
        forward.hooks.capture =
            sites.flat_map(all).filter(|(layer, site)| width(*layer, *site, config) > 0).collect();
        let output = self.forward(&forward)?;
        Ok(Activations { positions: layout.ids.len(), sites: output.captured })
    }

    /// How a trial without edits is routed; the last few are remembered.
    pub(super) fn baseline_routing(&self, baseline: &Trial) -> Result<Arc<Routing>> {
        let mut known = self.routing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, routing)) = known.iter().find(|(trial, _)| trial == baseline) {
            return Ok(routing.clone());
        }
        let ids = baseline.layout().ids;
        self.model.check_ids(&ids)?;
        let mut forward = Forward { rows: vec![Row::new(ids)], ..Forward::default() };
        let sparse = (0..self.model.config.num_hidden_layers)
            .filter(|layer| self.model.config.is_sparse(*layer));
        forward.hooks.capture = sparse.map(|layer| (layer, Site::RouterLogits)).collect();
        let captured = self.forward(&forward)?.captured;
        let routing =
            Arc::new(captured.into_iter().map(|((layer, _), logits)| (layer, logits)).collect());
        known.truncate(ROUTINGS - 1);
        known.insert(0, (baseline.clone(), Arc::clone(&routing)));
        Ok(routing)
    }

    /// How far log-probabilities and divergences move when only the batch changes: the largest
    /// difference of sequences alone, together, and behind a shared prefix. Nats and bits.
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
                .ok_or_else(|| Error::request("distributions were not kept"))?;
            // Two of the same trial share a run of it, and compute only what is read.
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

    pub(super) fn forward(&self, forward: &Forward) -> Result<crate::model::Output<Pooled>> {
        self.tokens
            .fetch_add(forward.rows.iter().map(|r| r.ids.len() as u64).sum(), Ordering::Relaxed);
        self.model.forward(forward)
    }

    /// The run of a sequence with these lesions (none: a plain one), from the cache or computed.
    pub(super) fn run(&self, ids: &[u32], lesions: &[Edit]) -> Result<Arc<Run>> {
        self.model.check_ids(ids)?;
        let mut runs = self.runs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(run) = runs.get(ids, lesions) {
            return Ok(run);
        }
        let mut forward = Forward {
            rows: vec![Row::new(ids)],
            keep_kv: lesions.is_empty(),
            ..Forward::default()
        };
        let trial = Trial::new(ids, []).with_edits(lesions.to_vec());
        let (layout, place) =
            (trial.layout(), Place { tokens: 0..ids.len(), position: 0, layer: 0 });
        Lowering {
            evaluator: self,
            trial: &trial,
            layout: &layout,
            place,
            hooks: &mut forward.hooks,
        }
        .run(&[])?;
        let sites = [Site::ResidPre, Site::ResidMid, Site::RouterLogits];
        forward.hooks.capture = (0..self.model.config.num_hidden_layers)
            .flat_map(|l| sites.map(|site| (l, site)))
            .collect();
        let output = self.forward(&forward)?;
        let mut residuals = Residuals::default();
        let (mut router_logits, mut routed) = (BTreeMap::new(), BTreeMap::new());
        for ((layer, site), values) in output.captured {
            match (site, &self.model.config.experts) {
                (Site::ResidPre, _) => residuals.pre.push(values),
                (Site::ResidMid, _) => residuals.mid.push(values),
                (_, Some(experts)) => {
                    routed.insert(layer, crate::model::tokens_of_experts(&values, experts));
                    router_logits.insert(layer, values);
                }
                (_, None) => {}
            }
        }
        residuals.pre.push(output.residual.to_vec());
        // Only plain runs are continued by other tokens.
        let kv = output.kv.unwrap_or_default();
        let residuals = Arc::new(residuals);
        let run = Arc::new(Run {
            ids: ids.to_vec(),
            lesions: lesions.to_vec(),
            kv,
            residuals,
            router_logits,
            routed,
        });
        runs.insert(run.clone());
        Ok(run)
    }

    /// The run that each of these plans starts from. One is made of a sequence that at least two of
    /// them start from, or that was needed before; and one with lesions where that saves more
    /// layers than it takes.
    fn runs_for(&self, plans: &[Plan]) -> Result<Vec<Option<Arc<Run>>>> {
        let key = |plan: &Plan| {
            plan.below.as_ref().map(|(_, lesions)| format!("{:?}{lesions:?}", plan.source))
        };
        let mut saved: BTreeMap<String, usize> = BTreeMap::new();
        plans
            .iter()
            .filter_map(|p| Some((key(p)?, p.saved_below())))
            .for_each(|(k, n)| *saved.entry(k).or_default() += n);
        let pays = |plan: &Plan| {
            key(plan).is_some_and(|k| saved[&k] > self.model.config.num_hidden_layers)
        };
        let mut wanted: BTreeMap<&[u32], usize> = BTreeMap::new();
        plans
            .iter()
            .filter(|p| p.gains() && !pays(p))
            .for_each(|p| *wanted.entry(&p.source).or_default() += 1);
        let mut plain = BTreeMap::new();
        for (ids, count) in wanted {
            let kept =
                self.runs.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(ids, &[]);
            match kept {
                Some(run) => drop(plain.insert(ids.to_vec(), run)),
                None if count >= 2 => drop(plain.insert(ids.to_vec(), self.run(ids, &[])?)),
                None => {}
            }
        }
        let mut lesioned: BTreeMap<String, Arc<Run>> = BTreeMap::new();
        let mut of = |plan: &Plan| -> Result<Option<Arc<Run>>> {
            let (Some(key), Some((_, lesions)), true) = (key(plan), &plan.below, pays(plan)) else {
                return Ok(plain.get(&plan.source).cloned());
            };
            Ok(Some(match lesioned.get(&key) {
                Some(run) => run.clone(),
                None => {
                    let run = self.run(&plan.source, lesions)?;
                    lesioned.insert(key, run.clone());
                    run
                }
            }))
        };
        plans.iter().map(&mut of).collect()
    }

    pub(super) fn sketch_of(&self, residual: &[f32]) -> u64 {
        let signs = self.sketch.chunks_exact(residual.len()).enumerate();
        signs.fold(0, |bits, (i, u)| {
            let dot: f32 = u.iter().zip(residual).map(|(a, b)| a * b).sum();
            bits | (u64::from(dot > 0.0) << i)
        })
    }

    /// Greedy generation for the requests that ask for it, all in step; a row ends at an end token.
    fn generate(&self, rows: &[(&Request, &Plan)]) -> Result<Vec<Vec<u32>>> {
        let mut generated = vec![Vec::new(); rows.len()];
        struct Live {
            index: usize,
            next: Vec<u32>,
            prefix: Vec<Segment>,
        }
        let mut live: Vec<Live> = (0..rows.len())
            .map(|index| Live {
                index,
                next: rows[index].1.layout.ids[..rows[index].1.layout.prompt_len].to_vec(),
                prefix: Vec::new(),
            })
            .collect();
        live.retain(|l| rows[l.index].0.generate > 0);
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
                let (request, plan) = rows[l.index];
                let trial = &request.trial;
                Lowering { evaluator: self, trial, layout: &plan.layout, place, hooks: &mut hooks }
                    .run(&[])?;
            }
            forward.hooks = hooks;
            let output = self.forward(&forward)?;
            let store = output.kv.ok_or_else(|| Error::request("keys and values were not kept"))?;
            let reads: Vec<Read> = offsets[1..]
                .iter()
                .map(|end| Read { token: end - 1, target: None, reference: None, keep: false })
                .collect();
            let readouts = self.model.read(&output.residual, &reads);
            for (i, (l, readout)) in live.iter_mut().zip(readouts).enumerate() {
                l.prefix.push(Segment {
                    store: store.clone(),
                    start: offsets[i],
                    len: l.next.len(),
                });
                let Some((id, _)) = readout.top.first().filter(|_| readout.finite) else {
                    l.next.clear();
                    continue;
                };
                generated[l.index].push(*id);
                l.next = vec![*id];
                if self.model.config.eos_token_ids.contains(id)
                    || generated[l.index].len() >= rows[l.index].0.generate
                {
                    l.next.clear();
                }
            }
            live.retain(|l| !l.next.is_empty());
        }
        Ok(generated)
    }
}

impl Evaluator for ModelEvaluator<'_> {
    fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>> {
        let plans: Vec<Plan> = requests.iter().map(|r| Plan::new(r, &self.model.config)).collect();
        for (request, plan) in requests.iter().zip(&plans) {
            check(self.model, request, &plan.layout)?;
        }
        let runs = self.runs_for(&plans)?;
        // Rows ascend in the layer they start at; within a layer, in length, so that forwards are
        // even.
        let jobs = requests.iter().zip(&plans).zip(runs).map(|((request, plan), run)| {
            let row = plan.row(run.as_deref(), &self.model.config);
            Job { request, plan, run, row }
        });
        let mut jobs: Vec<(usize, Job)> = jobs.enumerate().collect();
        jobs.sort_by_key(|(i, job)| (job.row.entry(), job.row.ids.len(), *i));
        let mut observations = vec![Observation::default(); requests.len()];
        for chunk in forwards(jobs, |(_, job)| job.row.ids.len()) {
            let (indices, chunk): (Vec<usize>, Vec<Job>) = chunk.into_iter().unzip();
            let answers = self.observe_rows(chunk)?;
            indices.into_iter().zip(answers).for_each(|(i, answer)| observations[i] = answer);
        }
        let generating: Vec<usize> =
            (0..requests.len()).filter(|i| requests[*i].generate > 0).collect();
        let mut rest = &generating[..];
        while !rest.is_empty() {
            let tokens = |i: &usize| plans[*i].layout.prompt_len + requests[*i].generate;
            let fit = rest.iter().scan(0, |sum, i| {
                *sum += tokens(i);
                Some(*sum)
            });
            let (now, later) =
                rest.split_at(fit.take_while(|sum| *sum <= TOKENS_GENERATING).count().max(1));
            let rows: Vec<(&Request, &Plan)> =
                now.iter().map(|i| (&requests[*i], &plans[*i])).collect();
            now.iter()
                .zip(self.generate(&rows)?)
                .for_each(|(i, generated)| observations[*i].generated = generated);
            rest = later;
        }
        let remembering: Vec<usize> = (0..requests.len()).filter(|i| requests[*i].memory).collect();
        let asked: Vec<&Request> = remembering.iter().map(|i| &requests[*i]).collect();
        let memory = self.memory(&asked)?;
        remembering
            .into_iter()
            .zip(memory)
            .for_each(|(i, memory)| observations[i].memory = Some(memory));
        Ok(observations)
    }

    fn observe_alone(&self, request: &Request) -> Result<Observation> {
        let plan = Plan::new(request, &self.model.config);
        check(self.model, request, &plan.layout)?;
        let row = plan.row(None, &self.model.config);
        let mut observations =
            self.observe_rows(vec![Job { request, plan: &plan, run: None, row }])?;
        let mut observation = observations.pop().ok_or_else(|| Error::request("no observation"))?;
        observation.generated = self.generate(&[(request, &plan)])?.pop().unwrap_or_default();
        if request.memory {
            observation.memory = self.memory(&[request])?.pop();
        }
        Ok(observation)
    }
}
