//! Compares Mamba and RWKV-7 with candle-transformers on the same weights: log-probabilities after
//! 16 sequences of 128 tokens, and the time each takes, in turn.
//!
//!     cargo run --profile bench -p glitch-benches --bin candle_recurrent -- DIR [EXACT]
//!
//! DIR is a Hugging Face folder of Mamba with tied embeddings, or one of RWKV-7 as `glitch` reads
//! it. Without EXACT the two must agree within 1e-4. EXACT is a file of float64 log-probabilities
//! (`benches/exact_mamba.py DIR EXACT` writes one): ours must agree with it, and the distance of
//! both from it is printed. On `builtin:mamba` most of the difference is candle's rounding.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{mamba, rwkv_v7};
use glitch::model::batch::Row;
use glitch::model::{Forward, Model, Read};

const BATCH: usize = 16;
const LENGTH: usize = 128;
const TURNS: usize = 5;

/// A model of candle-transformers with its configuration.
enum Theirs {
    Mamba(mamba::Model, mamba::Config),
    Rwkv(rwkv_v7::Model, rwkv_v7::Config),
}

impl Theirs {
    fn load(dir: &Path, ours: &Model) -> Result<Self> {
        let c = &ours.config;
        let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)?;
        let widened =
            tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?)));
        let mut tensors: HashMap<String, Tensor> = widened.collect::<Result<_>>()?;
        match c.model_type.as_str() {
            "mamba" => {
                // candle-transformers expects the tensor names of the authors' code.
                let renamed = |name: String| {
                    name.replace("backbone.embeddings", "embedding").replace("backbone.", "")
                };
                tensors =
                    tensors.into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
                let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
                let (d_model, n_layer, vocab_size) =
                    (c.hidden_size, c.num_hidden_layers, c.vocab_size);
                let config =
                    mamba::Config { d_model, n_layer, vocab_size, pad_vocab_size_multiple: 1 };
                Ok(Self::Mamba(mamba::Model::new(&config, vars)?, config))
            }
            "rwkv7" => {
                // candle-transformers reads the shapes of the first layer's value mixing, although
                // that layer does not use it.
                for name in ["v0", "v1", "v2"] {
                    let first = format!("blocks.0.att.{name}");
                    if !tensors.contains_key(&first) {
                        let other = tensors
                            .get(&format!("blocks.1.att.{name}"))
                            .context("a model of one layer")?
                            .clone();
                        tensors.insert(first, other);
                    }
                }
                let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
                let config = rwkv_v7::Config {
                    version: rwkv_v7::ModelVersion::V7,
                    vocab_size: c.vocab_size,
                    hidden_size: c.hidden_size,
                    num_hidden_layers: c.num_hidden_layers,
                    head_size: c.rwkv.as_ref().context("no heads")?.head_dim(),
                    intermediate_size: Some(c.intermediate_size),
                    rescale_every: 0,
                };
                Ok(Self::Rwkv(rwkv_v7::Model::new(&config, vars)?, config))
            }
            other => bail!("{other} is neither mamba nor rwkv7"),
        }
    }

    /// Returns the logits after the last token of every sequence, `[batch, vocab]`.
    fn logits(&self, ids: &[Vec<u32>]) -> Result<Vec<f64>> {
        let values = |logits: Tensor| {
            Ok::<_, anyhow::Error>(logits.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?)
        };
        match self {
            Self::Mamba(model, config) => {
                // One sequence at a time: its broadcasts fail on larger batches (0.11).
                let mut all = Vec::new();
                for row in ids {
                    let mut state = mamba::State::new(1, config, DType::F32, &Device::Cpu)?;
                    let mut logits = None;
                    for id in row {
                        logits =
                            Some(model.forward(&Tensor::new(&[*id], &Device::Cpu)?, &mut state)?);
                    }
                    all.extend(values(logits.context("no tokens")?)?);
                }
                Ok(all)
            }
            Self::Rwkv(model, config) => {
                let mut all = Vec::new();
                for row in ids {
                    let mut state = rwkv_v7::State::new(config, &Device::Cpu)?;
                    all.extend(values(model.forward_seq(row, &mut state)?)?);
                }
                Ok(all)
            }
        }
    }
}

/// Returns the largest absolute difference of two tables of log-probabilities.
fn largest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Normalizes rows of `vocabulary` logits to log-probabilities.
fn log_softmax(logits: &[f64], vocabulary: usize) -> Vec<f64> {
    let rows = logits
        .chunks_exact(vocabulary)
        .map(|row| (row, row.iter().map(|x| x.exp()).sum::<f64>().ln()));
    rows.flat_map(|(row, sum)| row.iter().map(move |x| x - sum)).collect()
}

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).context("usage: candle_recurrent DIR")?;
    let ours = Model::load(&dir)?;
    let theirs = Theirs::load(Path::new(&dir), &ours)?;
    let vocabulary = ours.config.vocab_size;
    let ids: Vec<Vec<u32>> = (0..BATCH)
        .map(|b| (0..LENGTH).map(|i| (((b * LENGTH + i) * 7919) % vocabulary) as u32).collect())
        .collect();
    let exact = std::env::args().nth(2).map(std::fs::read).transpose().context("EXACT")?;
    let exact: Option<Vec<f64>> =
        exact.map(|bytes| bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect());
    let reads: Vec<Read> = (1..=BATCH)
        .map(|b| Read {
            token: b * LENGTH - 1,
            target: None,
            reference: None,
            keep: true,
            centre: false,
        })
        .collect();
    let forward = Forward {
        rows: ids.iter().map(|ids| Row::new(ids.clone())).collect(),
        ..Forward::default()
    };
    let (mut times, mut off) = ([Vec::new(), Vec::new()], [0f64; 2]);
    for turn in 0..TURNS {
        let start = Instant::now();
        let logits = theirs.logits(&ids)?;
        times[0].push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let readouts = ours.read(&ours.forward(&forward)?.residual, &reads);
        times[1].push(start.elapsed().as_secs_f64());
        let got = readouts
            .iter()
            .flat_map(|r| r.distribution.iter().flatten())
            .map(|x| f64::from(*x))
            .collect::<Vec<_>>();
        let logits = log_softmax(&logits, vocabulary);
        let right = exact.as_ref().unwrap_or(&logits);
        ensure!(got.len() == right.len(), "{} values instead of {}", got.len(), right.len());
        off = [largest(&logits, right), largest(&got, right)];
        println!("turn {turn}: theirs {:.3} s, ours {:.4} s", times[0][turn], times[1][turn]);
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let [theirs, ours] = &mut times;
    let (theirs, ours) = (median(theirs), median(ours));
    println!(
        "{BATCH} x {LENGTH} tokens: theirs {theirs:.3} s, ours {ours:.4} s (medians): {:.1} times \
        as fast",
        theirs / ours
    );
    match exact {
        Some(_) => println!(
            "largest difference of a log-probability from float64: theirs {:.1e}, ours {:.1e}",
            off[0], off[1]
        ),
        None => println!("largest difference of a log-probability: {:.1e}", off[1]),
    }
    ensure!(off[1] <= 1e-4, "the two disagree");
    Ok(())
}
