//! Activation patching in both directions (Meng et al. 2022; Zhang and Nanda 2024), batched.
//!
//! The clean run is the trial without its edits, the glitched run the trial with them. One number
//! says how glitched a run is: its mean Jensen-Shannon divergence from the clean run over the read
//! positions. *Necessity* of a component is the share of that which goes when the glitched run is
//! given the component's clean output; *sufficiency* the share that comes when the clean run is
//! given its glitched output. Nothing here looks at the edits themselves: the two runs are all it
//! sees.

use std::sync::Arc;

use rand::seq::SliceRandom as _;

use super::{Effect, Implication, PositionEffect};
use crate::edit::{Component, Edit, Matrix, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Activations, Evaluator as _, ModelEvaluator, Patch, Request};
use crate::model::Config;
use crate::model::hooks::Site;
use crate::rng;

/// How far the implication goes.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// MLPs whose neurons are tried, and neurons of each.
    pub mlps: usize,
    pub neurons: usize,
    /// Largest set that is named.
    pub set: usize,
    /// A set is large enough when its necessity is this share of the best.
    pub enough: f64,
    /// Random sets of the same kinds.
    pub controls: usize,
    /// Members of the set that are patched position by position, and positions of each.
    pub placed: usize,
    pub positions: usize,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mlps: 2,
            neurons: 48,
            set: 8,
            enough: 0.9,
            controls: 16,
            placed: 3,
            positions: 12,
            seed: 0,
        }
    }
}

/// A stretch of positions that both runs have: first clean position, first glitched one, length.
pub(super) type Stretch = (usize, usize, usize);

pub(super) struct Patching<'a, 'm> {
    pub evaluator: &'a ModelEvaluator<'m>,
    pub clean: (Trial, Activations),
    pub glitched: (Trial, Activations),
    aligned: Vec<Stretch>,
    pub reference: Arc<crate::model::Distributions>,
    /// Divergence of the glitched run, bits, and its loss, nats a token.
    pub total: f64,
    pub loss: f64,
    pub calls: u64,
}

/// The set that is named, and what it does.
struct Named {
    set: Vec<Component>,
    necessity: f64,
    sufficiency: f64,
    /// [`Implication::most`].
    most: Option<usize>,
}

#[derive(Clone, Copy)]
pub(super) enum Direction {
    /// Clean outputs into the glitched run.
    Necessity,
    /// Glitched outputs into the clean run.
    Sufficiency,
}

/// The share of a glitch that counts as most of it.
const MOST: f64 = 0.8;

/// Below this many bits there is nothing to share out.
pub(super) const NOTHING: f64 = 1e-6;

/// Finds the components that carry the difference between a trial and its baseline.
///
/// # Errors
/// What the evaluator refuses; [`Error::Request`] when the edits change how many tokens are
/// predicted.
pub fn localize(
    evaluator: &ModelEvaluator,
    trial: &Trial,
    options: &Options,
) -> Result<Implication> {
    let mut patching = Patching::new(evaluator, trial)?;
    if patching.total < NOTHING {
        return Ok(Implication { calls: patching.calls, ..Implication::default() });
    }
    let c = &evaluator.model.config;
    let coarse: Vec<Component> =
        (0..c.num_hidden_layers).flat_map(|layer| coarse(c, layer)).collect();
    let mut effects = patching.effects(&coarse)?;
    let parts = patching.parts(&effects, options);
    effects.extend(patching.effects(&parts)?);
    let ranked = rank(&effects);
    let Named { set, necessity, sufficiency, most } = patching.smallest_set(&ranked, options)?;
    let single: f64 = set
        .iter()
        .filter_map(|c| effects.iter().find(|e| e.component == *c))
        .map(|e| e.sufficiency)
        .sum();
    let emergence =
        (set.len() > 1 && sufficiency > 0.01).then(|| (sufficiency - single) / sufficiency);
    let controls = patching.controls(&set, &coarse, &parts, options)?;
    let positions = patching.positions(&set, options)?;
    let routing = patching.routing()?;
    Ok(Implication {
        set,
        necessity: necessity.clamp(0.0, 1.0),
        sufficiency: sufficiency.clamp(0.0, 1.0),
        most,
        emergence,
        routing,
        controls,
        effects,
        positions,
        reading: None,
        calls: patching.calls,
    })
}

/// What of a layer is tried first: the heads of its mixer, with their states where they have some
/// (or the whole mixer, where it has no heads), and its MLP.
fn coarse(config: &Config, layer: usize) -> Vec<Component> {
    let heads = config.heads(layer);
    let states = if heads > 0 { config.state_parts(layer).0 } else { 0 };
    let mut all: Vec<Component> = (0..heads).map(|head| Component::Head { layer, head }).collect();
    all.extend((0..states).map(|part| Component::State { layer, part: Some(part) }));
    if heads == 0 {
        all.push(config.mixer(layer));
    }
    all.extend(config.mlp(layer));
    all
}

/// Whether two components have a part in common, so that a set of both would count it twice.
fn overlap(a: &Component, b: &Component) -> bool {
    // The block of a component (mixer or MLP), and the part of it: `None` is the whole.
    let place = |c: &Component| match *c {
        Component::Head { head: part, .. } | Component::Channel { channel: part, .. } => {
            Some((0, Some(part)))
        }
        Component::State { part, .. } => Some((0, part)),
        Component::Attention { .. } | Component::Ssm { .. } | Component::TimeMix { .. } => {
            Some((0, None))
        }
        Component::Neuron { neuron: part, .. } | Component::Expert { expert: part, .. } => {
            Some((1, Some(part)))
        }
        // A router decides over all experts, and is a part beside them.
        Component::Router { .. } => Some((1, Some(usize::MAX))),
        Component::Mlp { .. } | Component::ChannelMix { .. } => Some((1, None)),
        _ => None,
    };
    let (Some((block_a, part_a)), Some((block_b, part_b))) = (place(a), place(b)) else {
        return false;
    };
    a.layer() == b.layer()
        && block_a == block_b
        && (part_a == part_b || part_a.is_none() || part_b.is_none())
}

/// Whether the runs with and without the edits predict equally many tokens, so that each position
/// of one can be held against the same of the other.
pub fn comparable(trial: &Trial) -> bool {
    let layout = trial.layout();
    layout.ids.len() - layout.prompt_len == trial.continuation.len()
}

/// Strongest first by the mean of both directions (what exceeds the whole counts as the whole). Of
/// equals the finer component comes first: an MLP whose one neuron does everything does so by that
/// neuron, and a head of RWKV whose state does everything by its state.
pub(super) fn rank(effects: &[Effect]) -> Vec<Component> {
    let strength = |e: &Effect| 0.5 * (e.necessity.min(1.0) + e.sufficiency.min(1.0));
    let fineness = |c: &Component| match c {
        Component::Neuron { .. }
        | Component::Expert { .. }
        | Component::Router { .. }
        | Component::State { part: Some(_), .. } => 0,
        Component::Head { .. } | Component::Channel { .. } => 1,
        _ => 2,
    };
    let mut order: Vec<&Effect> = effects.iter().collect();
    // Rounded, so that equals up to arithmetic are equals.
    let key =
        |e: &Effect| (-(strength(e) * 1e5).round() as i64, fineness(&e.component), e.component);
    order.sort_by_key(|e| key(e));
    order.into_iter().map(|e| e.component).collect()
}

impl<'a, 'm> Patching<'a, 'm> {
    pub fn new(evaluator: &'a ModelEvaluator<'m>, trial: &Trial) -> Result<Self> {
        let baseline = trial.baseline();
        let observed =
            evaluator.observe(&[Request::new(baseline.clone()).keeping_distributions()])?.pop();
        let reference = observed
            .and_then(|o| o.distributions)
            .ok_or_else(|| Error::internal("distributions were not kept"))?;
        let layout = trial.layout();
        if !comparable(trial) {
            return Err(Error::request(
                "the edits change how many tokens are predicted: the two runs cannot be compared",
            ));
        }
        let mut aligned: Vec<Stretch> = Vec::new();
        for (clean, glitched) in
            layout.moved.iter().enumerate().filter_map(|(p, m)| Some((p, (*m)?)))
        {
            match aligned.last_mut() {
                Some((c, g, len)) if *c + *len == clean && *g + *len == glitched => *len += 1,
                _ => aligned.push((clean, glitched, 1)),
            }
        }
        let glitched =
            evaluator.observe(&[Request::new(trial.clone()).with_reference(reference.clone())])?;
        let (total, loss) =
            glitched.first().map_or((0.0, 0.0), |o| (o.mean_divergence_bits(), o.loss()));
        let clean = (baseline.clone(), evaluator.activations(&baseline, &[])?);
        let glitched = (trial.clone(), evaluator.activations(trial, &[])?);
        Ok(Self { evaluator, clean, glitched, aligned, reference, total, loss, calls: 4 })
    }

    /// The request that patches a set of components at the given stretches.
    pub fn request(
        &self,
        set: &[Component],
        at: &[Stretch],
        direction: Direction,
    ) -> Result<Request> {
        let config = &self.evaluator.model.config;
        let (into, from) = match direction {
            Direction::Necessity => (&self.glitched.0, &self.clean.1),
            Direction::Sufficiency => (&self.clean.0, &self.glitched.1),
        };
        let mut patches = Vec::new();
        for component in set {
            for &(clean, glitched, len) in at {
                let (first, source) = match direction {
                    Direction::Necessity => (glitched, clean),
                    Direction::Sufficiency => (clean, glitched),
                };
                let values = from.of(component, source..source + len, config);
                let values = values
                    .ok_or_else(|| Error::request(format!("{component} has no output to patch")))?;
                patches.push(Patch { component: *component, first, values: values.into() });
            }
        }
        Ok(Request::new(into.clone()).with_reference(self.reference.clone()).patched(patches))
    }

    /// The share of the divergence that goes with the routing frozen; `None` where nothing is
    /// routed.
    fn routing(&mut self) -> Result<Option<f64>> {
        let trial = &self.glitched.0;
        if self.evaluator.model.config.experts.is_none()
            || trial.edits.contains(&Edit::FreezeRouting)
        {
            return Ok(None);
        }
        let frozen =
            trial.with_edits(trial.edits.iter().cloned().chain([Edit::FreezeRouting]).collect());
        let observed = self
            .evaluator
            .observe(&[Request::new(frozen).with_reference(self.reference.clone())])?;
        self.calls += 1;
        Ok(observed.first().map(|o| 1.0 - o.mean_divergence_bits() / self.total))
    }

    /// Necessity and sufficiency of each set, at all positions that both runs have.
    pub fn measure(&mut self, sets: &[Vec<Component>]) -> Result<Vec<(f64, f64)>> {
        let aligned = self.aligned.clone();
        let sets: Vec<(&[Component], &[Stretch])> =
            sets.iter().map(|set| (&set[..], &aligned[..])).collect();
        self.measure_at(&sets)
    }

    /// Necessity and sufficiency of each set at its stretches.
    fn measure_at(&mut self, sets: &[(&[Component], &[Stretch])]) -> Result<Vec<(f64, f64)>> {
        let mut requests = Vec::with_capacity(2 * sets.len());
        for (set, at) in sets {
            requests.push(self.request(set, at, Direction::Necessity)?);
            requests.push(self.request(set, at, Direction::Sufficiency)?);
        }
        self.calls += requests.len() as u64;
        let observed = self.evaluator.observe(&requests)?;
        let bits: Vec<f64> =
            observed.iter().map(|o| o.mean_divergence_bits() / self.total).collect();
        Ok(bits.chunks_exact(2).map(|pair| (1.0 - pair[0], pair[1])).collect())
    }

    fn effects(&mut self, components: &[Component]) -> Result<Vec<Effect>> {
        let sets: Vec<Vec<Component>> = components.iter().map(|c| vec![*c]).collect();
        let measured = self.measure(&sets)?;
        Ok(components
            .iter()
            .zip(measured)
            .map(|(&component, (necessity, sufficiency))| Effect {
                component,
                necessity,
                sufficiency,
            })
            .collect())
    }

    /// What the strongest blocks are made of: the neurons (of a state space the channels, with
    /// their states) that change most between the runs, weighed by what they write; of a mixture,
    /// its experts and their router.
    fn parts(&self, effects: &[Effect], options: &Options) -> Vec<Component> {
        let config = &self.evaluator.model.config;
        let ranked = rank(effects);
        let mlps = ranked.iter().filter(|c| config.mlp(c.layer()) == Some(**c)).take(options.mlps);
        let mixers = ranked.iter().filter(|c| config.mixer(c.layer()) == **c).take(options.mlps);
        let mut chosen = Vec::new();
        for layer in mlps.map(Component::layer) {
            if self.clean.1.sites.contains_key(&(layer, Site::Experts)) {
                chosen.push(Component::Router { layer });
                chosen.extend(
                    (0..config.num_experts(layer))
                        .map(|expert| Component::Expert { layer, expert }),
                );
            }
            let down =
                if config.rwkv_of(layer).is_some() { Matrix::ChannelValue } else { Matrix::Down };
            let neurons = self.most_changed(layer, Site::Neurons, down, options.neurons);
            chosen.extend(neurons.into_iter().map(|neuron| Component::Neuron { layer, neuron }));
        }
        for layer in mixers.map(Component::layer) {
            let out = if config.ssm_of(layer).is_some() { Matrix::SsmOut } else { Matrix::TimeOut };
            let channels = self.most_changed(layer, Site::Z, out, options.neurons);
            chosen.extend(
                channels.iter().map(|channel| Component::Channel { layer, channel: *channel }),
            );
            if self.clean.1.sites.contains_key(&(layer, Site::State)) {
                chosen.extend(
                    channels
                        .into_iter()
                        .map(|channel| Component::State { layer, part: Some(channel) }),
                );
            }
        }
        chosen
    }

    /// The columns of a site that change most between the runs, weighed by what `matrix` writes of
    /// them.
    fn most_changed(&self, layer: usize, site: Site, matrix: Matrix, count: usize) -> Vec<usize> {
        let model = self.evaluator.model;
        let (Some(clean), Some(glitched), Some((rows, width))) = (
            self.clean.1.sites.get(&(layer, site)),
            self.glitched.1.sites.get(&(layer, site)),
            model.config.matrix_shape(layer, matrix),
        ) else {
            return Vec::new();
        };
        let mut change = vec![0f32; width];
        for &(c, g, len) in &self.aligned {
            for i in 0..len {
                let (a, b) =
                    (&clean[(c + i) * width..][..width], &glitched[(g + i) * width..][..width]);
                change
                    .iter_mut()
                    .zip(a.iter().zip(b))
                    .for_each(|(m, (a, b))| *m = m.max((a - b).abs()));
            }
        }
        let mut norms = vec![0f32; width];
        for out in 0..rows {
            norms
                .iter_mut()
                .zip(model.weight_row(layer, matrix, out))
                .for_each(|(n, w)| *n += w * w);
        }
        let mut order: Vec<usize> = (0..width).collect();
        let score = |n: usize| change[n] * norms[n].sqrt();
        order.sort_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
        order.truncate(count);
        order
    }

    /// The shortest head of the ranking that does nearly what the longest tried does.
    fn smallest_set(&mut self, ranked: &[Component], options: &Options) -> Result<Named> {
        let mut members: Vec<Component> = Vec::new();
        for component in ranked {
            if !members.iter().any(|member| overlap(member, component)) {
                members.push(*component);
            }
            if members.len() == options.set {
                break;
            }
        }
        let heads: Vec<Vec<Component>> =
            (1..=members.len()).map(|n| members[..n].to_vec()).collect();
        let measured = self.measure(&heads)?;
        let best = measured.iter().map(|m| m.0).fold(f64::NEG_INFINITY, f64::max);
        let at = measured.iter().position(|m| m.0 >= options.enough * best).unwrap_or(0);
        let most = measured.iter().position(|m| m.0 >= MOST).map(|at| at + 1);
        match (heads.into_iter().nth(at), measured.get(at)) {
            (Some(set), Some(&(necessity, sufficiency))) => {
                Ok(Named { set, necessity, sufficiency, most })
            }
            _ => Err(Error::request("the model has no components to implicate")),
        }
    }

    /// Necessity of random sets of the same kinds and size, ascending.
    fn controls(
        &mut self,
        set: &[Component],
        coarse: &[Component],
        parts: &[Component],
        options: &Options,
    ) -> Result<Vec<f64>> {
        let mut rng = rng::stream(options.seed, "implication controls");
        let mut sets: Vec<Vec<Component>> = Vec::new();
        for _ in 0..options.controls {
            let mut drawn: Vec<Component> = Vec::new();
            for member in set {
                let mut pool: Vec<Component> = coarse
                    .iter()
                    .chain(parts)
                    .copied()
                    .filter(|c| c.kind() == member.kind() && !set.contains(c) && !drawn.contains(c))
                    .collect();
                pool.shuffle(&mut rng);
                drawn.extend(pool.first());
            }
            if drawn.len() == set.len() {
                sets.push(drawn);
            }
        }
        let mut necessity: Vec<f64> = self.measure(&sets)?.into_iter().map(|m| m.0).collect();
        necessity.sort_by(f64::total_cmp);
        Ok(necessity)
    }

    /// Each of the strongest members of the set, patched at one position at a time: at those where
    /// its output differs most between the runs.
    fn positions(&mut self, set: &[Component], options: &Options) -> Result<Vec<PositionEffect>> {
        let config = &self.evaluator.model.config;
        let ids = self.glitched.0.layout().ids;
        let mut found: Vec<PositionEffect> = Vec::new();
        for component in set.iter().take(options.placed) {
            let mut changes: Vec<(f32, Stretch)> = Vec::new();
            for &(clean, glitched, len) in &self.aligned {
                for i in 0..len {
                    let outputs =
                        |run: &Activations, at: usize| run.of(component, at..at + 1, config);
                    let (Some(a), Some(b)) = (
                        outputs(&self.clean.1, clean + i),
                        outputs(&self.glitched.1, glitched + i),
                    ) else {
                        continue;
                    };
                    let change =
                        a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
                    changes.push((change, (clean + i, glitched + i, 1)));
                }
            }
            // Before the first edit nothing differs: to patch there would do nothing.
            changes.retain(|(change, _)| *change > 0.0);
            changes.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            changes.truncate(options.positions);
            let member = [*component];
            let places: Vec<[Stretch; 1]> = changes.iter().map(|(_, stretch)| [*stretch]).collect();
            let sets: Vec<(&[Component], &[Stretch])> =
                places.iter().map(|place| (&member[..], &place[..])).collect();
            let mut effects: Vec<PositionEffect> =
                (self.measure_at(&sets)?.into_iter().zip(&places))
                    .map(|((necessity, sufficiency), &[(_, position, _)])| PositionEffect {
                        component: *component,
                        position,
                        id: ids[position],
                        necessity,
                        sufficiency,
                    })
                    .collect();
            let strength = |e: &PositionEffect| e.necessity + e.sufficiency;
            effects.sort_by(|a, b| {
                strength(b).total_cmp(&strength(a)).then(a.position.cmp(&b.position))
            });
            found.extend(effects);
        }
        Ok(found)
    }
}
