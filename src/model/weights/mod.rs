//! The weights of a decoder, read from any source of named tensors and packed for multiplication.

mod loader;

use std::sync::Arc;

pub use loader::Loader;

use super::arithmetic::linear::PackedMatrix;
use super::config::{Config, NormKind};
use super::families;
use super::formats::Source;
use super::layers::Layer;
use crate::error::{Error, Result};

/// A linear layer, `y = x W^T + b`.
#[derive(Clone)]
pub struct Linear {
    /// `W`, `[out, in]`.
    pub matrix: Arc<PackedMatrix>,
    /// `b`, `[out]`.
    pub bias: Option<Vec<f32>>,
}

/// A normalisation of vectors.
#[derive(Debug, Clone)]
pub struct Norm {
    /// The function.
    pub kind: NormKind,
    /// `[width]`.
    pub weight: Vec<f32>,
    /// `[width]` for [`NormKind::Layer`]; empty otherwise.
    pub bias: Vec<f32>,
    /// Constant that is added to the mean square.
    pub eps: f64,
}
/// All tensors of a decoder.
pub struct Weights {
    /// Embeddings, `[vocab, d_model]`; also the unembedding if they are tied.
    pub embed: Arc<PackedMatrix>,
    /// Learned position embeddings, `[max_position_embeddings, d_model]`.
    pub positions: Option<Vec<f32>>,
    /// Normalisation of the embeddings: `ln0` of RWKV.
    pub embed_norm: Option<Norm>,
    /// The layers, from the bottom of the stack.
    pub layers: Vec<Layer>,
    /// Normalisation before the unembedding.
    pub norm: Norm,
    /// Unembedding, `[vocab, d_model]`.
    pub head: Linear,
}
impl Linear {
    /// Packs a matrix that is stored as `[in, out]`.
    pub fn from_in_out(values: &[f32], out: usize, input: usize, bias: Option<Vec<f32>>) -> Self {
        Self { matrix: Arc::new(PackedMatrix::new(&transposed(values, out), out, input)), bias }
    }

    /// Returns the number of parameters.
    pub fn parameters(&self) -> usize {
        self.matrix.out() * self.matrix.in_() + self.bias.as_ref().map_or(0, Vec::len)
    }
}

impl Norm {
    /// Returns the number of parameters.
    pub fn parameters(&self) -> usize {
        self.weight.len() + self.bias.len()
    }
}
/// Transposes `[n, out]` to `[out, n]`.
fn transposed(values: &[f32], out: usize) -> Vec<f32> {
    let n = values.len() / out.max(1);
    let mut rows = vec![0f32; values.len()];
    for (i, column) in values.chunks_exact(out.max(1)).enumerate() {
        column.iter().enumerate().for_each(|(o, v)| rows[o * n + i] = *v);
    }
    rows
}
impl Weights {
    /// Reads every tensor the configuration asks for, checking shape and finiteness of each.
    ///
    /// # Errors
    /// [`Error::Model`] naming the tensor that is missing, of another shape, or not finite.
    pub fn load(config: &Config, source: &mut dyn Source) -> Result<Self> {
        let (d, vocabulary) = (config.hidden_size, config.vocab_size);
        let family = families::find(&config.model_type).ok_or_else(|| {
            Error::model(source.path(), "model_type", "no family of this name is known here")
        })?;
        let mut loader = Loader { source, config, names: &family.names };
        let table = loader.tensor(&format!("{}.weight", loader.names.embed), &[vocabulary, d])?;
        let embed = Arc::new(PackedMatrix::new(&table, vocabulary, d));
        drop(table);
        let positions = match loader.names.positions {
            Some(name) => Some(
                loader.tensor(&format!("{name}.weight"), &[config.max_position_embeddings, d])?,
            ),
            None => None,
        };
        let embed_norm = loader.norm_if(
            !loader.names.embed_norm.is_empty(),
            loader.names.layers,
            loader.names.embed_norm,
            d,
        )?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(&mut loader, i))
            .collect::<Result<_>>()?;
        let mut norm = loader.norm(loader.names.norm, d)?;
        if config.rwkv.as_ref().is_some_and(|rwkv| rwkv.version == 4) {
            // Not the `layer_norm_epsilon` of the configuration.
            norm.eps = 1e-5 * loader.rescaling(config.num_hidden_layers);
        }
        let head = if config.tie_word_embeddings {
            Linear { matrix: embed.clone(), bias: None }
        } else {
            let weight =
                loader.tensor(&format!("{}.weight", loader.names.head), &[vocabulary, d])?;
            Linear { matrix: Arc::new(PackedMatrix::new(&weight, vocabulary, d)), bias: None }
        };
        Ok(Self { embed, positions, embed_norm, layers, norm, head })
    }

    /// Returns the number of parameters; tied embeddings are counted once.
    pub fn parameters(&self, config: &Config) -> usize {
        let head = if config.tie_word_embeddings { 0 } else { self.head.parameters() };
        let positions = self.positions.as_ref().map_or(0, Vec::len);
        let layers: usize = self.layers.iter().map(|layer| layer.parameters(config)).sum();
        let positions = positions + self.embed_norm.as_ref().map_or(0, Norm::parameters);
        config.vocab_size * config.hidden_size + positions + layers + self.norm.parameters() + head
    }
}
