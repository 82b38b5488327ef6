//! Captures the outputs of all components in whole runs.

use super::activations::{Activations, COMPONENT_SITES, width};
use super::batching::forwards;
use super::engine::ModelEvaluator;
use super::lower::{Lowering, Place};
use super::observation::Patch;
use crate::edit::Trial;
use crate::error::Result;
use crate::model::Forward;
use crate::model::batch::Row;
use crate::model::hooks::Site;

/// The largest number of values that [`ModelEvaluator::activations`] keeps of the experts' outputs,
/// and of the recurrent states (256 MB each). Where there would be more, these components can be
/// neither patched nor mean-ablated.
const LARGE_SITE_VALUES: usize = 64 << 20;

impl ModelEvaluator<'_> {
    /// Captures the outputs of all components at every position of a trial, with its edits and
    /// then `patches` applied.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) for ids, components or patches that do not fit the
    /// model or the trial.
    pub fn activations(&self, trial: &Trial, patches: &[Patch]) -> Result<Activations> {
        let row = self.row_of(trial, 0)?;
        Ok(self.captured(&[(trial, row)], patches)?.remove(0))
    }

    /// Captures the outputs of all components in each of these trials, from a position on that goes
    /// with it. Nothing before that may be edited: it comes from a cached forward.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) for ids or components that the model does not
    /// have, and for a position that a trial does not have.
    pub fn activations_from(&self, trials: &[(&Trial, usize)]) -> Result<Vec<Activations>> {
        let rows: Vec<(&Trial, Row)> = trials
            .iter()
            .map(|(trial, first)| Ok((*trial, self.row_of(trial, *first)?)))
            .collect::<Result<_>>()?;
        // Large sites are kept of runs that are alone, whatever else is asked for.
        let large = |row: &Row| self.large_sites(row.prefix_len() + row.ids.len()).len();
        let mut all = Vec::with_capacity(rows.len());
        for chunk in forwards(rows, |(_, row)| row.ids.len()) {
            let tokens = chunk.iter().map(|(_, row)| row.prefix_len() + row.ids.len()).sum();
            let together = self.large_sites(tokens).len();
            if chunk.iter().all(|(_, row)| large(row) == together) {
                all.extend(self.captured(&chunk, &[])?);
                continue;
            }
            for run in chunk {
                all.extend(self.captured(&[run], &[])?);
            }
        }
        Ok(all)
    }

    fn row_of(&self, trial: &Trial, first: usize) -> Result<Row> {
        let ids = trial.layout().ids;
        self.model.check_ids(&ids)?;
        self.row_from(&ids, first)
    }

    /// Returns the sites of the experts and of the recurrent states, as far as their values of so
    /// many tokens are kept.
    fn large_sites(&self, tokens: usize) -> Vec<Site> {
        let config = &self.model.config;
        let layers = 0..config.num_hidden_layers;
        let values = |site: &Site| {
            tokens * layers.clone().map(|layer| width(layer, *site, config)).sum::<usize>()
        };
        let sites = [Site::Experts, Site::State].into_iter();
        sites.filter(|site| values(site) <= LARGE_SITE_VALUES).collect()
    }

    /// Runs trials in one forward and captures all components.
    fn captured(&self, runs: &[(&Trial, Row)], patches: &[Patch]) -> Result<Vec<Activations>> {
        let config = &self.model.config;
        let rows = runs.iter().map(|(_, row)| row.clone()).collect();
        let mut forward = Forward { rows, ..Forward::default() };
        let offsets = forward.offsets();
        for ((trial, row), tokens) in runs.iter().zip(offsets.windows(2)) {
            let place =
                Place { tokens: tokens[0]..tokens[1], position: row.prefix_len(), layer: 0 };
            let (layout, hooks) = (&trial.layout(), &mut forward.hooks);
            Lowering { baselines: self, trial, layout, place, hooks }.run(patches)?;
        }
        let lengths = runs.iter().map(|(_, row)| row.prefix_len() + row.ids.len());
        let large = self.large_sites(lengths.sum());
        let fits =
            |site: &Site| !matches!(site, Site::Experts | Site::State) || large.contains(site);
        let all = |site: Site| (0..config.num_hidden_layers).map(move |layer| (layer, site));
        let sites = COMPONENT_SITES.into_iter().filter(fits).flat_map(all);
        forward.hooks.capture = sites.filter(|(l, site)| width(*l, *site, config) > 0).collect();
        let captured = self.forward(&forward)?.captured;
        let of_run = |((_, row), tokens): (&(&Trial, Row), &[usize])| {
            let part = |(&(layer, site), values): (&(usize, Site), &Vec<f32>)| {
                let width = width(layer, site, config);
                ((layer, site), values[tokens[0] * width..tokens[1] * width].to_vec())
            };
            let first = row.prefix_len();
            let sites = captured.iter().map(part).collect();
            Activations { first, positions: first + row.ids.len(), sites }
        };
        Ok(runs.iter().zip(offsets.windows(2)).map(of_run).collect())
    }
}
