//! The search for the smallest faithful graph.

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::IndexedRandom as _;

use super::background::{Background, BackgroundRun};
use super::{GOAL, MAX_NODES, Place, Places};
use crate::edit::Component;
use crate::error::{Error, Result};
use crate::evaluate::{Activations, Evaluator as _, PATCH_VALUES, Patch, Request, place};
use crate::localize::Effect;
use crate::localize::set::LocalizeOptions;
use crate::localize::symptom::{Symptom, last};
use crate::model::hooks::Site;
use crate::rng;

/// The sizes of graph that are tried, of the places in the order of their attribution.
const SIZES: [usize; 13] = [1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48];

/// The faithfulness that is aimed at against one run of the background, until the goal is reached
/// against all of them.
const AIMS: [f64; 3] = [GOAL + 0.05, GOAL + 0.12, GOAL + 0.19];

/// The share of the best graph's faithfulness that a smaller one must keep, if none reaches the
/// goal.
const KEPT: f64 = 0.95;

/// The number of random graphs.
const RANDOM: usize = 20;

/// The components that stand for the mixer of a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mixers {
    /// Its heads, where it has some.
    Heads,
    /// The mixer as a whole.
    Whole,
}

/// A search over graphs of one symptom.
pub struct Search<'s, 'a, 'm> {
    /// The symptom and its runs.
    pub symptom: &'s Symptom<'a, 'm>,
    /// The runs whose outputs replace those of places off the graph.
    pub background: &'s Background,
    effects: &'s [Effect],
    /// The components of each layer that can be nodes: heads or the mixer, and the MLP.
    pub units: Vec<(Vec<Component>, Option<Component>)>,
    /// The positions at which some block's output is not as in the background.
    pub positions: Vec<usize>,
    seed: u64,
    /// Trials evaluated so far.
    pub calls: u64,
}

impl<'s, 'a, 'm> Search<'s, 'a, 'm> {
    /// Looks for graphs of a symptom.
    pub fn new(
        symptom: &'s Symptom<'a, 'm>,
        background: &'s Background,
        effects: &'s [Effect],
        by: Mixers,
        options: &LocalizeOptions,
    ) -> Self {
        let config = &symptom.runs.evaluator.model.config;
        let free = |c: &Component| !background.edited.contains(c);
        let units = (0..config.num_hidden_layers)
            .map(|layer| {
                let heads = (0..config.heads(layer)).map(|head| Component::Head { layer, head });
                let mixer = config.mixer(layer);
                let mixers: Vec<Component> = match (free(&mixer), config.heads(layer), by) {
                    (false, ..) => Vec::new(),
                    (true, 0, _) | (true, _, Mixers::Whole) => vec![mixer],
                    (true, _, Mixers::Heads) => heads.collect(),
                };
                (mixers, config.mlp(layer).filter(free))
            })
            .collect();
        let (positions, seed, calls) = (Vec::new(), options.seed, 0);
        let search = Self { symptom, background, effects, units, positions, seed, calls };
        let differ = |&position: &usize| search.differs(position);
        let positions = (0..=symptom.position).filter(differ).collect();
        Self { positions, ..search }
    }

    /// Returns true if a block's output at a position is not as in the background.
    fn differs(&self, position: usize) -> bool {
        let config = &self.symptom.runs.evaluator.model.config;
        let Some(source) = self.background.source(position) else { return false };
        let own = &self.symptom.runs.corrupted.activations;
        self.background.runs.iter().any(|run| {
            self.units.iter().enumerate().any(|(layer, (_, mlp))| {
                [config.mixer(layer)].iter().chain(mlp).any(|block| {
                    let other = run.activations.output(block, source..source + 1, config);
                    let own = own.output(block, position..position + 1, config);
                    own.is_some() && other.is_some() && own != other
                })
            })
        })
    }

    /// Takes the gradients of the symptom at the outputs of all places, by heads and by whole
    /// mixers; `None` without a background.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn gradients(&mut self) -> Result<Option<Activations>> {
        let evaluator = self.symptom.runs.evaluator;
        let config = &evaluator.model.config;
        let whole = (0..config.num_hidden_layers).map(|layer| config.mixer(layer));
        let units = self.units.iter().flat_map(|(mixers, mlp)| mixers.iter().chain(mlp));
        let places = units.copied().chain(whole).filter_map(|c| place(&c, config));
        let sites: BTreeSet<(usize, Site)> = places.map(|(layer, site, _)| (layer, site)).collect();
        let Some(run) = self.background.runs.first() else { return Ok(None) };
        let corrupted = &self.symptom.runs.corrupted;
        // Where the lengths differ there is nothing between the two runs.
        let ids = corrupted.trial.layout().ids;
        let other = run.trial.layout().ids;
        let from = if other.len() == ids.len() { other } else { ids };
        self.calls += 5;
        evaluator.integrated_gradients(&corrupted.trial, &from, &sites).map(Some)
    }

    /// Attributes the symptom to all places: by how much, to first order, the difference of each
    /// from the background makes it, nats.
    fn attributions(&self, gradients: &Activations) -> Vec<(f64, Place)> {
        let config = &self.symptom.runs.evaluator.model.config;
        let Some(run) = self.background.runs.first() else { return Vec::new() };
        let corrupted = &self.symptom.runs.corrupted;
        let toward = self.symptom.effect.signum();
        let mut scored: Vec<(f64, Place)> = Vec::new();
        for (mixers, mlp) in &self.units {
            for component in mixers.iter().chain(mlp) {
                for &position in &self.positions {
                    let source = self.background.source(position).unwrap_or(position);
                    let (Some(own), Some(other), Some(gradient)) = (
                        corrupted.activations.output(component, position..position + 1, config),
                        run.activations.output(component, source..source + 1, config),
                        gradients.output(component, position..position + 1, config),
                    ) else {
                        continue;
                    };
                    let change = own.iter().zip(&other).map(|(a, b)| a - b);
                    let score: f64 =
                        change.zip(&gradient).map(|(d, g)| f64::from(d) * f64::from(*g)).sum();
                    scored.push((toward * score, (*component, position)));
                }
            }
        }
        scored
    }

    /// Ranks the places in two ways, each of which finds what the other misses: by attribution, and
    /// by the exact effect of the whole component, of which each place has the share that it has of
    /// the component's attributions. A gradient is wrong where something saturates; the effect of a
    /// component is not, but says nothing of positions.
    fn rankings(&self, gradients: &Activations) -> [Vec<Place>; 2] {
        let attributed = self.attributions(gradients);
        let mut sums: BTreeMap<Component, f64> = BTreeMap::new();
        for (score, (component, _)) in &attributed {
            *sums.entry(*component).or_default() += score.abs();
        }
        let strengths: BTreeMap<Component, f64> = self
            .effects
            .iter()
            .map(|e| (e.component, e.necessity.clamp(0.0, 1.0) + e.sufficiency.clamp(0.0, 1.0)))
            .collect();
        let exact = attributed.iter().map(|(score, place)| {
            let strength = strengths.get(&place.0).copied().unwrap_or(0.0);
            (strength * score.abs() / sums[&place.0].max(f64::MIN_POSITIVE), *place)
        });
        [exact.collect(), attributed.clone()].map(ranked)
    }

    /// Finds a small graph whose faithfulness reaches the goal or, if none does, is nearly the best
    /// one's. Returns its places, in the order in which they are computed, and its faithfulness.
    /// `gradients` are those of [`gradients`](Self::gradients).
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn smallest(&mut self, gradients: Option<&Activations>) -> Result<(Vec<Place>, f64)> {
        let mut graphs: Vec<Places> = Vec::new();
        for ranked in gradients.map(|gradients| self.rankings(gradients)).into_iter().flatten() {
            let sizes = SIZES.into_iter().filter(|size| *size <= ranked.len());
            graphs.extend(sizes.map(|size| ranked[..size].iter().copied().collect()));
        }
        graphs.sort_by_key(Places::len);
        graphs.dedup();
        let measured = self.provisional(&graphs)?;
        // A graph that reaches the aim against one run may miss the goal against all of them.
        let mut found = (Places::new(), 0.0);
        for aim in AIMS {
            let best = measured.iter().copied().fold(0.0, f64::max);
            let least = if best >= aim { aim } else { KEPT * best };
            let Some(at) = measured.iter().position(|f| *f >= least && best > 0.0) else { break };
            let mut graph = graphs[at].clone();
            while let Some(smaller) = self.smaller(&graph, least)? {
                graph = smaller;
            }
            let faithfulness = self.faithfulness(&[&graph])?.first().copied().unwrap_or(0.0);
            if faithfulness > found.1 {
                found = (graph, faithfulness);
            }
            if found.1 >= GOAL || best < aim {
                break;
            }
        }
        let (graph, faithfulness) = found;
        let mut places: Vec<Place> = graph.into_iter().collect();
        places.sort_by_key(|(component, position)| (self.order(component), *position, *component));
        Ok((places, faithfulness))
    }

    /// Leaves out as many places of a graph as it can do without, or has to; `None` if there are
    /// none. The places are left out in the order of what each does, 1, 2, 4, ... of them.
    fn smaller(&mut self, graph: &Places, least: f64) -> Result<Option<Places>> {
        let without = |gone: &[Place]| -> Places {
            graph.iter().copied().filter(|place| !gone.contains(place)).collect()
        };
        let members: Vec<Place> = graph.iter().copied().collect();
        let single: Vec<Places> = members.iter().map(|place| without(&[*place])).collect();
        let mut order: Vec<(f64, Place)> =
            self.provisional(&single)?.into_iter().zip(members).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let order: Vec<Place> = order.into_iter().map(|(_, place)| place).collect();
        let powers = std::iter::successors(Some(1), |n| Some(2 * n));
        let smaller: Vec<Places> =
            powers.take_while(|n| *n < order.len()).map(|n| without(&order[..n])).collect();
        let measured = self.provisional(&smaller)?;
        let most = measured.iter().rposition(|f| *f >= least);
        let excess = graph.len().saturating_sub(MAX_NODES);
        Ok(match most {
            Some(at) => smaller.get(at).cloned(),
            // Too many: half of what has to go, and what is left is ordered anew.
            None if excess > 0 => Some(without(&order[..excess.div_ceil(2)])),
            None => None,
        })
    }

    /// Measures faithfulness against the first run of the background alone.
    fn provisional(&mut self, graphs: &[Places]) -> Result<Vec<f64>> {
        let Some(run) = self.background.runs.first() else { return Ok(Vec::new()) };
        let mut observed = Vec::with_capacity(graphs.len());
        for chunk in graphs.chunks(self.chunk_len()) {
            let mut requests = Vec::with_capacity(chunk.len());
            for graph in chunk {
                requests.push(self.request(self.alone(graph, run)?));
            }
            self.calls += requests.len() as u64;
            observed.extend(self.symptom.runs.evaluator.observe(&requests)?);
        }
        let effect = self.symptom.corrupted - run.log_prob;
        let left = |o| 1.0 - (self.symptom.corrupted - last(o)) / effect;
        Ok(observed.iter().map(left).map(|f| if f.is_nan() { 0.0 } else { f }).collect())
    }

    /// Returns where a component is computed: its layer, and whether it is the layer's MLP.
    pub fn order(&self, component: &Component) -> (usize, bool) {
        let layer = component.layer();
        (layer, self.units[layer].1.as_ref() == Some(component))
    }

    /// Measures the share of the effect that each graph makes alone, mean over the background.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn faithfulness(&mut self, graphs: &[&Places]) -> Result<Vec<f64>> {
        let runs = &self.background.runs;
        let mut left = Vec::with_capacity(graphs.len());
        for chunk in graphs.chunks((self.chunk_len() / runs.len()).max(1)) {
            let mut requests = Vec::with_capacity(chunk.len() * runs.len());
            for graph in chunk {
                for run in runs {
                    requests.push(self.request(self.alone(graph, run)?));
                }
            }
            left.extend(self.shares_left(&requests)?);
        }
        Ok(left)
    }

    /// Returns how many graphs may be run in one call, so that their patches stay small.
    fn chunk_len(&self) -> usize {
        let d = self.symptom.runs.evaluator.model.config.hidden_size;
        let values = 2 * self.units.len() * self.positions.len() * d;
        (PATCH_VALUES / values.max(1)).max(1)
    }

    /// Measures the share of the effect that is removed when each place alone is as in the
    /// background.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn necessities(&mut self, places: &[Place]) -> Result<Vec<f64>> {
        let mut requests = Vec::new();
        for &(component, position) in places {
            for run in &self.background.runs {
                let source = self.background.source(position).unwrap_or(position);
                let runs = &self.symptom.runs;
                let patch = runs.patch(&component, position, &run.activations, source, 1)?;
                requests.push(self.request(vec![patch]));
            }
        }
        Ok(self.shares_left(&requests)?.into_iter().map(|left| 1.0 - left).collect())
    }

    /// Measures the faithfulness of random graphs with as many places of the same kinds, ascending.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn random(&mut self, places: &[Place]) -> Result<Vec<f64>> {
        let mut kinds: BTreeMap<&str, Vec<Component>> = BTreeMap::new();
        for component in self.units.iter().flat_map(|(mixers, mlp)| mixers.iter().chain(mlp)) {
            kinds.entry(component.kind()).or_default().push(*component);
        }
        let mut rng = rng::stream(self.seed, "random graphs");
        let mut graphs = Vec::new();
        for _ in 0..RANDOM {
            let mut graph = Places::new();
            for (component, _) in places {
                // Few models are so small that a graph takes half of their places.
                for _ in 0..100 {
                    let drawn = kinds.get(component.kind()).and_then(|kind| kind.choose(&mut rng));
                    let (Some(drawn), Some(position)) = (drawn, self.positions.choose(&mut rng))
                    else {
                        break;
                    };
                    if graph.insert((*drawn, *position)) {
                        break;
                    }
                }
            }
            graphs.push(graph);
        }
        let mut measured = self.faithfulness(&graphs.iter().collect::<Vec<_>>())?;
        measured.sort_by(f64::total_cmp);
        Ok(measured)
    }

    /// Builds the patches that leave a graph alone: everything off it is as in a run of the
    /// background.
    ///
    /// # Errors
    /// [`Error::Request`] for a component without an output.
    pub fn alone(&self, graph: &Places, run: &BackgroundRun) -> Result<Vec<Patch>> {
        let config = &self.symptom.runs.evaluator.model.config;
        let mut patches = Vec::new();
        for (layer, (mixers, mlp)) in self.units.iter().enumerate() {
            let any = |component: &Component| graph.iter().any(|(node, _)| node == component);
            let whole = [config.mixer(layer)];
            // A mixer of which no head is a node is patched as one.
            let mixers = match mixers.iter().any(any) {
                false if !mixers.is_empty() => &whole[..],
                _ => &mixers[..],
            };
            for component in mixers.iter().chain(mlp) {
                let off = |position: &usize| !graph.contains(&(*component, *position));
                for (source, first, len) in self.stretches(&off) {
                    patches.push(self.symptom.runs.patch(
                        component,
                        first,
                        &run.activations,
                        source,
                        len,
                    )?);
                }
            }
        }
        Ok(patches)
    }

    fn request(&self, patches: Vec<Patch>) -> Request {
        Request::new(self.symptom.runs.corrupted.trial.clone()).patched(patches)
    }

    /// Returns the positions that differ from the background and that `off` is true of, in
    /// stretches: first position in the background, first position, length.
    fn stretches(&self, off: &dyn Fn(&usize) -> bool) -> Vec<(usize, usize, usize)> {
        let mut stretches: Vec<(usize, usize, usize)> = Vec::new();
        for &position in self.positions.iter().filter(|position| off(position)) {
            let Some(source) = self.background.source(position) else { continue };
            match stretches.last_mut() {
                Some((s, p, len)) if *s + *len == source && *p + *len == position => *len += 1,
                _ => stretches.push((source, position, 1)),
            }
        }
        stretches
    }

    /// Observes requests, as many in a row as the background has runs, and returns the mean share
    /// of the effect that is left in each.
    pub fn shares_left(&mut self, requests: &[Request]) -> Result<Vec<f64>> {
        self.calls += requests.len() as u64;
        let observed = self.symptom.runs.evaluator.observe(requests)?;
        if observed.len() != requests.len() {
            return Err(Error::internal("fewer observations than requests"));
        }
        let left =
            |log_prob: f64| 1.0 - (self.symptom.corrupted - log_prob) / self.background.effect;
        let runs = self.background.runs.len();
        let mean = |row: &[f64]| {
            let mean = row.iter().sum::<f64>() / runs as f64;
            if mean.is_nan() { 0.0 } else { mean }
        };
        let values: Vec<f64> = observed.iter().map(|o| left(last(o))).collect();
        Ok(values.chunks_exact(runs).map(mean).collect())
    }
}

/// Sorts places by their score, largest first, and leaves out those without a positive one.
fn ranked(mut scored: Vec<(f64, Place)>) -> Vec<Place> {
    scored.retain(|(score, _)| *score > 0.0);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scored.into_iter().map(|(_, place)| place).collect()
}
