//! The weights of a decoder, packed for multiplication, assembled from any source of named tensors.

use std::sync::Arc;

use super::config::Config;
use super::linear::PackedMatrix;
use crate::edit::Matrix;
use crate::error::{Error, Result};

/// Where tensors come from, by Hugging Face names. Each is asked for once, so a source may free it.
pub trait Source {
    /// How errors name the file.
    fn path(&self) -> &str;

    /// Shape of a tensor, `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The values, widened to f32, row-major.
    fn load(&mut self, name: &str) -> Result<Vec<f32>>;
}

/// `y = x W^T + b`.
#[derive(Clone)]
pub struct Linear {
    pub matrix: Arc<PackedMatrix>,
    pub bias: Option<Vec<f32>>,
}

/// One layer. Query, key and value share a matrix (rows in this order), gate and up another: fewer,
/// wider products.
pub struct Layer {
    pub attention_norm: Vec<f32>,
    pub qkv: Linear,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub o: Linear,
    pub mlp_norm: Vec<f32>,
    pub gate_up: Linear,
    pub down: Linear,
}

pub struct Weights {
    /// `[vocab, d_model]`; also the head when tied.
    pub embed: Arc<PackedMatrix>,
    pub layers: Vec<Layer>,
    pub norm: Vec<f32>,
    pub head: Linear,
    pub rope: Vec<f32>,
}

impl Layer {
    /// The packed matrix that holds `matrix`, and the first of its rows there.
    pub fn locate(&self, matrix: Matrix, config: &Config) -> (&Linear, usize, usize) {
        let (q, kv, ff) = (config.q_width(), config.kv_width(), config.intermediate_size);
        match matrix {
            Matrix::Q => (&self.qkv, 0, q),
            Matrix::K => (&self.qkv, q, kv),
            Matrix::V => (&self.qkv, q + kv, kv),
            Matrix::O => (&self.o, 0, config.hidden_size),
            Matrix::Gate => (&self.gate_up, 0, ff),
            Matrix::Up => (&self.gate_up, ff, ff),
            Matrix::Down => (&self.down, 0, config.hidden_size),
        }
    }
}

struct Loader<'a> {
    source: &'a mut dyn Source,
}

impl Loader<'_> {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let got = self.source.shape(name).ok_or_else(|| Error::model(self.source.path(), name, "tensor is missing"))?;
        if got != shape {
            return Err(Error::model(
                self.source.path(),
                name,
                format!("expected shape {shape:?} by the configuration, got {got:?}"),
            ));
        }
        let values = self.source.load(name)?;
        if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::model(self.source.path(), name, format!("value {bad} is not finite")));
        }
        Ok(values)
    }

    fn optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        self.source.shape(name).is_some().then(|| self.take(name, shape)).transpose()
    }

    /// Stacks `prefix.NAME.weight` `[out, input]` of every part, and their biases if the first has one.
    fn stacked(&mut self, prefix: &str, parts: &[(&str, usize)], input: usize) -> Result<Linear> {
        let out: usize = parts.iter().map(|p| p.1).sum();
        let mut weight = Vec::with_capacity(out * input);
        let mut bias = Vec::new();
        for (name, rows) in parts {
            weight.extend(self.take(&format!("{prefix}.{name}.weight"), &[*rows, input])?);
            bias.extend(self.optional(&format!("{prefix}.{name}.bias"), &[*rows])?.unwrap_or_default());
        }
        if !bias.is_empty() && bias.len() != out {
            return Err(Error::model(
                self.source.path(),
                format!("{prefix}.{}.bias", parts[0].0),
                "some of the biases of one block are missing",
            ));
        }
        Ok(Linear { matrix: Arc::new(PackedMatrix::new(&weight, out, input)), bias: (!bias.is_empty()).then_some(bias) })
    }
}

impl Weights {
    /// Reads every tensor the configuration asks for, checking shape and finiteness of each.
    ///
    /// # Errors
    /// [`Error::Model`] naming the tensor that is missing, of another shape, or not finite.
    pub fn load(config: &Config, source: &mut dyn Source) -> Result<Self> {
        let d = config.hidden_size;
        let mut loader = Loader { source };
        let table = loader.take("model.embed_tokens.weight", &[config.vocab_size, d])?;
        let embed = Arc::new(PackedMatrix::new(&table, config.vocab_size, d));
        drop(table);
        let layers = (0..config.num_hidden_layers).map(|i| Self::layer(config, &mut loader, i)).collect::<Result<_>>()?;
        let norm = loader.take("model.norm.weight", &[d])?;
        let head = if config.tie_word_embeddings {
            Linear { matrix: embed.clone(), bias: None }
        } else {
            let weight = loader.take("lm_head.weight", &[config.vocab_size, d])?;
            Linear { matrix: Arc::new(PackedMatrix::new(&weight, config.vocab_size, d)), bias: None }
        };
        Ok(Self { embed, layers, norm, head, rope: config.rope_frequencies() })
    }

    fn layer(config: &Config, loader: &mut Loader, i: usize) -> Result<Layer> {
        let (d, q, kv, ff) = (config.hidden_size, config.q_width(), config.kv_width(), config.intermediate_size);
        let (attention, mlp) = (format!("model.layers.{i}.self_attn"), format!("model.layers.{i}.mlp"));
        Ok(Layer {
            attention_norm: loader.take(&format!("model.layers.{i}.input_layernorm.weight"), &[d])?,
            qkv: loader.stacked(&attention, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)], d)?,
            q_norm: loader.optional(&format!("{attention}.q_norm.weight"), &[config.head_dim])?,
            k_norm: loader.optional(&format!("{attention}.k_norm.weight"), &[config.head_dim])?,
            o: loader.stacked(&attention, &[("o_proj", d)], q)?,
            mlp_norm: loader.take(&format!("model.layers.{i}.post_attention_layernorm.weight"), &[d])?,
            gate_up: loader.stacked(&mlp, &[("gate_proj", ff), ("up_proj", ff)], d)?,
            down: loader.stacked(&mlp, &[("down_proj", d)], ff)?,
        })
    }
}
