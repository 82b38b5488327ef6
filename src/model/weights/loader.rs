//! The loader: takes tensors from a source by the names of a family, and checks their shapes.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Linear, Norm, transposed};
use crate::error::{Error, Result};
use crate::model::arithmetic::linear::PackedMatrix;
use crate::model::config::{Config, NormKind};
use crate::model::families::Names;
use crate::model::formats::Source;

/// Takes tensors from a source by the names of a family. Every method fails with [`Error::Model`]
/// naming the tensor, if it is missing, has another shape than the configuration says, or holds a
/// value that is not finite.
pub struct Loader<'a> {
    pub(super) source: &'a mut dyn Source,
    /// The configuration that gives the shapes.
    pub config: &'a Config,
    /// The names of the family.
    pub names: &'a Names,
}

impl Loader<'_> {
    /// Returns the name of a tensor in this source: checkpoints of a bare decoder leave out the
    /// name of the model around it, those of a model with several towers add one.
    fn resolve(&self, name: &str) -> Option<String> {
        let bare = name.split_once('.').map(|(_, rest)| rest.to_owned());
        let inside = format!("language_model.{name}");
        [Some(name.to_owned()), bare, Some(inside)]
            .into_iter()
            .flatten()
            .find(|name| self.source.shape(name).is_some())
    }

    /// Loads a tensor of a shape.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = self
            .resolve(name)
            .ok_or_else(|| Error::model(self.source.path(), name, "tensor is missing"))?;
        let got = self.source.shape(&name).unwrap_or_default();
        if got != shape {
            return Err(Error::model(
                self.source.path(),
                name,
                format!("expected shape {shape:?} by the configuration, got {got:?}"),
            ));
        }
        let values = self.source.load(&name)?;
        if values.len() != shape.iter().product::<usize>() {
            return Err(Error::model(
                self.source.path(),
                name,
                format!("{} values for shape {shape:?}", values.len()),
            ));
        }
        let finite = |part: &[f32]| part.iter().all(|v| v.is_finite());
        if !values.par_chunks(1 << 16).all(finite) {
            let bad = values.iter().position(|v| !v.is_finite()).unwrap_or_default();
            return Err(Error::model(
                self.source.path(),
                name,
                format!("value {bad} is not finite"),
            ));
        }
        Ok(values)
    }

    /// Loads a tensor of a shape; `None` if there is no such tensor.
    pub fn optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        self.resolve(name).is_some().then(|| self.tensor(name, shape)).transpose()
    }

    /// Loads `NAME.weight` as `[out, in]`, whichever way the family stores it.
    pub fn weight(&mut self, name: &str, out: usize, input: usize) -> Result<Vec<f32>> {
        let name = format!("{name}.weight");
        if !self.names.transposed {
            return self.tensor(&name, &[out, input]);
        }
        Ok(transposed(&self.tensor(&name, &[input, out])?, out))
    }

    /// Loads a vector `[width]`, which some checkpoints store as `[1, 1, width]`.
    pub fn vector(&mut self, name: &str, width: usize) -> Result<Vec<f32>> {
        let kept = self.resolve(name).and_then(|name| self.source.shape(&name));
        let shape: &[usize] =
            if kept.is_some_and(|s| s.len() == 3) { &[1, 1, width] } else { &[width] };
        self.tensor(name, shape)
    }

    /// Returns the number of columns of a matrix, which is at least one.
    pub fn columns(&mut self, name: &str) -> Result<usize> {
        match self.resolve(name).and_then(|name| self.source.shape(&name)).as_deref() {
            Some(&[_, columns]) if columns > 0 => Ok(columns),
            Some(other) => Err(Error::model(
                self.source.path(),
                name,
                format!("expected a matrix, got shape {other:?}"),
            )),
            None => Err(Error::model(self.source.path(), name, "tensor is missing")),
        }
    }

    /// Loads a matrix that is stored as `[in, out]`.
    pub fn in_out(
        &mut self,
        name: &str,
        out: usize,
        input: usize,
        bias: Option<Vec<f32>>,
    ) -> Result<Linear> {
        Ok(Linear::from_in_out(&self.tensor(name, &[input, out])?, out, input, bias))
    }

    /// Stacks the matrices `NAME.weight` `[rows, input]` of all parts `(NAME, rows)` into one, and
    /// their biases, which either all or none of them have.
    pub fn stacked(&mut self, parts: &[(String, usize)], input: usize) -> Result<Linear> {
        let out: usize = parts.iter().map(|p| p.1).sum();
        let mut weight = Vec::with_capacity(out * input);
        let mut bias = Vec::new();
        for (name, rows) in parts {
            weight.extend(self.weight(name, *rows, input)?);
            bias.extend(self.optional(&format!("{name}.bias"), &[*rows])?.unwrap_or_default());
        }
        if !bias.is_empty() && bias.len() != out {
            let name = format!("{}.bias", parts[0].0);
            return Err(Error::model(
                self.source.path(),
                name,
                "some of the biases of one block are missing",
            ));
        }
        Ok(Linear {
            matrix: Arc::new(PackedMatrix::new(&weight, out, input)),
            bias: (!bias.is_empty()).then_some(bias),
        })
    }

    /// Loads `NAME.weight`, `[out, input]`, and `NAME.bias` if there is one.
    pub fn linear(&mut self, name: String, out: usize, input: usize) -> Result<Linear> {
        self.stacked(&[(name, out)], input)
    }

    /// Loads a normalisation of the family's kind.
    pub fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        let bias = match self.config.norm {
            NormKind::Layer => self.tensor(&format!("{name}.bias"), &[width])?,
            NormKind::Rms => Vec::new(),
        };
        let weight = weight.into_iter().map(|w| w + self.names.norm_offset).collect();
        Ok(Norm { kind: self.config.norm, weight, bias, eps: self.config.norm_eps })
    }

    /// Loads the normalisation `PREFIX.NAME` if `wanted`.
    pub fn norm_if(
        &mut self,
        wanted: bool,
        prefix: &str,
        name: &str,
        width: usize,
    ) -> Result<Option<Norm>> {
        wanted.then(|| self.norm(&format!("{prefix}.{name}"), width)).transpose()
    }

    /// Returns the factor of the epsilon of the norms of a layer. RWKV-4 halves the residual stream
    /// after every `rescale_every` layers, and what is added to it from there on; the norms that
    /// read it give the same with the epsilon multiplied by the square of the factor.
    pub fn rescaling(&self, layer: usize) -> f64 {
        let every = self.config.rwkv.as_ref().map_or(0, |r| r.rescale_every);
        4f64.powi(layer.checked_div(every).unwrap_or(0) as i32)
    }
}
