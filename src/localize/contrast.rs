//! Contrast: which components are specific to a case, and which mediate whatever is put in its
//! place.
//!
//! Any replaced token acts through the components that read tokens, above all the first MLP, and
//! patching these back removes the effect of any. So what patching a component removes of a case is
//! compared with what it removes of controls, the same edits with ordinary content, each as a share
//! of its own effect.
//!
//! Every ordinary token has components that mediate more of its effect than of others', so a case
//! has to stand out as a whole. By how much a component's share in one run exceeds its mean share
//! in all of them is compared between the case and, over all components, each control: the largest
//! of a control counts (the maxT permutation test of Westfall and Young 1993). If the case
//! is one more ordinary token, some component is called specific with a probability of 5% at most,
//! whatever the shares' distribution. All mixers and MLPs are compared in all runs, since picking
//! some by what they do in the case would break the symmetry that this rests on.

use super::components::NEARLY_ALL;
use super::patching::{Direction, Patching, Stretch, comparable};
use super::set::{LocalizeOptions, SmallestSet};
use super::{Contrast, Role};
use crate::edit::{Component, Edit, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator as _, ModelEvaluator, Observation, Request};

/// The excess over the controls' mean below which a component is not specific.
const LEAST_NECESSITY: f64 = 0.1;

/// The number of controls below which shares are not compared: nothing could be specific.
const LEAST_CONTROLS: usize = 19;

/// The probability with which something is called specific to an ordinary case.
const LEVEL: f64 = 0.05;

/// The effect below which shares of it are not taken, nats.
const LEAST_NATS: f64 = 1.0;

/// The token that the edits make the model say: where the predictions diverge most, the one that is
/// then the most probable. Its log-probability is what patches are measured by: a divergence would
/// not tell a patch that takes this away from one that does nothing, as long as the predictions are
/// far from those without the edits for whatever reason.
struct Symptom<'a, 'm> {
    /// The runs, with the token as the end of the continuation.
    runs: Patching<'a, 'm>,
    /// The token's log-probability with the edits, nats.
    corrupted: f64,
    /// By how much the edits raise it, nats.
    effect: f64,
}

impl<'a, 'm> Symptom<'a, 'm> {
    /// Finds the symptom of a trial; `None` if the edits raise no token's log-probability by
    /// [`LEAST_NATS`].
    fn new(evaluator: &'a ModelEvaluator<'m>, trial: &Trial) -> Result<Option<Self>> {
        let baseline = Request::new(trial.baseline()).keeping_distributions();
        let reference = evaluator.observe(&[baseline])?.pop().and_then(|o| o.distributions);
        let reference =
            reference.ok_or_else(|| Error::internal("the clean run's distributions"))?;
        let observed =
            evaluator.observe(&[Request::new(trial.clone()).with_reference(reference)])?.pop();
        let Some(observed) = observed else { return Ok(None) };
        let most = (observed.divergence_bits.iter().enumerate())
            .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        let Some((at, token)) =
            most.and_then(|(at, _)| Some((at, observed.top.get(at)?.first()?.0)))
        else {
            return Ok(None);
        };
        let end = trial.base.len() + at;
        let before = |edit: &&Edit| match edit {
            Edit::Insert { position, .. } => *position <= end,
            other => other.position().is_none_or(|position| position < end),
        };
        let continuation = [&trial.continuation[..at.min(trial.continuation.len())], &[token]];
        let shown = Trial::new(trial.base.clone(), continuation.concat())
            .with_edits(trial.edits.iter().filter(before).cloned().collect());
        if !comparable(&shown) {
            return Ok(None);
        }
        let requests = [shown.baseline(), shown.clone()].map(Request::new);
        let said: Vec<f64> = evaluator.observe(&requests)?.iter().map(last).collect();
        let effect = said[1] - said[0];
        if effect.is_nan() || effect < LEAST_NATS {
            return Ok(None);
        }
        let mut runs = Patching::new(evaluator, &shown)?;
        runs.calls += 4;
        // The position that the token is read at corresponds to itself, though it may hold another
        // token: one inserted at the end of the prompt, or what a deletion leaves there.
        let (clean, corrupted) = (end - 1, shown.layout().prompt_len - 1 + at);
        align(&mut runs.aligned, clean, corrupted);
        Ok(Some(Self { runs, corrupted: said[1], effect }))
    }

    /// Measures which share of the effect each set takes away with its clean outputs (necessity) or
    /// makes with its corrupted ones (sufficiency), between 0 and 1: a patch that makes matters
    /// worse mediates nothing.
    fn shares(&mut self, sets: &[&[Component]], direction: Direction) -> Result<Vec<f64>> {
        let aligned = self.runs.aligned.clone();
        let requests: Vec<Request> = sets
            .iter()
            .map(|set| self.runs.request(set, &aligned, direction))
            .collect::<Result<_>>()?;
        self.runs.calls += requests.len() as u64;
        let share = |said: f64| match direction {
            Direction::Necessity => (self.corrupted - said) / self.effect,
            Direction::Sufficiency => 1.0 - (self.corrupted - said) / self.effect,
        };
        let observed = self.runs.evaluator.observe(&requests)?;
        let share =
            |o| Some(share(last(o))).filter(|s| !s.is_nan()).map_or(0.0, |s| s.clamp(0.0, 1.0));
        Ok(observed.iter().map(share).collect())
    }

    fn necessities(&mut self, components: &[Component]) -> Result<Vec<f64>> {
        self.shares(&components.chunks(1).collect::<Vec<_>>(), Direction::Necessity)
    }

    /// Returns the component that is named for a block: itself, or the head of a mixer that
    /// mediates nearly all that the mixer does.
    fn named_for(&mut self, block: Component, necessity: f64) -> Result<Component> {
        let config = &self.runs.evaluator.model.config;
        let layer = block.layer();
        if config.mixer(layer) != block {
            return Ok(block);
        }
        let heads: Vec<Component> =
            (0..config.heads(layer)).map(|head| Component::Head { layer, head }).collect();
        let necessities = self.necessities(&heads)?;
        let strongest = heads.into_iter().zip(necessities).max_by(|a, b| a.1.total_cmp(&b.1));
        Ok(match strongest {
            Some((head, share)) if share >= (NEARLY_ALL * necessity).max(LEAST_NECESSITY) => head,
            _ => block,
        })
    }

    /// Finds the shortest prefix of the specific components that takes away nearly as much as the
    /// best one.
    fn specific_set(
        &mut self,
        contrasts: &[Contrast],
        options: &LocalizeOptions,
    ) -> Result<SmallestSet> {
        let mut members = Vec::new();
        let specific = contrasts.iter().filter(|c| c.role == Role::Specific);
        for contrast in specific.take(options.set) {
            members.push(self.named_for(contrast.component, contrast.necessity)?);
        }
        let prefixes: Vec<&[Component]> = (1..=members.len()).map(|n| &members[..n]).collect();
        let necessity = self.shares(&prefixes, Direction::Necessity)?;
        let sufficiency = self.shares(&prefixes, Direction::Sufficiency)?;
        Ok(SmallestSet::of(&prefixes, &necessity, &sufficiency, options.share_of_best))
    }
}

/// Makes a position of the corrupted run correspond to one of the clean run, whatever the stretches
/// have it correspond to.
fn align(stretches: &mut Vec<Stretch>, clean: usize, corrupted: usize) {
    let covers = |&(_, first, len): &Stretch| (first..first + len).contains(&corrupted);
    let Some(at) = stretches.iter().position(covers) else {
        return stretches.push((clean, corrupted, 1));
    };
    let (c, first, len) = stretches[at];
    let before = corrupted - first;
    if c + before != clean {
        let parts = [(c, first, before), (clean, corrupted, 1)];
        let after = (c + before + 1, corrupted + 1, len - before - 1);
        let parts = parts.into_iter().chain([after]).filter(|(_, _, len)| *len > 0);
        stretches.splice(at..=at, parts);
    }
}

/// Returns the log-probability of the last token, nats.
fn last(observation: &Observation) -> f64 {
    observation.log_probs.last().map_or(f64::NAN, |log_prob| f64::from(*log_prob))
}

/// A case compared with its controls.
#[derive(Default)]
pub struct Contrasted {
    /// All mixers and MLPs, largest necessity first; empty where the case or too many controls have
    /// no effect.
    pub contrasts: Vec<Contrast>,
    /// The set that is named: of what is specific.
    pub set: SmallestSet,
    /// Trials evaluated.
    pub calls: u64,
}

/// Compares what mixers and MLPs mediate of a case and of its controls.
///
/// # Errors
/// Errors of the evaluator.
pub fn contrasted(
    evaluator: &ModelEvaluator,
    trial: &Trial,
    controls: &[Trial],
    options: &LocalizeOptions,
) -> Result<Contrasted> {
    let config = &evaluator.model.config;
    let blocks: Vec<Component> = (0..config.num_hidden_layers)
        .flat_map(|layer| std::iter::once(config.mixer(layer)).chain(config.mlp(layer)))
        .collect();
    let Some(mut own) = Symptom::new(evaluator, trial)? else { return Ok(Contrasted::default()) };
    // One row for the case, one for each control.
    let (mut shares, mut calls) = (vec![own.necessities(&blocks)?], 0);
    for control in controls.iter().filter(|control| comparable(control)) {
        if shares.len() > options.contrasted {
            break;
        }
        if let Some(mut other) = Symptom::new(evaluator, control)? {
            shares.push(other.necessities(&blocks)?);
            calls += other.runs.calls;
        }
    }
    if shares.len() < 1 + LEAST_CONTROLS {
        return Ok(Contrasted { calls: calls + own.runs.calls, ..Contrasted::default() });
    }
    let mut contrasts: Vec<Contrast> = (blocks.iter().zip(adjusted_p_values(&shares)))
        .enumerate()
        .map(|(at, (&component, p_value))| {
            let mut controls: Vec<f64> = shares[1..].iter().map(|run| run[at]).collect();
            controls.sort_by(f64::total_cmp);
            let necessity = shares[0][at];
            let mut contrast =
                Contrast { component, necessity, controls, p_value, role: Role::Unclear };
            let of_controls = necessity - contrast.excess();
            if p_value <= LEVEL && contrast.excess() >= LEAST_NECESSITY {
                contrast.role = Role::Specific;
            } else if necessity >= LEAST_NECESSITY && of_controls >= 0.5 * necessity {
                contrast.role = Role::Relay;
            }
            contrast
        })
        .collect();
    contrasts
        .sort_by(|a, b| b.necessity.total_cmp(&a.necessity).then(a.component.cmp(&b.component)));
    let set = own.specific_set(&contrasts, options)?;
    Ok(Contrasted { contrasts, set, calls: calls + own.runs.calls })
}

/// Returns for each column the share of runs of which some column exceeds the mean of its column by
/// as much as the first run does in this one. The first run counts as one of them.
fn adjusted_p_values(runs: &[Vec<f64>]) -> Vec<f64> {
    let columns = runs.first().map_or(0, Vec::len);
    let n = runs.len() as f64;
    let means: Vec<f64> =
        (0..columns).map(|at| runs.iter().map(|run| run[at]).sum::<f64>() / n).collect();
    let excess = |run: &[f64], at: usize| run[at] - means[at];
    let largest: Vec<f64> = runs
        .iter()
        .map(|run| (0..columns).map(|at| excess(run, at)).fold(f64::NEG_INFINITY, f64::max))
        .collect();
    // Ties up to rounding count against the first run.
    let as_much = |least: f64| largest[1..].iter().filter(|most| **most >= least - 1e-9).count();
    (0..columns).map(|at| (1 + as_much(excess(&runs[0], at))) as f64 / n).collect()
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::rng;

    #[test]
    fn one_position_can_be_made_to_correspond_to_another() {
        let aligned = |clean, corrupted| {
            let mut stretches = vec![(0, 0, 5), (7, 6, 2)];
            align(&mut stretches, clean, corrupted);
            stretches
        };
        assert_eq!(aligned(4, 4), [(0, 0, 5), (7, 6, 2)]);
        // The last of what a deletion leaves; a token that was inserted; one in the middle.
        assert_eq!(aligned(5, 4), [(0, 0, 4), (5, 4, 1), (7, 6, 2)]);
        assert_eq!(aligned(5, 5), [(0, 0, 5), (7, 6, 2), (5, 5, 1)]);
        assert_eq!(aligned(9, 1), [(0, 0, 1), (9, 1, 1), (2, 2, 3), (7, 6, 2)]);
    }

    #[test]
    fn p_values_by_hand() {
        // Means 0.4, 0.2: excesses 0.5 and -0.2; -0.1 and 0.4; -0.4 and -0.2.
        let runs = [vec![0.9, 0.0], vec![0.3, 0.6], vec![0.0, 0.0]];
        assert_eq!(adjusted_p_values(&runs), [1.0 / 3.0, 1.0]);
        assert_eq!(adjusted_p_values(&[vec![0.5], vec![0.5]]), [1.0]);
        assert!(adjusted_p_values(&[]).is_empty());
    }

    /// Heavy tails, and components that only one token in twenty uses: the rate is kept, and what
    /// stands out from all is found.
    #[test]
    fn an_ordinary_run_stands_out_as_often_as_stated() {
        let mut rng = rng::stream(1, "contrasts");
        let (mut called, mut found) = (0, 0);
        for _ in 0..2000 {
            let mut draw = |component: usize| match component {
                0 => 1.0 - 0.01 * rng.random_range(0.0..1.0f64),
                1..4 => rng.random_range(0.0..1.0f64).powi(6),
                _ => f64::from(u8::from(rng.random_bool(0.05))) * rng.random_range(0.1..0.6),
            };
            let mut runs: Vec<Vec<f64>> =
                (0..20).map(|_| (0..12).map(&mut draw).collect()).collect();
            let specific = |runs: &[Vec<f64>]| adjusted_p_values(runs).iter().any(|p| *p <= LEVEL);
            called += usize::from(specific(&runs));
            runs[0][7] = 1.0;
            found += usize::from(adjusted_p_values(&runs)[7] <= LEVEL);
        }
        assert!((60..=130).contains(&called), "{called}");
        assert!(found > 1000, "{found}");
    }
}
