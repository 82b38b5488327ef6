//! The MLP of a layer, or the mixture of experts in its place.

use super::hooks::Site;
use super::numerics::{Mixture, Numerics};
use super::pass::Pass;
use super::weights::{Dense, Sparse};
use crate::edit::Matrix;
use crate::error::{Error, Result};

impl Dense {
    /// Of `x` `[tokens, d_model]`, before what normalises it; the same shape.
    pub(super) fn forward<N: Numerics>(
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

impl Sparse {
    /// Of `x` `[tokens, d_model]`; the same shape.
    pub(super) fn forward<N: Numerics>(
        &self,
        pass: &Pass<N>,
        layer: usize,
        x: &N::Array,
    ) -> Result<N::Array> {
        let (mode, config) = (pass.mode, &pass.model.config);
        let experts =
            config.experts.as_ref().ok_or_else(|| Error::request("a mixture without experts"))?;
        let logits = pass.at(layer, Site::RouterLogits, mode.linear(x, &self.router)?)?;
        let mut kept = pass.captures(layer, Site::Experts).then(Vec::new);
        // What is captured is wanted of every token.
        let idle =
            if kept.is_some() { Vec::new() } else { pass.hooks.idle(layer, config.hidden_size) };
        let mixture = Mixture { sparse: self, experts, activation: config.activation, idle: &idle };
        let out =
            mode.mixture(x, &logits, mixture, pass.blocks(layer, Site::Experts), kept.as_mut())?;
        if let Some(kept) = kept {
            pass.keep(layer, Site::Experts, kept);
        }
        Ok(out)
    }
}
