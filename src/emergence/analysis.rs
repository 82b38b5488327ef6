//! From measured sets to the figures: shares of variance by order, for the model and the
//! references, what is left and where, the spectrum over all subsets, and the strongest
//! interactions.

use super::explained::{Bootstrap, Estimate, Replicated, mean};
use super::figures::{Emergence, OrderShares, PlantedTerms, Spectrum, Unexplained, UnexplainedAt};
use super::interactions::{Interaction, Known, candidates, named, strongest};
use super::measure::{Replacement, Scale};
use super::measured::Measured;
use super::regression::{ByText, Coefficients, Samples};
use super::sets::{Measure, PartSet};
use super::surrogate::{Function, Planted, Scales};
use super::unlearned::Unlearned;
use super::walsh::{dividend, walsh};
use crate::error::Result;

/// The share of the variance that an order has to explain to be called enough.
const ENOUGH: f64 = 0.95;
/// The share of the surrogate's logit that order 1 has to explain before fits are believed.
const ADDITIVE: f64 = 0.99;
/// The fewest sets that are fitted: two in each fold.
const LEAST_SETS: usize = 10;
/// The largest interactions that are looked for.
const LARGEST_INTERACTION: usize = 3;

/// The settings of a run that the figures name.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The lesion of a part.
    pub replacement: Replacement,
    /// Every `stride`-th token is measured.
    pub stride: usize,
    /// The number of tokens whose prediction is measured.
    pub tokens: usize,
    /// The largest order that is fitted.
    pub orders: usize,
    /// The seed of folds and bootstraps.
    pub seed: u64,
}

/// Measures the model under more sets: for each text, a value for each set.
type MoreSets<'a> = &'a dyn Fn(&[PartSet]) -> Result<Option<Vec<Vec<Scales>>>>;

/// Some of the sets, and what fits to them leave of some functions.
struct Fits<'a> {
    samples: Samples<'a>,
    /// By function and scale, then by text and set.
    values: Vec<ByText>,
    /// By function and scale, then by order; no orders where there are too few sets.
    residuals: Vec<Vec<ByText>>,
    /// By function and scale; none where there are too few sets.
    coefficients: Vec<Coefficients>,
    /// By function and scale, then by order.
    shares: Vec<Vec<Replicated>>,
}

impl<'a> Fits<'a> {
    /// Fits functions to the sets that have a weight and are to be used.
    fn new(measured: &'a Measured, functions: &[Function], used: &[usize], run: &Run) -> Self {
        let design = &measured.design;
        let pick = |values: &[f64]| -> Vec<f64> { used.iter().map(|at| values[*at]).collect() };
        let values: Vec<ByText> = kinds(functions)
            .map(|(function, scale)| {
                measured.by_text(function, scale).iter().map(|text| pick(text)).collect()
            })
            .collect();
        let samples = Samples::new(
            design.parts,
            design.measure.bias(design.parts),
            used.iter().map(|at| &design.sets[*at]).collect(),
            &pick(&design.weights),
        );
        let orders = run.orders.min(design.parts);
        let fitted = match used.len() >= LEAST_SETS {
            true => samples.fit(&values, orders, run.seed),
            false => Vec::new(),
        };
        let (mut residuals, mut coefficients) = (Vec::new(), Vec::new());
        for of in fitted {
            residuals.push(of.residuals);
            coefficients.push(of.coefficients);
        }
        residuals.resize(values.len(), Vec::new());
        let drawn = (!design.exact).then_some(used.len());
        let bootstrap = Bootstrap::new(measured.texts.len(), drawn, run.seed);
        let shares = values
            .iter()
            .zip(&residuals)
            .map(|(values, left): (&ByText, &Vec<ByText>)| {
                let left: Vec<&ByText> = left.iter().collect();
                bootstrap.explained(&samples.weights, values, &left, &[])
            })
            .collect();
        Self { samples, values, residuals, coefficients, shares }
    }

    /// Returns how much more of the surrogate than of the model order 1 explains, if it explains
    /// the surrogate's logit, which is additive. Where it does not, the sets are too few, or some
    /// part is lesioned in too few of them, and the shares say nothing of the model.
    fn beyond_surrogate(&self) -> [Option<Estimate>; 2] {
        let first = |function, scale| self.shares[place(function, scale)].first();
        let control = first(Function::Surrogate, Scale::Logit);
        let passed = control.is_some_and(|share| share.value >= ADDITIVE);
        Scale::ALL.map(|scale| {
            let surrogate = first(Function::Surrogate, scale).filter(|_| passed)?;
            Some(surrogate.minus(first(Function::Model, scale)?).estimate())
        })
    }

    /// Returns the share of the model's variance that the surrogate predicts.
    fn sum_of_parts(&self, bootstrap: &Bootstrap, scale: Scale) -> Estimate {
        let model = &self.values[place(Function::Model, scale)];
        let parts = &self.values[place(Function::Surrogate, scale)];
        let difference = |(model, parts): (&Vec<f64>, &Vec<f64>)| {
            model.iter().zip(parts).map(|(model, parts)| model - parts).collect()
        };
        let left: ByText = model.iter().zip(parts).map(difference).collect();
        bootstrap.explained(&self.samples.weights, model, &[&left], &[])[0].estimate()
    }

    /// Estimates the spectra of functions up to the orders that were fitted, from sets drawn from
    /// all subsets.
    fn spectra(&self, functions: &[Function], bootstrap: &Bootstrap, seed: u64) -> Vec<Spectrum> {
        let of = |(function, scale)| {
            let at = place(function, scale);
            let left: Vec<&ByText> = self.residuals[at].iter().collect();
            let unlearned: Vec<Unlearned> = (1..)
                .zip(&left)
                .map(|(order, left)| Unlearned::new(&self.samples, left, order, seed))
                .collect();
            let shares =
                bootstrap.explained(&self.samples.weights, &self.values[at], &left, &unlearned);
            let cumulative: Vec<Estimate> = shares.iter().map(Replicated::estimate).collect();
            let orders = shares.iter().enumerate().map(|(at, share)| match at.checked_sub(1) {
                Some(below) => share.minus(&shares[below]).estimate(),
                None => share.estimate(),
            });
            Spectrum { function, scale, orders: orders.collect(), cumulative, exact: false }
        };
        kinds(functions).map(of).collect()
    }

    fn table(&self, functions: &[Function], dead: &dyn Fn(Function) -> usize) -> Vec<OrderShares> {
        let of = |(function, scale)| {
            let orders: Vec<Estimate> =
                self.shares[place(function, scale)].iter().map(Replicated::estimate).collect();
            let enough = orders.iter().position(|order| order.value >= ENOUGH);
            let order_for_95 = enough.map(|at| at + 1);
            OrderShares { function, scale, orders, order_for_95, dead: dead(function) }
        };
        kinds(functions).map(of).collect()
    }
}

/// Returns the place of a function and scale in lists of both.
fn place(function: Function, scale: Scale) -> usize {
    2 * function as usize + scale as usize
}

/// Returns functions in both scales, in the order of [`place`].
fn kinds(functions: &[Function]) -> impl Iterator<Item = (Function, Scale)> {
    functions.iter().flat_map(|&function| Scale::ALL.map(|scale| (function, scale)))
}

/// Computes everything from the measured sets. `more` runs the sets of interactions where sets were
/// drawn.
///
/// # Errors
/// Those of `more`.
pub fn analyse(measured: &Measured, run: &Run, more: MoreSets) -> Result<Emergence> {
    let design = &measured.design;
    let dead = measured.dead(Function::Model);
    let weighted: Vec<usize> = (0..dead.len()).filter(|at| design.weights[*at] > 0.0).collect();
    let alive: Vec<usize> = weighted.iter().copied().filter(|at| !dead[*at]).collect();
    let count_dead = |function| {
        let dead = measured.dead(function);
        weighted.iter().filter(|at| dead[**at]).count()
    };
    let fits = Fits::new(measured, &Function::ALL, &alive, run);
    let model_is_finite = Scale::ALL.iter().all(|scale| {
        let values = measured.mean(Function::Model, *scale);
        weighted.iter().all(|at| values[*at].is_finite())
    });
    let some_dead = alive.len() < weighted.len();
    let functions = [Function::Model, Function::Surrogate];
    let all =
        (model_is_finite && some_dead).then(|| Fits::new(measured, &functions, &weighted, run));
    let with_dead = all.as_ref().map_or(Vec::new(), |all| all.table(&functions, &count_dead));
    let drawn = (!design.exact).then_some(alive.len());
    let bootstrap = Bootstrap::new(measured.texts.len(), drawn, run.seed);
    let spectra = if design.cube {
        spectra(measured, &bootstrap)
    } else if design.measure == Measure::Subsets && model_is_finite {
        let drawn = Bootstrap::new(measured.texts.len(), Some(weighted.len()), run.seed);
        all.as_ref().unwrap_or(&fits).spectra(&functions, &drawn, run.seed)
    } else {
        Vec::new()
    };
    Ok(Emergence {
        parts: measured.components.clone(),
        replacement: run.replacement,
        measure: design.measure,
        largest: design.measure.largest(design.parts),
        exact: design.exact,
        sets_run: design.sets.len(),
        sets_used: alive.len(),
        dead: count_dead(Function::Model),
        texts: measured.texts.len(),
        tokens: run.tokens,
        stride: run.stride,
        baseline_loss: design
            .find(&PartSet::new(Vec::new()))
            .map_or(f64::NAN, |at| measured.mean(Function::Model, Scale::Loss)[at]),
        unigram_loss: measured.unigram_loss,
        shares: fits.table(&Function::ALL, &count_dead),
        with_dead,
        sum_of_parts: Scale::ALL.map(|scale| fits.sum_of_parts(&bootstrap, scale)),
        beyond_surrogate: fits.beyond_surrogate(),
        beyond_surrogate_with_dead: all.as_ref().map_or([None; 2], Fits::beyond_surrogate),
        spectra,
        unexplained: Scale::ALL
            .into_iter()
            .filter_map(|scale| where_unexplained(measured, &fits, scale))
            .collect(),
        interactions: interactions(measured, &fits, &dead, more)?,
        planted: planted_terms(measured, &fits),
        planted_nats: measured.texts.iter().map(|text| text.strength).sum::<f64>()
            / measured.texts.len() as f64,
        complete: measured.complete,
    })
}

/// Returns what order 1 and 2 leave of the model, by the size of sets and by layer; `None` if
/// nothing was fitted.
fn where_unexplained(measured: &Measured, fits: &Fits, scale: Scale) -> Option<Unexplained> {
    let (samples, at) = (&fits.samples, place(Function::Model, scale));
    let (values, left) = (&fits.values[at], &fits.residuals[at]);
    let one = vec![1.0; measured.texts.len()];
    let values = mean(values, &one);
    let first = mean(left.first()?, &one);
    let second = left.get(1).map(|left| mean(left, &one));
    let weights = &samples.weights;
    let sum: f64 = weights.iter().sum();
    let centre = values.iter().zip(weights).map(|(v, w)| w * v).sum::<f64>() / sum;
    let variance =
        values.iter().zip(weights).map(|(v, w)| w * (v - centre) * (v - centre)).sum::<f64>() / sum;
    let at = |at: usize, has: &dyn Fn(&PartSet) -> bool| -> Option<UnexplainedAt> {
        let chosen: Vec<usize> =
            (0..samples.sets.len()).filter(|i| has(samples.sets[*i])).collect();
        let weight: f64 = chosen.iter().map(|i| weights[*i]).sum();
        let square = |left: &Vec<f64>| {
            let sum: f64 = chosen.iter().map(|i| weights[*i] * left[*i] * left[*i]).sum();
            if variance > 0.0 { sum / weight / variance } else { 0.0 }
        };
        (!chosen.is_empty()).then(|| UnexplainedAt {
            at,
            sets: chosen.len(),
            after_order_1: square(&first),
            after_order_2: second.as_ref().map(square),
        })
    };
    let layer_of = |part: &u32| measured.components[*part as usize].layer();
    let layers: std::collections::BTreeSet<usize> =
        (0..measured.components.len() as u32).map(|part| layer_of(&part)).collect();
    let in_layer = |layer: usize| {
        at(layer, &|set: &PartSet| set.parts().iter().any(|part| layer_of(part) == layer))
    };
    Some(Unexplained {
        scale,
        by_size: (0..=samples.parts)
            .filter_map(|size| at(size, &|set: &PartSet| set.len() == size))
            .collect(),
        by_layer: layers.into_iter().filter_map(in_layer).collect(),
    })
}

/// Returns the spectra over all subsets of the functions whose values are finite.
fn spectra(measured: &Measured, bootstrap: &Bootstrap) -> Vec<Spectrum> {
    let sets = &measured.design.sets;
    let mask = |set: &PartSet| set.parts().iter().fold(0usize, |mask, part| mask | 1 << part);
    let order = |mask: usize| (mask.count_ones() as usize).checked_sub(1);
    let group: Vec<Option<usize>> = (0..sets.len()).map(order).collect();
    let of = |(function, scale): (Function, Scale)| {
        let values = measured.by_text(function, scale);
        if !values.iter().flatten().all(|value| value.is_finite()) {
            return None;
        }
        let transform = |text: &Vec<f64>| {
            let mut by_mask = vec![0.0; sets.len()];
            sets.iter().zip(text).for_each(|(set, value)| by_mask[mask(set)] = *value);
            walsh(&by_mask)
        };
        let coefficients: ByText = values.iter().map(transform).collect();
        let orders = bootstrap.spectrum(&coefficients, &group);
        let mut cumulative: Vec<Replicated> = Vec::new();
        for order in &orders {
            let sum = cumulative.last().map_or(order.clone(), |below| order.plus(below));
            cumulative.push(sum);
        }
        Some(Spectrum {
            function,
            scale,
            orders: orders.iter().map(Replicated::estimate).collect(),
            cumulative: cumulative.iter().map(Replicated::estimate).collect(),
            exact: true,
        })
    };
    kinds(&Function::ALL).filter_map(of).collect()
}

/// Returns the strongest interactions of the model.
fn interactions(
    measured: &Measured,
    fits: &Fits,
    dead: &[bool],
    more: MoreSets,
) -> Result<Vec<Interaction>> {
    let design = &measured.design;
    let values = Scale::ALL.map(|scale| measured.by_text(Function::Model, scale));
    let measured_at = |at: usize| -> [Vec<f64>; 2] {
        [0, 1].map(|scale| values[scale].iter().map(|text| text[at]).collect())
    };
    if design.exact {
        let small = |set: &&PartSet| set.len() <= LARGEST_INTERACTION;
        let known: Known = design
            .sets
            .iter()
            .enumerate()
            .filter(|(_, set)| small(set))
            .map(|(at, set)| (set.clone(), measured_at(at)))
            .collect();
        let alive = |set: &PartSet| design.find(set).is_some_and(|at| !dead[at]);
        let candidates: Vec<PartSet> = known.keys().cloned().collect();
        return Ok(strongest(&candidates, &known, &alive, &measured.components));
    }
    let of = |scale| fits.coefficients.get(place(Function::Model, scale));
    let mut chosen: Vec<PartSet> = Scale::ALL
        .into_iter()
        .filter_map(of)
        .flat_map(|coefficients| candidates(&fits.samples, coefficients))
        .collect();
    chosen.sort_unstable();
    chosen.dedup();
    let mut needed: Vec<PartSet> = chosen.iter().flat_map(|set| set.subsets(set.len())).collect();
    needed.sort_unstable();
    needed.dedup();
    let (run, missing): (Vec<PartSet>, Vec<PartSet>) =
        needed.into_iter().partition(|set| design.find(set).is_some());
    let Some(added) = more(&missing)? else { return Ok(Vec::new()) };
    let mut known = Known::new();
    for set in run {
        if let Some(at) = design.find(&set) {
            known.insert(set, measured_at(at));
        }
    }
    for (at, set) in missing.into_iter().enumerate() {
        let loss = added.iter().map(|text| text[at].loss).collect();
        let logit = added.iter().map(|text| text[at].logit).collect();
        known.insert(set, [loss, logit]);
    }
    let alive = |set: &PartSet| {
        let loss = known.get(set).map(|of| of[0].iter().sum::<f64>() / of[0].len() as f64);
        loss.is_some_and(|loss| loss <= measured.unigram_loss)
    };
    Ok(strongest(&chosen, &known, &alive, &measured.components))
}

/// Returns the planted terms and how many of them are among the strongest interactions in the
/// logit: by dividends where all sets were run, else by coefficients.
fn planted_terms(measured: &Measured, fits: &Fits) -> Vec<PlantedTerms> {
    let design = &measured.design;
    let of = |planted: &Planted| {
        let function = planted.function;
        let strengths: Vec<(PartSet, f64)> = match design.exact {
            true => {
                let values = measured.mean(function, Scale::Logit);
                let value = |set: &PartSet| design.find(set).map(|at| values[at]);
                let small = |set: &&PartSet| set.len() <= LARGEST_INTERACTION;
                let strength =
                    |set: &PartSet| dividend(set, value).map(|strength| (set.clone(), strength));
                design.sets.iter().filter(small).filter_map(strength).collect()
            }
            false => match fits.coefficients.get(place(function, Scale::Logit)) {
                Some(coefficients) => candidates(&fits.samples, coefficients)
                    .into_iter()
                    .map(|set| {
                        let strength = fits.samples.coefficient(coefficients, &set);
                        (set, strength)
                    })
                    .collect(),
                None => Vec::new(),
            },
        };
        PlantedTerms {
            function,
            terms: planted.terms.iter().map(|term| measured.names(term)).collect(),
            named: named(&planted.terms, &strengths),
        }
    };
    measured.planted.iter().map(of).collect()
}
