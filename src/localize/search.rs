//! From single effects to a named set: heads and MLPs first, then the parts of the strongest
//! blocks, then the smallest set that does nearly as much as the largest one tried.

use rand::seq::SliceRandom as _;

use super::components::{
    blocks, coarse_effects, is_outside_edits, order_in_layer, overlap, parts_of_mixer, rank,
};
use super::contrast::contrasted;
use super::generalize::generalize;
use super::graph::{Background, graph};
use super::interactions::interactions;
use super::logit_lens::residual_views;
use super::patching::{NEGLIGIBLE_BITS, Patching};
use super::runs::Stretch;
use super::set::{LocalizeOptions, SmallestSet};
use super::symptoms::Symptoms;
use super::{ComparedWith, Effect, Localization, PositionEffect};
use crate::edit::{Component, Edit, Matrix, Trial};
use crate::error::Result;
use crate::evaluate::{Activations, ModelEvaluator};
use crate::model::hooks::Site;
use crate::rng;

/// The necessity or sufficiency of a mixer from which its heads are tried, where not all are.
const LEAST_OF_MIXER: f64 = 0.05;

/// Finds the components that mediate the difference between a trial and its baseline. With
/// `controls`, the same edits with other content (or, of lesions, noise in their place), those that
/// are specific to the trial are told from those that mediate any content.
/// `elsewhere` are the same edits in other prompts, in which what is found is tried.
///
/// # Errors
/// Errors of the evaluator; [`crate::Error::Request`] when the edits change how many tokens are
/// predicted.
pub fn localize(
    evaluator: &ModelEvaluator,
    trial: &Trial,
    controls: &[Trial],
    elsewhere: &[Trial],
    options: &LocalizeOptions,
) -> Result<Localization> {
    let layers = 0..evaluator.model.config.num_hidden_layers;
    let all = layers.flat_map(|layer| blocks(&evaluator.model.config, layer));
    let options = &options.for_blocks(all.count());
    let mut patching = Patching::new(evaluator, trial)?;
    if patching.total < NEGLIGIBLE_BITS {
        return Ok(Localization { calls: patching.calls, ..Localization::default() });
    }
    let mut symptoms = Symptoms::new(evaluator);
    patching.symptom = symptoms.find(trial)?;
    let effects = patching.all_effects(options)?;
    let mut found = Localization { routing: patching.routing()?, ..Localization::default() };
    let (mut set, mut others) = (SmallestSet::default(), Vec::new());
    let of_lesions = trial.edits.iter().any(|edit| edit.lesioned().is_some());
    // What a case is named for is compared with its controls; where a lesion has too few that do
    // anything, with random sets.
    if let Some(symptom) = patching.symptom.as_mut().filter(|_| !controls.is_empty()) {
        let contrasted = contrasted(&mut symptoms, symptom, controls, options)?;
        (found.contrasts, set, others) =
            (contrasted.contrasts, contrasted.set, contrasted.controls);
        patching.calls += contrasted.calls;
        if of_lesions && !found.contrasts.is_empty() {
            found.compared_with = ComparedWith::Noise;
        }
    }
    if controls.is_empty() || of_lesions && found.contrasts.is_empty() {
        let config = &evaluator.model.config;
        let free = |component: &Component| is_outside_edits(component, trial, config);
        let ranked: Vec<Component> = rank(&effects).into_iter().filter(free).collect();
        let pool: Vec<Component> = effects.iter().map(|e| e.component).filter(free).collect();
        set = patching.smallest_set(&ranked, options)?;
        found.controls = patching.controls(&set.set, &pool, options)?;
    }
    if let Some(symptom) = patching.symptom.take() {
        found.symptom = Some(symptom.record());
        patching.calls += symptom.calls;
        if options.graph {
            let (interactions, calls) =
                interactions(&symptom, &coarse_effects(&effects), &others, options.interacting)?;
            patching.calls += calls;
            // Noise in the place of a lesion is no output of a component, so that what components
            // pass on does not add up to what differs: the background is the clean run.
            let changes_input = |edit: &Edit| edit.is_token_edit() || edit.changes_embedding();
            let own = if trial.edits.iter().all(changes_input) { controls } else { &[] };
            let background = Background::new(&symptom, own)?;
            let (graph, calls) = graph(&symptom, &background, &effects, options)?;
            patching.calls += calls;
            let (residual_map, logit_lens, calls) = residual_views(&symptom, &background)?;
            patching.calls += calls;
            found = Localization { residual_map, logit_lens, ..found };
            let without: Vec<Trial> = background.runs.iter().map(|run| run.trial.clone()).collect();
            let (set, seed) = (&set.set, options.seed);
            let (generalization, calls) =
                generalize(&symptom, set, graph.as_ref(), &without, elsewhere, seed)?;
            patching.calls += calls;
            found = Localization { interactions, graph, generalization, ..found };
        }
    } else {
        found.positions = patching.positions(&set.set, options)?;
    }
    let SmallestSet { set, necessity, sufficiency, components_for_80_percent } = set;
    Ok(Localization {
        set,
        necessity: necessity.clamp(0.0, 1.0),
        sufficiency: sufficiency.clamp(0.0, 1.0),
        components_for_80_percent,
        effects,
        calls: patching.calls,
        ..found
    })
}

impl Patching<'_, '_> {
    /// Measures the effect of every mixer and MLP, of the heads of mixers that do something, and of
    /// the parts of the strongest blocks.
    fn all_effects(&mut self, options: &LocalizeOptions) -> Result<Vec<Effect>> {
        let config = &self.runs.evaluator.model.config;
        let layers = 0..config.num_hidden_layers;
        let blocks: Vec<Component> = layers.clone().flat_map(|l| blocks(config, l)).collect();
        let of_blocks = self.effects(&blocks)?;
        let mut mixers: Vec<(f64, usize)> = (of_blocks.iter())
            .filter(|e| config.mixer(e.component.layer()) == e.component)
            .map(|e| (e.necessity.max(e.sufficiency), e.component.layer()))
            .collect();
        if let Some(most) = options.mixers {
            mixers.retain(|(share, _)| *share >= LEAST_OF_MIXER);
            mixers.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            mixers.truncate(most);
            mixers.sort_by_key(|(_, layer)| *layer);
        }
        let heads: Vec<Component> =
            mixers.iter().flat_map(|(_, layer)| parts_of_mixer(config, *layer)).collect();
        let mut effects = self.effects(&heads)?;
        effects.extend(of_blocks);
        effects.sort_by_key(|e| (e.component.layer(), order_in_layer(&e.component)));
        let parts = self.parts(&effects, options);
        effects.extend(self.effects(&parts)?);
        Ok(effects)
    }

    /// Returns the parts of the strongest blocks: the neurons (in a state space model the channels,
    /// with their states) that change most between the runs, weighted by what they write; in a
    /// mixture also its experts and their router.
    fn parts(&self, effects: &[Effect], options: &LocalizeOptions) -> Vec<Component> {
        let config = &self.runs.evaluator.model.config;
        let ranked = rank(effects);
        let mlps = ranked.iter().filter(|c| config.mlp(c.layer()) == Some(**c)).take(options.mlps);
        // What has heads was tried head by head.
        let channelled = |c: &Component| config.heads(c.layer()) == 0;
        let mixers = ranked.iter().filter(|c| config.mixer(c.layer()) == **c && channelled(c));
        let mut chosen = Vec::new();
        for layer in mlps.map(Component::layer) {
            if self.runs.clean.activations.sites.contains_key(&(layer, Site::Experts)) {
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
            if self.runs.clean.activations.sites.contains_key(&(layer, Site::State)) {
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
        let model = self.runs.evaluator.model;
        let (Some(clean), Some(corrupted), Some((rows, width))) = (
            self.runs.clean.activations.sites.get(&(layer, site)),
            self.runs.corrupted.activations.sites.get(&(layer, site)),
            model.config.matrix_shape(layer, matrix),
        ) else {
            return Vec::new();
        };
        let mut change = vec![0f32; width];
        let (before_clean, before_corrupted) =
            (self.runs.clean.activations.first, self.runs.corrupted.activations.first);
        for &(c, g, len) in &self.runs.aligned {
            let (c, g) = (c - before_clean, g - before_corrupted);
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
        pool: &[Component],
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
                let others = set.iter().chain(&drawn);
                let apart = |c: &Component| others.clone().all(|other| !overlap(other, c));
                let mut pool: Vec<Component> = (pool.iter().copied())
                    .filter(|c| c.kind() == member.kind() && apart(c))
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
        let config = &self.runs.evaluator.model.config;
        let ids = self.runs.corrupted.trial.layout().ids;
        let mut found: Vec<PositionEffect> = Vec::new();
        for component in set.iter().take(options.members_by_position) {
            let mut changes: Vec<(f32, Stretch)> = Vec::new();
            for &(clean, corrupted, len) in &self.runs.aligned {
                for i in 0..len {
                    let outputs =
                        |run: &Activations, at: usize| run.output(component, at..at + 1, config);
                    let (Some(a), Some(b)) = (
                        outputs(&self.runs.clean.activations, clean + i),
                        outputs(&self.runs.corrupted.activations, corrupted + i),
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
