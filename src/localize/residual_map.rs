//! The residual map of a case: which positions the symptom depends on, layer by layer.
//!
//! One vector of the corrupted run's residual stream at a time, at one position and the entry of
//! one layer, is replaced by that of the clean run (Meng et al. 2022, "Locating and Editing Factual
//! Associations in GPT", section 2.1; here with a clean run in place of noise). In early layers the
//! effect hangs on the positions of the edits, in late ones on the position that predicts the
//! symptom; where it changes over, later positions read earlier ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::runs::source;
use super::symptom::Symptom;
use crate::edit::{Edit, InLayer, ResidualSite};
use crate::error::Result;
use crate::evaluate::{ResidualCell, ResidualRun};

/// The largest number of layers that are measured; of deeper models, every k-th is.
pub const MAX_MEASURED_LAYERS: usize = 16;

/// The largest number of positions of a map.
pub const MAX_MAP_POSITIONS: usize = 12;

/// The number of tokens that the rows of a map may have together; a row has those from its position
/// to the one that predicts the symptom. Of a long run that a lesion changes everywhere, fewer
/// positions are patched, so that the map costs less than patching all components does.
const MAX_MAP_TOKENS: usize = 8192;

/// A position that could be patched: its rank, how much the residual stream changes there, and the
/// position with its counterpart in the clean run.
type Ranked = (u8, f64, (usize, usize));

/// A position of a map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapPosition {
    /// Position in the edited sequence (prompt and continuation).
    pub position: usize,
    /// The token at `position`.
    pub id: u32,
    /// That token, decoded: a comment.
    pub text: String,
}

/// Residual patching at single positions and layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidualMap {
    /// The measured layers, ascending.
    pub layers: Vec<usize>,
    /// The patched hook points in TransformerLens's terms, `[layers]`: `blocks.N.hook_resid_pre`.
    pub hooks: Vec<String>,
    /// The patched positions, ascending: the edited ones, the one that predicts the symptom, and
    /// those whose residual stream changes most; only positions that the clean run has as well.
    pub positions: Vec<MapPosition>,
    /// Share of the symptom's effect that is removed when the corrupted run gets the clean run's
    /// residual stream there, between 0 and 1, `[layers, positions]`.
    pub necessity: Vec<Vec<f64>>,
}

/// Returns the names of the hook points at a place of each of these layers.
pub fn hook_names(layers: &[usize], at: InLayer) -> Vec<String> {
    layers.iter().map(|&layer| ResidualSite { layer, at }.hook_name()).collect()
}

/// Returns every k-th of so many layers, from the first on, at most [`MAX_MEASURED_LAYERS`].
pub fn entered_layers(depth: usize) -> Vec<usize> {
    (0..depth).step_by(depth.div_ceil(MAX_MEASURED_LAYERS).max(1)).collect()
}

/// The clean and the corrupted run of a symptom, up to the position that predicts it.
pub struct ResidualRuns {
    /// Without the edits.
    pub clean: ResidualRun,
    /// With them.
    pub corrupted: ResidualRun,
}

impl ResidualRuns {
    /// Runs both and keeps the residual stream entering these layers; `None` where the position
    /// that predicts the symptom has no counterpart.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn new(symptom: &Symptom, layers: &BTreeSet<usize>) -> Result<Option<Self>> {
        let (runs, evaluator) = (&symptom.runs, symptom.runs.evaluator);
        let Some(last) = source(&symptom.runs.aligned, symptom.position) else { return Ok(None) };
        let first = runs.aligned.iter().map(|(clean, ..)| *clean).min().unwrap_or(last);
        let clean = evaluator.residual_run(&runs.clean.trial, first.min(last), last, layers)?;
        let (first, last) = (runs.corrupted.activations.first, symptom.position);
        let corrupted =
            evaluator.residual_run(&runs.corrupted.trial, first.min(last), last, layers)?;
        Ok(Some(Self { clean, corrupted }))
    }

    /// Measures the map; `None` if no position can be patched. Returns also the number of trials
    /// evaluated.
    ///
    /// # Errors
    /// Errors of the evaluator.
    pub fn map(&self, symptom: &Symptom) -> Result<Option<(ResidualMap, u64)>> {
        let model = symptom.runs.evaluator.model;
        let layers = entered_layers(model.config.num_hidden_layers);
        let positions = self.positions(symptom, &layers);
        if positions.is_empty() {
            return Ok(None);
        }
        let mut cells: Vec<ResidualCell> = Vec::new();
        let mut places: Vec<(usize, usize)> = Vec::new();
        for (row, &layer) in layers.iter().enumerate() {
            for (column, &(position, source)) in positions.iter().enumerate() {
                let own = self.corrupted.entering(layer, position);
                // Where the runs do not differ yet, patching changes nothing.
                let Some(clean) = self.clean.entering(layer, source).filter(|c| Some(*c) != own)
                else {
                    continue;
                };
                cells.push(ResidualCell { layer, position, values: Arc::from(clean) });
                places.push((row, column));
            }
        }
        let mut necessity = vec![vec![0.0; positions.len()]; layers.len()];
        let evaluator = symptom.runs.evaluator;
        let said = evaluator.patch_residual_cells(&self.corrupted, &cells, symptom.token)?;
        for ((row, column), said) in places.into_iter().zip(said) {
            let share = (symptom.corrupted - said) / symptom.effect;
            necessity[row][column] = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
        }
        let ids = symptom.runs.corrupted.trial.layout().ids;
        let position = |&(position, _): &(usize, usize)| {
            let id = ids[position];
            MapPosition { position, id, text: model.token(id) }
        };
        let map = ResidualMap {
            hooks: hook_names(&layers, InLayer::Pre),
            positions: positions.iter().map(position).collect(),
            layers,
            necessity,
        };
        Ok(Some((map, cells.len() as u64)))
    }

    /// Chooses the positions to patch; each with its counterpart in the clean run.
    fn positions(&self, symptom: &Symptom, layers: &[usize]) -> Vec<(usize, usize)> {
        let trial = &symptom.runs.corrupted.trial;
        let layout = trial.layout();
        let edited: BTreeSet<usize> = (trial.edits.iter())
            .filter(|edit| !matches!(edit, Edit::Insert { .. } | Edit::Delete { .. }))
            .filter_map(|edit| layout.at(edit.position()?))
            .collect();
        let mut ranked: Vec<Ranked> = Vec::new();
        for position in self.corrupted.first..self.corrupted.end {
            let Some(source) = source(&symptom.runs.aligned, position) else { continue };
            let change: f64 =
                layers.iter().map(|layer| self.change(*layer, position, source)).sum();
            let rank = match position == symptom.position {
                true => 0,
                false if edited.contains(&position) => 1,
                false => 2,
            };
            if rank < 2 || change > 0.0 {
                ranked.push((rank, change, (position, source)));
            }
        }
        chosen(ranked, self.corrupted.end, layers.len())
    }

    /// Returns the norm of the difference between the runs over that of the clean run.
    fn change(&self, layer: usize, position: usize, source: usize) -> f64 {
        let (Some(own), Some(clean)) =
            (self.corrupted.entering(layer, position), self.clean.entering(layer, source))
        else {
            return 0.0;
        };
        let squared = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>()
        };
        let change = squared(&mut own.iter().zip(clean).map(|(a, b)| a - b));
        let share = (change / squared(&mut clean.iter().copied()).max(f64::MIN_POSITIVE)).sqrt();
        if share.is_nan() { 0.0 } else { share }
    }
}

/// Takes the positions of the lowest rank and, among these, of the largest change, as many as a map
/// may have of so many layers in a run that ends before `end`; ascending.
fn chosen(mut ranked: Vec<Ranked>, end: usize, layers: usize) -> Vec<(usize, usize)> {
    ranked.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
    let (mut positions, mut tokens) = (Vec::new(), 0);
    for (_, _, (position, source)) in ranked {
        let more = (end - position) * layers;
        if positions.len() < MAX_MAP_POSITIONS
            && (positions.is_empty() || tokens + more <= MAX_MAP_TOKENS)
        {
            positions.push((position, source));
            tokens += more;
        }
    }
    positions.sort_unstable();
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edited_positions_come_first_and_long_runs_have_fewer() {
        let ranked = |end: usize| -> Vec<Ranked> {
            let rank = |position| match position {
                _ if position == end - 1 => 0,
                3 => 1,
                _ => 2,
            };
            (0..end).map(|p| (rank(p), (p % 7) as f64, (p, p + 1))).collect()
        };
        let short = chosen(ranked(40), 40, 4);
        assert_eq!(short.len(), MAX_MAP_POSITIONS);
        assert!(short.is_sorted() && short.contains(&(3, 4)) && short.contains(&(39, 40)));
        // After those, the ones with the largest change.
        let changes: Vec<usize> = short.iter().map(|(p, _)| p % 7).filter(|c| *c == 6).collect();
        assert_eq!(changes.len(), 5);
        let long = chosen(ranked(400), 400, 16);
        assert!(long.contains(&(3, 4)) && long.contains(&(399, 400)) && long.len() < 12);
        let tokens: usize = long.iter().map(|(p, _)| 16 * (400 - p)).sum();
        assert!(tokens <= MAX_MAP_TOKENS, "{tokens}");
        assert!(chosen(Vec::new(), 1, 4).is_empty());
    }
}
