//! Integrated gradients at the outputs of components, by which attribution patching picks the
//! components and positions that are worth a patch (Hanna, Pezzelle and Belinkov 2024, "Have Faith
//! in Faithfulness", section 3: EAP-IG).
//!
//! The gradient is averaged over runs whose embeddings lie between those of another run and those
//! of the trial. A single gradient at either end is misled where something saturates: an attention
//! head that is sure, a neuron that is off.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::activations::Activations;
use super::engine::ModelEvaluator;
use super::gradient::Target;
use super::lower::{Lowering, Place};
use crate::edit::Trial;
use crate::error::{Error, Result};
use crate::model::Forward;
use crate::model::batch::Row;
use crate::model::hooks::Site;

/// The number of runs between the two ends (Hanna et al. use 5).
const STEPS: usize = 5;

impl ModelEvaluator<'_> {
    /// Takes the gradient of the log-probability of the trial's last token (nats) at `sites`,
    /// averaged over runs between the tokens `from` and the trial's. Where the tokens are the same
    /// (the edits are inside the model), over the runs with and without the edits. The gradients
    /// have the form of activations, from the first position on that the edits change.
    ///
    /// # Errors
    /// [`Error::Request`] for ids that the model does not have, for sequences of different lengths,
    /// and for a trial of fewer than two tokens.
    pub fn integrated_gradients(
        &self,
        trial: &Trial,
        from: &[u32],
        sites: &BTreeSet<(usize, Site)>,
    ) -> Result<Activations> {
        let layout = trial.layout();
        let (len, Some(&id)) = (layout.ids.len(), layout.ids.last()) else {
            return Err(Error::request("no token to take a gradient of"));
        };
        if len < 2 || from.len() != len {
            return Err(Error::request(format!("{} tokens for a trial of {len}", from.len())));
        }
        self.model.check_ids(from)?;
        // The last token is predicted and never run.
        let (ids, from) = (&layout.ids[..len - 1], &from[..len - 1]);
        let same = ids.iter().zip(from).take_while(|(a, b)| a == b).count();
        let row = self.row_from(ids, trial.first_edited().min(same).min(len - 2))?;
        let first = row.prefix_len();
        let baseline = trial.baseline();
        let (shares, trials): (Vec<f32>, Vec<&Trial>) = match ids == from {
            true => (vec![1.0; 2], vec![&baseline, trial]),
            false => (0..STEPS).map(|k| ((k as f32 + 0.5) / STEPS as f32, trial)).unzip(),
        };
        let target =
            Target { token: (len - 2 - first) as u32, id, weight: 1.0 / shares.len() as f32 };
        let mut sum: BTreeMap<(usize, Site), Vec<f32>> = BTreeMap::new();
        // One run at a time: what candle keeps of a forward for its backward is large, and is used
        // again for the next.
        for (share, trial) in shares.iter().zip(trials) {
            let run = |ids: &[u32]| Forward {
                rows: vec![Row { ids: ids[first..].to_vec(), ..row.clone() }],
                ..Forward::default()
            };
            let mut forward = run(ids);
            let place = Place { tokens: 0..len - 1 - first, position: first, layer: 0 };
            let (layout, hooks) = (trial.layout(), &mut forward.hooks);
            Lowering { baselines: self, trial, layout: &layout, place, hooks }.run(&[])?;
            let to = self.model.embed_tensor(&forward)?;
            let from = self.model.embed_tensor(&run(from))?;
            let between = (&from + (to - &from)?.affine(f64::from(*share), 0.0)?)?;
            let gradients =
                self.gradients_at(&forward, &between, sites, std::slice::from_ref(&target))?;
            for (site, values) in gradients {
                match sum.entry(site) {
                    Entry::Vacant(entry) => drop(entry.insert(values)),
                    Entry::Occupied(mut entry) => {
                        entry.get_mut().iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
                    }
                }
            }
        }
        Ok(Activations { first, positions: len - 1, sites: sum })
    }
}
