//! From single effects to a named set: heads and MLPs first, then the parts of the strongest
//! blocks, then the smallest set that does nearly as much as the largest one tried.

use rand::seq::SliceRandom as _;

use super::components::{coarse, overlap, rank};
use super::contrast::{Contrasted, contrasted};
use super::patching::{NEGLIGIBLE_BITS, Patching, Stretch};
use super::set::{LocalizeOptions, SmallestSet};
use super::{Effect, Localization, PositionEffect};
use crate::edit::{Component, Matrix, Trial};
use crate::error::Result;
use crate::evaluate::{Activations, ModelEvaluator};
use crate::model::hooks::Site;
use crate::rng;

/// Below this sufficiency of the whole set, its emergence would be a quotient of rounding errors.
const LEAST_JOINT_EFFECT: f64 = 0.01;

/// Finds the components that mediate the difference between a trial and its baseline. With
/// `controls`, the same edits with other content, those that are specific to the trial are told
/// from those that mediate any content; none for edits whose controls edit other components.
///
/// # Errors
/// Errors of the evaluator; [`crate::Error::Request`] when the edits change how many tokens are
/// predicted.
pub fn localize(
    evaluator: &ModelEvaluator,
    trial: &Trial,
    controls: &[Trial],
    options: &LocalizeOptions,
) -> Result<Localization> {
    let mut patching = Patching::new(evaluator, trial)?;
    if patching.total < NEGLIGIBLE_BITS {
        return Ok(Localization { calls: patching.calls, ..Localization::default() });
    }
    let config = &evaluator.model.config;
    let coarse: Vec<Component> =
        (0..config.num_hidden_layers).flat_map(|layer| coarse(config, layer)).collect();
    let mut effects = patching.effects(&coarse)?;
    let parts = patching.parts(&effects, options);
    effects.extend(patching.effects(&parts)?);
    let ranked = rank(&effects);
    let contrasted = match controls {
        [] => Contrasted::default(),
        controls => contrasted(evaluator, trial, controls, options)?,
    };
    patching.calls += contrasted.calls;
    // With controls, nothing is named that was not compared with them.
    if !controls.is_empty() {
        let SmallestSet { set, necessity, sufficiency, components_for_80_percent } = contrasted.set;
        return Ok(Localization {
            set,
            necessity,
            sufficiency,
            components_for_80_percent,
            routing: patching.routing()?,
            contrasts: contrasted.contrasts,
            effects,
            calls: patching.calls,
            ..Localization::default()
        });
    }
    let SmallestSet { set, necessity, sufficiency, components_for_80_percent } =
        patching.smallest_set(&ranked, options)?;
    let single: f64 = set
        .iter()
        .filter_map(|c| effects.iter().find(|e| e.component == *c))
        .map(|e| e.sufficiency)
        .sum();
    let emergence = (set.len() > 1 && sufficiency > LEAST_JOINT_EFFECT)
        .then(|| (sufficiency - single) / sufficiency);
    let controls = patching.controls(&set, &coarse, &parts, options)?;
    let positions = patching.positions(&set, options)?;
    let routing = patching.routing()?;
    Ok(Localization {
        set,
        necessity: necessity.clamp(0.0, 1.0),
        sufficiency: sufficiency.clamp(0.0, 1.0),
        components_for_80_percent,
        emergence,
        routing,
        controls,
        contrasts: Vec::new(),
        effects,
        positions,
        attribution: None,
        calls: patching.calls,
    })
}

impl Patching<'_, '_> {
    /// Returns the parts of the strongest blocks: the neurons (in a state space model the channels,
    /// with their states) that change most between the runs, weighted by what they write; in a
    /// mixture also its experts and their router.
    fn parts(&self, effects: &[Effect], options: &LocalizeOptions) -> Vec<Component> {
        let config = &self.evaluator.model.config;
        let ranked = rank(effects);
        let mlps = ranked.iter().filter(|c| config.mlp(c.layer()) == Some(**c)).take(options.mlps);
        // What has heads was tried head by head.
        let channelled = |c: &Component| config.heads(c.layer()) == 0;
        let mixers = ranked.iter().filter(|c| config.mixer(c.layer()) == **c && channelled(c));
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
        for layer in mixers.take(options.mlps).map(Component::layer) {
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

    /// Returns the `count` columns of a site that change most between the runs: the largest change
    /// over the positions, times the norm of the column of `matrix` that reads it.
    fn most_changed(&self, layer: usize, site: Site, matrix: Matrix, count: usize) -> Vec<usize> {
        let model = self.evaluator.model;
        let (Some(clean), Some(corrupted), Some((rows, width))) = (
            self.clean.1.sites.get(&(layer, site)),
            self.corrupted.1.sites.get(&(layer, site)),
            model.config.matrix_shape(layer, matrix),
        ) else {
            return Vec::new();
        };
        let mut change = vec![0f32; width];
        for &(c, g, len) in &self.aligned {
            for i in 0..len {
                let (a, b) =
                    (&clean[(c + i) * width..][..width], &corrupted[(g + i) * width..][..width]);
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

    /// Finds the shortest prefix of the ranking whose necessity is nearly that of the best prefix.
    fn smallest_set(
        &mut self,
        ranked: &[Component],
        options: &LocalizeOptions,
    ) -> Result<SmallestSet> {
        let mut members: Vec<Component> = Vec::new();
        for component in ranked {
            if !members.iter().any(|member| overlap(member, component)) {
                members.push(*component);
            }
            if members.len() == options.set {
                break;
            }
        }
        let prefixes: Vec<Vec<Component>> =
            (1..=members.len()).map(|n| members[..n].to_vec()).collect();
        let (necessity, sufficiency): (Vec<f64>, Vec<f64>) =
            self.measure(&prefixes)?.into_iter().unzip();
        let prefixes: Vec<&[Component]> = prefixes.iter().map(Vec::as_slice).collect();
        Ok(SmallestSet::of(&prefixes, &necessity, &sufficiency, options.share_of_best))
    }

    /// Measures the necessity of distinct random sets of the same kinds and size, ascending.
    fn controls(
        &mut self,
        set: &[Component],
        coarse: &[Component],
        parts: &[Component],
        options: &LocalizeOptions,
    ) -> Result<Vec<f64>> {
        if set.is_empty() {
            return Ok(Vec::new());
        }
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
            // Where there are few other components, the same few sets are drawn again and again.
            drawn.sort();
            if drawn.len() == set.len() && !sets.contains(&drawn) {
                sets.push(drawn);
            }
        }
        let mut necessity: Vec<f64> = self.measure(&sets)?.into_iter().map(|m| m.0).collect();
        necessity.sort_by(f64::total_cmp);
        Ok(necessity)
    }

    /// Patches each of the strongest members of the set at one position at a time: at those where
    /// its output differs most between the runs.
    fn positions(
        &mut self,
        set: &[Component],
        options: &LocalizeOptions,
    ) -> Result<Vec<PositionEffect>> {
        let config = &self.evaluator.model.config;
        let ids = self.corrupted.0.layout().ids;
        let mut found: Vec<PositionEffect> = Vec::new();
        for component in set.iter().take(options.members_by_position) {
            let mut changes: Vec<(f32, Stretch)> = Vec::new();
            for &(clean, corrupted, len) in &self.aligned {
                for i in 0..len {
                    let outputs =
                        |run: &Activations, at: usize| run.output(component, at..at + 1, config);
                    let (Some(a), Some(b)) = (
                        outputs(&self.clean.1, clean + i),
                        outputs(&self.corrupted.1, corrupted + i),
                    ) else {
                        continue;
                    };
                    let change =
                        a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
                    changes.push((change, (clean + i, corrupted + i, 1)));
                }
            }
            // Positions before the first edit do not differ, and patching them does nothing.
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
