//! Greedy coordinate gradient (Zou et al. 2023, "Universal and Transferable Adversarial Attacks on Aligned Language
//! Models", algorithm 2), with what has been found to help since: a buffer of candidates (Hayase et al. 2024), several
//! replacements at a time, merging the best single replacements (Jia et al. 2024, "Improved Techniques for
//! Optimization-Based Jailbreaking"), candidates that text can carry, and a race in place of full runs of all.

use std::collections::BTreeSet;

use rand::Rng as _;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

use super::problem::{Problem, Scored};
use crate::error::Result;
use crate::evaluate::OneHotGradient;
use crate::rng;

/// How the search goes. Every field is part of what is searched: a state belongs to its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub seed: u64,
    /// Tokens of the suffix.
    pub length: usize,
    pub steps: usize,
    /// Candidates of the first step and of the last; between them the width falls evenly.
    pub width: usize,
    pub last_width: usize,
    /// Tokens that the gradient expects most of, at each place, from which candidates draw.
    pub top_k: usize,
    /// Tokens that a candidate replaces at once.
    pub replace: usize,
    /// The best suffixes kept to go on from; 0: always from the newest, better or not.
    pub buffer: usize,
    /// At most so many of the best single replacements are tried together; below 2: none.
    pub merge: usize,
    /// Only suffixes that text can carry.
    pub text: bool,
    /// Where candidates are pruned: layers behind them, and the share that goes on. Empty: all run to the end.
    pub stages: Vec<(usize, f64)>,
}

/// Stages for a model of so many layers: none where there is little to save.
pub fn stages(layers: usize, recurrent: bool) -> Vec<(usize, f64)> {
    if recurrent || layers < 12 {
        return Vec::new();
    }
    vec![(layers / 3, 0.4), (layers / 2, 0.5), (2 * layers / 3, 0.5)]
}

/// A suffix and its loss, mean over the prompts it was measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub suffix: Vec<u32>,
    pub loss: f64,
}

/// A suffix that reached the goal, in every prompt there was by then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    pub step: usize,
    pub prompts: usize,
    pub suffix: Vec<u32>,
    pub loss: f64,
    /// Whether text can carry it.
    pub survives: bool,
}

/// One step, for those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Of the suffix that the step ended with.
    pub loss: f64,
    pub best: f64,
    /// Candidates sampled, and those run to the end (merged ones among them).
    pub candidates: usize,
    pub exact: usize,
    pub reached: usize,
    pub prompts: usize,
}

/// The search so far: all there is to go on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub step: usize,
    /// Best first; never empty.
    pub buffer: Vec<Entry>,
    pub best: Entry,
    pub reached: Vec<Reached>,
    /// Prompts searched on so far: one more whenever all of them are reached.
    pub prompts: usize,
    pub trace: Vec<Step>,
}

/// Suffixes kept of those that reached the goal.
const REACHED: usize = 64;
/// Draws for each candidate before a step goes on with fewer: text may be unable to carry most of them.
const DRAWS: usize = 8;

impl State {
    pub fn new(problem: &Problem, options: &Options) -> Result<Self> {
        let suffix = vec![problem.tokens.neutral; options.length];
        let loss = problem.score(1, &suffix, &[vec![]])?[0].loss;
        let start = Entry { suffix, loss };
        Ok(Self { step: 0, buffer: vec![start.clone()], best: start, reached: Vec::new(), prompts: 1, trace: Vec::new() })
    }

    /// The suffix that the next step changes.
    fn current(&self) -> &Entry {
        &self.buffer[0]
    }

    /// One step.
    ///
    /// # Errors
    /// What the evaluator refuses.
    pub fn advance(&mut self, problem: &Problem, options: &Options) -> Result<Step> {
        let current = self.current().clone();
        let layers: Vec<usize> = options.stages.iter().map(|(layer, _)| *layer).collect();
        let gradients = (0..self.prompts).map(|prompt| problem.gradient(prompt, &current.suffix, &layers));
        let gradients = gradients.collect::<Result<Vec<OneHotGradient>>>()?;
        let candidates = self.candidates(problem, options, &current.suffix, &gradients);
        let mut scored: Vec<(Vec<u32>, Scored)> = Vec::new();
        let mut singles: Vec<(usize, f64)> = Vec::new();
        let scores = if options.stages.is_empty() {
            problem.score(self.prompts, &current.suffix, &candidates)?.into_iter().map(Some).collect()
        } else {
            problem.race(&current.suffix, &candidates, &gradients, &options.stages)?
        };
        let before = gradients.iter().map(|g| g.loss).sum::<f64>() / gradients.len().max(1) as f64;
        for (i, score) in scores.into_iter().enumerate().filter_map(|(i, score)| Some((i, score?))) {
            scored.push((changed(&current.suffix, &candidates[i]), score));
            if candidates[i].len() == 1 && score.loss < before {
                singles.push((i, score.loss));
            }
        }
        singles.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        let singles: Vec<(usize, u32)> = singles.iter().map(|(i, _)| candidates[*i][0]).collect();
        let merged: Vec<Vec<(usize, u32)>> = merged(&singles, options.merge)
            .into_iter()
            .filter(|m| !options.text || problem.survives(self.prompts, &changed(&current.suffix, m)))
            .collect();
        for (candidate, score) in merged.iter().zip(problem.score(self.prompts, &current.suffix, &merged)?) {
            scored.push((changed(&current.suffix, candidate), score));
        }
        let step = Step {
            candidates: candidates.len(),
            exact: scored.len(),
            reached: scored.iter().filter(|(_, score)| score.reached).count(),
            prompts: self.prompts,
            loss: 0.0,
            best: 0.0,
        };
        self.take(scored, problem, options, step)
    }

    /// Takes what a step measured into the state.
    fn take(&mut self, mut scored: Vec<(Vec<u32>, Scored)>, problem: &Problem, options: &Options, step: Step) -> Result<Step> {
        self.step += 1;
        scored.sort_by(|a, b| a.1.loss.total_cmp(&b.1.loss).then(a.0.cmp(&b.0)));
        for (suffix, score) in scored.iter().filter(|(_, score)| score.reached) {
            if self.reached.iter().all(|known| known.suffix != *suffix || known.prompts < self.prompts) {
                let survives = problem.survives(self.prompts, suffix);
                let (step, prompts, loss) = (self.step, self.prompts, score.loss);
                self.reached.push(Reached { step, prompts, suffix: suffix.clone(), loss, survives });
            }
        }
        self.reached.sort_by(|a, b| b.prompts.cmp(&a.prompts).then(a.loss.total_cmp(&b.loss)));
        self.reached.truncate(REACHED);
        // Nothing to choose from (no candidate that text can carry, say): the suffix stays.
        let Some((suffix, score)) = scored.first().cloned() else {
            let step = Step { loss: self.current().loss, best: self.best.loss, ..step };
            self.trace.push(step);
            return Ok(step);
        };
        let newest = Entry { suffix, loss: score.loss };
        if options.buffer == 0 {
            self.buffer = vec![newest.clone()];
        } else if self.buffer.iter().all(|entry| entry.suffix != newest.suffix) {
            self.buffer.push(newest.clone());
            self.buffer.sort_by(|a, b| a.loss.total_cmp(&b.loss));
            self.buffer.truncate(options.buffer);
        }
        if newest.loss < self.best.loss {
            self.best = newest.clone();
        }
        if score.reached && self.prompts < problem.prompts.len() {
            // With one prompt more the losses so far are of another kind.
            self.prompts += 1;
            let loss = problem.score(self.prompts, &newest.suffix, &[vec![]])?[0].loss;
            self.best = Entry { loss, ..newest };
            self.buffer = vec![self.best.clone()];
        }
        let step = Step { loss: self.current().loss, best: self.best.loss, ..step };
        self.trace.push(step);
        Ok(step)
    }

    /// Different candidates of a step, as lists of (index in the suffix, id).
    fn candidates(
        &self,
        problem: &Problem,
        options: &Options,
        suffix: &[u32],
        gradients: &[OneHotGradient],
    ) -> Vec<Vec<(usize, u32)>> {
        let mut sum = vec![0f32; gradients[0].tokens.len()];
        for gradient in gradients {
            // Each prompt has one vote: by size the hardest would have all of them (Zou et al., section 2.3).
            let norm = gradient.tokens.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt().max(1e-30) as f32;
            sum.iter_mut().zip(&gradient.tokens).for_each(|(sum, g)| *sum += g / norm);
        }
        let rows = sum.chunks_exact(sum.len() / suffix.len());
        let best: Vec<Vec<u32>> = rows.zip(suffix).map(|(row, id)| problem.tokens.best(row, *id, options.top_k)).collect();
        let mut rng = rng::stream(options.seed, &format!("gcg step {}", self.step));
        let places: Vec<usize> = (0..suffix.len()).filter(|place| !best[*place].is_empty()).collect();
        let width = width(options, self.step);
        let (mut seen, mut candidates) = (BTreeSet::new(), Vec::with_capacity(width));
        for _ in 0..DRAWS * width {
            if candidates.len() == width || places.is_empty() {
                break;
            }
            let mut at = places.clone();
            let (drawn, _) = at.partial_shuffle(&mut rng, options.replace.max(1));
            let mut candidate: Vec<(usize, u32)> =
                drawn.iter().map(|&place| (place, best[place][rng.random_range(0..best[place].len())])).collect();
            candidate.sort_unstable();
            if seen.insert(candidate.clone()) && (!options.text || problem.survives(self.prompts, &changed(suffix, &candidate))) {
                candidates.push(candidate);
            }
        }
        candidates
    }
}

/// Candidates of a step: evenly from the first width to the last.
fn width(options: &Options, step: usize) -> usize {
    let share = step as f64 / options.steps.saturating_sub(1).max(1) as f64;
    let (first, last) = (options.width as f64, options.last_width as f64);
    ((first + (last - first) * share.min(1.0)).round() as usize).max(1)
}

fn changed(suffix: &[u32], candidate: &[(usize, u32)]) -> Vec<u32> {
    let mut changed = suffix.to_vec();
    candidate.iter().for_each(|&(at, id)| changed[at] = id);
    changed
}

/// The best two, three, ... up to `most` of single replacements (best first) at different places, together.
fn merged(singles: &[(usize, u32)], most: usize) -> Vec<Vec<(usize, u32)>> {
    let mut places = BTreeSet::new();
    let mut together: Vec<(usize, u32)> = singles.iter().copied().filter(|(place, _)| places.insert(*place)).collect();
    together.truncate(most);
    (2..=together.len()).map(|n| together[..n].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_take_one_replacement_a_place() {
        let singles = [(3, 7), (3, 8), (1, 9), (0, 2), (1, 4)];
        assert_eq!(merged(&singles, 8), vec![vec![(3, 7), (1, 9)], vec![(3, 7), (1, 9), (0, 2)]]);
        assert_eq!(merged(&singles, 2), vec![vec![(3, 7), (1, 9)]]);
        assert!(merged(&singles, 1).is_empty() && merged(&singles[..2], 8).is_empty());
    }

    #[test]
    fn widths_fall_evenly() {
        let options = Options {
            seed: 1,
            length: 4,
            steps: 5,
            width: 100,
            last_width: 20,
            top_k: 8,
            replace: 1,
            buffer: 0,
            merge: 8,
            text: true,
            stages: vec![],
        };
        assert_eq!((0..6).map(|step| width(&options, step)).collect::<Vec<_>>(), [100, 80, 60, 40, 20, 20]);
    }
}
