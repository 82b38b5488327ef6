//! Compares the logits of a Llama model with those of candle-transformers' own llama.
//!
//!     cargo run --profile bench -p glitch-benches --bin candle_parity -- DIR
//!
//! DIR is a Hugging Face folder of the Llama family (SmolLM2 is one) with a single
//! `model.safetensors`. Prints the largest difference after the last token of prompts of six
//! lengths, and fails if it is above 1e-4.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use glitch::model::batch::Row;
use glitch::model::{Forward, Model};

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).context("usage: candle_parity DIR")?;
    let text =
        std::fs::read_to_string(Path::new(&dir).join("config.json")).context("config.json")?;
    let config = serde_json::from_str::<LlamaConfig>(&text)?.into_config(false);
    // SAFETY: nothing writes to the file meanwhile.
    let vars = unsafe {
        candle_nn::VarBuilder::from_mmaped_safetensors(
            &[Path::new(&dir).join("model.safetensors")],
            DType::F32,
            &Device::Cpu,
        )?
    };
    let theirs = Llama::load(vars, &config)?;
    let ours = Model::load(&dir)?;
    let vocabulary = ours.config.vocab_size;
    let (mut worst, mut largest) = (0f32, 0f32);
    for length in [1, 2, 7, 33, 64, 129] {
        let ids: Vec<u32> =
            (0..length).map(|i| ((i * 7919 + length) % vocabulary) as u32).collect();
        let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu)?;
        let input = Tensor::new(ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let want: Vec<f32> = theirs.forward(&input, 0, &mut cache)?.flatten_all()?.to_vec1()?;
        let output = ours.forward(&Forward { rows: vec![Row::new(ids)], ..Forward::default() })?;
        let logits = ours.logits(&output.residual);
        let got = &logits[logits.len() - want.len()..];
        let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{length:>4} tokens: largest difference {off:.2e}");
        worst = worst.max(off);
        largest = want.iter().fold(largest, |m, x| m.max(x.abs()));
    }
    println!("largest difference {worst:.2e}, largest logit {largest:.1}");
    ensure!(worst <= 1e-4, "the two disagree");
    Ok(())
}
