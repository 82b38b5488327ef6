//! The weights of a decoder, packed for multiplication, assembled from any source of named tensors.

use std::sync::Arc;

use super::config::{Config, Mixer, NormKind, QkNorm};
use super::latent::LatentProjection;
use super::linear::PackedMatrix;
use super::mamba::Mamba;
use super::names::{Names, Qkv, names};
use super::rwkv::{ChannelMix, TimeMix};
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

/// A normalisation over a width.
#[derive(Debug, Clone)]
pub struct Norm {
    pub kind: NormKind,
    pub weight: Vec<f32>,
    /// Of [`NormKind::Layer`]; empty otherwise.
    pub bias: Vec<f32>,
    pub eps: f64,
}

/// One layer.
pub struct Layer {
    /// Before the mixer.
    pub attention_norm: Option<Norm>,
    pub mixer: MixerWeights,
    pub attention_post_norm: Option<Norm>,
    pub mlp_norm: Option<Norm>,
    /// Mamba has none.
    pub mlp: Option<Mlp>,
    pub mlp_post_norm: Option<Norm>,
}

/// What mixes the positions in a layer.
pub enum MixerWeights {
    Attention(Attention),
    Ssm(Box<Mamba>),
    TimeMix(Box<TimeMix>),
}

/// An attention block.
pub struct Attention {
    pub qkv: Projection,
    /// `[head_dim]`, or the width of all heads.
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub o: Linear,
}

/// How queries, keys and values are made.
pub enum Projection {
    /// By one matrix (rows in this order): fewer, wider products.
    Stacked(Linear),
    Latent(Box<LatentProjection>),
}

/// What a layer has besides its mixer.
pub enum Mlp {
    Dense(Dense),
    Sparse(Sparse),
    ChannelMix(ChannelMix),
}

/// An MLP. Where it is gated, gate and up share a matrix, gate first.
pub struct Dense {
    pub up: Linear,
    pub down: Linear,
}

/// A mixture of experts.
pub struct Sparse {
    /// `[num_experts, d_model]`.
    pub router: Linear,
    pub experts: Vec<Dense>,
    pub shared: Option<Shared>,
}

/// An expert that every token goes through, times the sigmoid of its gate where it has one.
pub struct Shared {
    pub mlp: Dense,
    /// `[1, d_model]`.
    pub gate: Option<Linear>,
}

pub struct Weights {
    /// `[vocab, d_model]`; also the head when tied.
    pub embed: Arc<PackedMatrix>,
    /// `[max_position_embeddings, d_model]`, where positions are learned.
    pub positions: Option<Vec<f32>>,
    /// Of the embeddings: RWKV's `ln0`.
    pub embed_norm: Option<Norm>,
    pub layers: Vec<Layer>,
    pub norm: Norm,
    pub head: Linear,
}

impl Dense {
    fn parameters(&self) -> usize {
        self.up.parameters() + self.down.parameters()
    }
}

impl Linear {
    /// Of a matrix `[in, out]`.
    pub(super) fn turned(values: &[f32], out: usize, input: usize, bias: Option<Vec<f32>>) -> Self {
        Self { matrix: Arc::new(PackedMatrix::new(&transposed(values, out), out, input)), bias }
    }

    pub(super) fn parameters(&self) -> usize {
        self.matrix.out() * self.matrix.in_() + self.bias.as_ref().map_or(0, Vec::len)
    }
}

impl Norm {
    fn parameters(&self) -> usize {
        self.weight.len() + self.bias.len()
    }
}

impl Layer {
    /// The packed matrix that holds `matrix`, and the first of its rows there; `None` where the
    /// layer has no such matrix.
    pub fn locate(&self, matrix: Matrix, config: &Config) -> Option<(&Linear, usize)> {
        let (q, kv) = (config.q_width(), config.kv_width());
        if let (
            MixerWeights::Attention(Attention { qkv: Projection::Stacked(qkv), .. }),
            Some(first),
        ) = (
            &self.mixer,
            match matrix {
                Matrix::Q => Some(0),
                Matrix::K => Some(q),
                Matrix::V => Some(q + kv),
                _ => None,
            },
        ) {
            return Some((qkv, first));
        }
        match (&self.mixer, matrix) {
            (MixerWeights::Attention(a), Matrix::O) => return Some((&a.o, 0)),
            (MixerWeights::Ssm(m), Matrix::SsmIn) => return Some((&m.in_proj, 0)),
            (MixerWeights::Ssm(m), Matrix::SsmX) => return m.x_proj.as_ref().map(|x| (x, 0)),
            (MixerWeights::Ssm(m), Matrix::SsmDt) => return m.dt_proj.as_ref().map(|dt| (dt, 0)),
            (MixerWeights::Ssm(m), Matrix::SsmOut) => return Some((&m.out_proj, 0)),
            (MixerWeights::TimeMix(t), Matrix::Receptance) => return Some((&t.receptance, 0)),
            (MixerWeights::TimeMix(t), Matrix::Key) => return Some((&t.key, 0)),
            (MixerWeights::TimeMix(t), Matrix::Value) => return Some((&t.value, 0)),
            (MixerWeights::TimeMix(t), Matrix::TimeGate) => return t.gate.as_ref().map(|g| (g, 0)),
            (MixerWeights::TimeMix(t), Matrix::TimeOut) => return Some((&t.output, 0)),
            _ => {}
        }
        match (self.mlp.as_ref()?, matrix) {
            (Mlp::Dense(d), Matrix::Gate) => config.gated_mlp.then_some((&d.up, 0)),
            (Mlp::Dense(d), Matrix::Up) => {
                Some((&d.up, if config.gated_mlp { config.intermediate_size } else { 0 }))
            }
            (Mlp::Dense(d), Matrix::Down) => Some((&d.down, 0)),
            (Mlp::ChannelMix(c), Matrix::ChannelKey) => Some((&c.key, 0)),
            (Mlp::ChannelMix(c), Matrix::ChannelValue) => Some((&c.value, 0)),
            (Mlp::ChannelMix(c), Matrix::ChannelReceptance) => {
                c.receptance.as_ref().map(|r| (r, 0))
            }
            _ => None,
        }
    }

    fn parameters(&self, config: &Config) -> usize {
        let norms =
            [&self.attention_norm, &self.attention_post_norm, &self.mlp_norm, &self.mlp_post_norm];
        let mixer = match &self.mixer {
            MixerWeights::Attention(a) => {
                let norms = [&a.q_norm, &a.k_norm]
                    .into_iter()
                    .flatten()
                    .map(Norm::parameters)
                    .sum::<usize>();
                let qkv = match &a.qkv {
                    Projection::Stacked(qkv) => qkv.parameters(),
                    Projection::Latent(latent) => latent.parameters(config),
                };
                qkv + a.o.parameters() + norms
            }
            MixerWeights::Ssm(mamba) => mamba.parameters(),
            MixerWeights::TimeMix(time_mix) => time_mix.parameters(),
        };
        let mlp = match &self.mlp {
            None => 0,
            Some(Mlp::Dense(dense)) => dense.parameters(),
            Some(Mlp::Sparse(sparse)) => {
                let shared = sparse.shared.as_ref().map_or(0, |s| {
                    s.mlp.parameters() + s.gate.as_ref().map_or(0, Linear::parameters)
                });
                sparse.router.parameters()
                    + sparse.experts.iter().map(Dense::parameters).sum::<usize>()
                    + shared
            }
            Some(Mlp::ChannelMix(channel_mix)) => channel_mix.parameters(),
        };
        norms.into_iter().flatten().map(Norm::parameters).sum::<usize>() + mixer + mlp
    }
}

/// Columns as rows: `[n, out]` to `[out, n]`.
fn transposed(values: &[f32], out: usize) -> Vec<f32> {
    let n = values.len() / out.max(1);
    let mut rows = vec![0f32; values.len()];
    for (i, column) in values.chunks_exact(out.max(1)).enumerate() {
        column.iter().enumerate().for_each(|(o, v)| rows[o * n + i] = *v);
    }
    rows
}

/// Takes tensors from a source by the names of a family.
pub(super) struct Loader<'a> {
    source: &'a mut dyn Source,
    pub config: &'a Config,
    names: Names,
}

impl Loader<'_> {
    /// The name a tensor has in this source: checkpoints of a bare decoder leave out the name of
    /// the model around it, those of a model with more than one tower add one.
    fn resolve(&self, name: &str) -> Option<String> {
        let bare = name.split_once('.').map(|(_, rest)| rest.to_owned());
        let inside = format!("language_model.{name}");
        [Some(name.to_owned()), bare, Some(inside)]
            .into_iter()
            .flatten()
            .find(|name| self.source.shape(name).is_some())
    }

    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
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
        if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::model(
                self.source.path(),
                name,
                format!("value {bad} is not finite"),
            ));
        }
        Ok(values)
    }

    pub(super) fn optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        self.resolve(name).is_some().then(|| self.take(name, shape)).transpose()
    }

    /// A weight as `[out, in]`, whichever way the family keeps it.
    fn weight(&mut self, name: &str, out: usize, input: usize) -> Result<Vec<f32>> {
        let name = format!("{name}.weight");
        if !self.names.transposed {
            return self.take(&name, &[out, input]);
        }
        Ok(transposed(&self.take(&name, &[input, out])?, out))
    }

    /// A vector, which some checkpoints keep as `[1, 1, width]`.
    pub(super) fn vector(&mut self, name: &str, width: usize) -> Result<Vec<f32>> {
        let kept = self.resolve(name).and_then(|name| self.source.shape(&name));
        let shape: &[usize] =
            if kept.is_some_and(|s| s.len() == 3) { &[1, 1, width] } else { &[width] };
        self.take(name, shape)
    }

    /// How many columns a matrix has.
    pub(super) fn columns(&mut self, name: &str) -> Result<usize> {
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

    /// A matrix that is kept as `[in, out]`.
    pub(super) fn turned(
        &mut self,
        name: &str,
        out: usize,
        input: usize,
        bias: Option<Vec<f32>>,
    ) -> Result<Linear> {
        Ok(Linear::turned(&self.take(name, &[input, out])?, out, input, bias))
    }

    /// Stacks `NAME.weight` `[out, input]` of every part, and their biases if the first has one.
    fn stacked(&mut self, parts: &[(String, usize)], input: usize) -> Result<Linear> {
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

    pub(super) fn linear(&mut self, name: String, out: usize, input: usize) -> Result<Linear> {
        self.stacked(&[(name, out)], input)
    }

    /// A normalisation of the family's kind.
    pub(super) fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        let weight = self.take(&format!("{name}.weight"), &[width])?;
        let bias = match self.config.norm {
            NormKind::Layer => self.take(&format!("{name}.bias"), &[width])?,
            NormKind::Rms => Vec::new(),
        };
        let weight = weight.into_iter().map(|w| w + self.names.norm_offset).collect();
        Ok(Norm { kind: self.config.norm, weight, bias, eps: self.config.norm_eps })
    }

    fn norm_if(
        &mut self,
        wanted: bool,
        prefix: &str,
        name: &str,
        width: usize,
    ) -> Result<Option<Norm>> {
        wanted.then(|| self.norm(&format!("{prefix}.{name}"), width)).transpose()
    }

    fn qkv(&mut self, prefix: &str) -> Result<Linear> {
        let (config, d) = (self.config, self.config.hidden_size);
        let (q, kv, dim) = (config.q_width(), config.kv_width(), config.head_dim);
        match self.names.qkv {
            Qkv::Separate(names) => {
                let parts: Vec<_> = names
                    .iter()
                    .zip([q, kv, kv])
                    .map(|(n, w)| (format!("{prefix}.{n}"), w))
                    .collect();
                self.stacked(&parts, d)
            }
            Qkv::Stacked(name) => self.linear(format!("{prefix}.{name}"), q + 2 * kv, d),
            Qkv::ByHead(name) => {
                let name = format!("{prefix}.{name}");
                let weight = self.weight(&name, 3 * q, d)?;
                let bias = self.optional(&format!("{name}.bias"), &[3 * q])?;
                // `[heads, 3, head_dim, ..]` -> `[3, heads, head_dim, ..]`.
                let regroup = |values: &[f32], width: usize| -> Vec<f32> {
                    let part = |which: usize, head: usize| {
                        &values[(head * 3 + which) * dim * width..][..dim * width]
                    };
                    (0..3)
                        .flat_map(|w| (0..q / dim).flat_map(move |h| part(w, h).iter().copied()))
                        .collect()
                };
                let matrix = Arc::new(PackedMatrix::new(&regroup(&weight, d), 3 * q, d));
                Ok(Linear { matrix, bias: bias.map(|b| regroup(&b, 1)) })
            }
        }
    }

    fn dense(&mut self, up: &[(String, usize)], down: String, width: usize) -> Result<Dense> {
        let d = self.config.hidden_size;
        Ok(Dense { up: self.stacked(up, d)?, down: self.linear(down, d, width)? })
    }

    /// A gated MLP of Llama's names under `prefix`.
    fn expert(&mut self, prefix: &str, [gate, up, down]: [&str; 3], width: usize) -> Result<Dense> {
        let up = [(format!("{prefix}.{gate}"), width), (format!("{prefix}.{up}"), width)];
        self.dense(&up, format!("{prefix}.{down}"), width)
    }

    fn mlp(&mut self, prefix: &str, layer: usize) -> Result<Mlp> {
        let (config, d) = (self.config, self.config.hidden_size);
        if let Some(rwkv) = &config.rwkv {
            return ChannelMix::load(self, prefix, config.intermediate_size, rwkv)
                .map(Mlp::ChannelMix);
        }
        let Some(experts) = config.experts.as_ref().filter(|_| config.is_sparse(layer)) else {
            let width = config.intermediate_size;
            let names = self.names.up;
            // One tensor holds both halves of a gated MLP in some families.
            let rows = if config.gated_mlp { 2 * width / names.len() } else { width };
            let up: Vec<_> = names.iter().map(|n| (format!("{prefix}.{n}"), rows)).collect();
            let down = format!("{prefix}.{}", self.names.down);
            return self.dense(&up, down, width).map(Mlp::Dense);
        };
        let router =
            self.linear(format!("{prefix}.{}", self.names.router), experts.num_experts, d)?;
        let (folder, names) = (format!("{prefix}.{}", self.names.experts), self.names.expert);
        let all = (0..experts.num_experts)
            .map(|e| self.expert(&format!("{folder}.{e}"), names, experts.moe_intermediate_size))
            .collect::<Result<_>>()?;
        let shared = match experts.shared_intermediate_size {
            0 => None,
            width => Some(Shared {
                mlp: self.expert(&format!("{prefix}.{}", self.names.shared), names, width)?,
                gate: match experts.shared_gate {
                    true => Some(self.linear(format!("{prefix}.mlp.shared_expert_gate"), 1, d)?),
                    false => None,
                },
            }),
        };
        Ok(Mlp::Sparse(Sparse { router, experts: all, shared }))
    }

    fn layer(&mut self, i: usize) -> Result<Layer> {
        let (config, d) = (self.config, self.config.hidden_size);
        let prefix = format!("{}.{i}", self.names.layers);
        let Names { attention_norm, attention_post_norm, mlp_norm, mlp_post_norm, o, .. } =
            self.names;
        let (before, after) = (config.residual.before(), config.residual.after());
        let mut layer = Layer {
            attention_norm: self.norm_if(before, &prefix, attention_norm, d)?,
            mixer: self.mixer(&prefix, i, o)?,
            attention_post_norm: self.norm_if(after, &prefix, attention_post_norm, d)?,
            mlp_norm: self.norm_if(before && config.has_mlp(), &prefix, mlp_norm, d)?,
            mlp: if config.has_mlp() { Some(self.mlp(&prefix, i)?) } else { None },
            mlp_post_norm: self.norm_if(after && config.has_mlp(), &prefix, mlp_post_norm, d)?,
        };
        for norm in [&mut layer.attention_norm, &mut layer.mlp_norm].into_iter().flatten() {
            norm.eps *= self.rescaling(i);
        }
        Ok(layer)
    }

    fn mixer(&mut self, prefix: &str, i: usize, o: &str) -> Result<MixerWeights> {
        let (config, d) = (self.config, self.config.hidden_size);
        match (config.mixers[i], &config.ssm, &config.rwkv) {
            (Mixer::Ssm, Some(ssm), _) => {
                let prefix = format!("{prefix}.{}", self.names.ssm);
                return Ok(MixerWeights::Ssm(Box::new(Mamba::load(self, &prefix, ssm)?)));
            }
            (Mixer::TimeMix, _, Some(rwkv)) => {
                return Ok(MixerWeights::TimeMix(Box::new(TimeMix::load(self, prefix, i, rwkv)?)));
            }
            _ => {}
        }
        let (q, k) = match config.qk_norm {
            QkNorm::Off => (0, 0),
            QkNorm::Head => (config.head_dim, config.head_dim),
            QkNorm::Full => (config.q_width(), config.kv_width()),
        };
        Ok(MixerWeights::Attention(Attention {
            qkv: match &config.latent {
                Some(latent) => {
                    Projection::Latent(Box::new(LatentProjection::load(self, prefix, latent)?))
                }
                None => Projection::Stacked(self.qkv(prefix)?),
            },
            q_norm: self.norm_if(q > 0, prefix, "self_attn.q_norm", q)?,
            k_norm: self.norm_if(k > 0, prefix, "self_attn.k_norm", k)?,
            o: self.linear(format!("{prefix}.{o}"), d, config.z_width(i))?,
        }))
    }

    /// RWKV-4 halves the residual stream after every so-manieth layer, and divides what is added to
    /// it from then on: the same as larger epsilons of the normalisations that read it, by the
    /// square.
    fn rescaling(&self, layer: usize) -> f64 {
        let every = self.config.rwkv.as_ref().map_or(0, |r| r.rescale_every);
        4f64.powi(layer.checked_div(every).unwrap_or(0) as i32)
    }
}

impl Weights {
    /// Reads every tensor the configuration asks for, checking shape and finiteness of each.
    ///
    /// # Errors
    /// [`Error::Model`] naming the tensor that is missing, of another shape, or not finite.
    pub fn load(config: &Config, source: &mut dyn Source) -> Result<Self> {
        let (d, vocabulary) = (config.hidden_size, config.vocab_size);
        let mut loader = Loader { source, config, names: names(&config.model_type) };
        let table = loader.take(&format!("{}.weight", loader.names.embed), &[vocabulary, d])?;
        let embed = Arc::new(PackedMatrix::new(&table, vocabulary, d));
        drop(table);
        let positions = match loader.names.positions {
            Some(name) => {
                Some(loader.take(&format!("{name}.weight"), &[config.max_position_embeddings, d])?)
            }
            None => None,
        };
        let embed_norm = loader.norm_if(
            !loader.names.embed_norm.is_empty(),
            loader.names.layers,
            loader.names.embed_norm,
            d,
        )?;
        let layers =
            (0..config.num_hidden_layers).map(|i| loader.layer(i)).collect::<Result<_>>()?;
        let mut norm = loader.norm(loader.names.norm, d)?;
        if config.model_type == "rwkv" {
            norm.eps = 1e-5 * loader.rescaling(config.num_hidden_layers); // whatever layer_norm_epsilon says
        }
        let head = if config.tie_word_embeddings {
            Linear { matrix: embed.clone(), bias: None }
        } else {
            let weight = loader.take(&format!("{}.weight", loader.names.head), &[vocabulary, d])?;
            Linear { matrix: Arc::new(PackedMatrix::new(&weight, vocabulary, d)), bias: None }
        };
        Ok(Self { embed, positions, embed_norm, layers, norm, head })
    }

    /// Number of parameters, tied embeddings counted once.
    pub fn parameters(&self, config: &Config) -> usize {
        let head = if config.tie_word_embeddings { 0 } else { self.head.parameters() };
        let positions = self.positions.as_ref().map_or(0, Vec::len);
        let layers: usize = self.layers.iter().map(|layer| layer.parameters(config)).sum();
        let positions = positions + self.embed_norm.as_ref().map_or(0, Norm::parameters);
        config.vocab_size * config.hidden_size + positions + layers + self.norm.parameters() + head
    }
}
