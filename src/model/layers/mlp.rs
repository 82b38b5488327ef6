//! The MLP of a layer.

use super::pass::Pass;
use crate::edit::Matrix;
use crate::error::Result;
use crate::model::arithmetic::Numerics;
use crate::model::hooks::Site;
use crate::model::weights::{Linear, Loader};

/// The weights of an MLP.
pub struct Dense {
    /// `[d_mlp, d_model]`; `[2 * d_mlp, d_model]` where the MLP is gated, the gate first.
    pub up: Linear,
    /// `[d_model, d_mlp]`.
    pub down: Linear,
}

impl Dense {
    /// Loads the MLP of the layer at `prefix`.
    pub(super) fn load(loader: &mut Loader, prefix: &str) -> Result<Self> {
        let (config, names) = (loader.config, loader.names.up);
        let width = config.intermediate_size;
        // One tensor holds both halves of a gated MLP in some families.
        let rows = if config.gated_mlp { 2 * width / names.len() } else { width };
        let up: Vec<_> = names.iter().map(|n| (format!("{prefix}.{n}"), rows)).collect();
        let down = format!("{prefix}.{}", loader.names.down);
        Self::from_parts(loader, &up, down, width)
    }

    /// Loads a gated MLP of `width` neurons by the names of its three matrices under `prefix`.
    pub(super) fn expert(
        loader: &mut Loader,
        prefix: &str,
        [gate, up, down]: [&str; 3],
        width: usize,
    ) -> Result<Self> {
        let up = [(format!("{prefix}.{gate}"), width), (format!("{prefix}.{up}"), width)];
        Self::from_parts(loader, &up, format!("{prefix}.{down}"), width)
    }

    fn from_parts(
        loader: &mut Loader,
        up: &[(String, usize)],
        down: String,
        width: usize,
    ) -> Result<Self> {
        let d = loader.config.hidden_size;
        Ok(Self { up: loader.stacked(up, d)?, down: loader.linear(down, d, width)? })
    }

    /// Returns the number of parameters.
    pub(super) fn parameters(&self) -> usize {
        self.up.parameters() + self.down.parameters()
    }

    /// Applies the MLP to its normalised input `x`, `[tokens, d_model]`; returns its output before
    /// the post-norm, in the same shape.
    pub(in crate::model) fn forward<N: Numerics>(
        &self,
        pass: &Pass<N>,
        layer: usize,
        x: &N::Array,
    ) -> Result<N::Array> {
        let (mode, config) = (pass.mode, &pass.model.config);
        let edited = [Matrix::Gate, Matrix::Up]
            .iter()
            .any(|m| pass.hooks.weights.contains_key(&(layer, *m)));
        let hidden = match (config.gated_mlp, edited) {
            (true, false) => mode.gated(x, &self.up, config.activation)?,
            (true, true) => {
                let gate_up = pass.product(layer, x, &self.up, &[Matrix::Gate, Matrix::Up])?;
                mode.gate(&gate_up, config.activation)?
            }
            (false, _) => {
                mode.activate(pass.product(layer, x, &self.up, &[Matrix::Up])?, config.activation)?
            }
        };
        let hidden = pass.at(layer, Site::Neurons, hidden)?;
        pass.product(layer, &hidden, &self.down, &[Matrix::Down])
    }
}
