//! The Llama fixtures against candle-transformers' own llama, a second implementation of the
//! format that shares no code with ours.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use glitch::model::batch::Row;
use glitch::model::{Forward, Model};

/// Largest difference of a logit; the fixtures' logits have a standard deviation of about 1.7.
const TOLERANCE: f32 = 1e-4;

/// Compares the logits after the last token of prompts of three lengths.
///
/// `llama3-rope` is left out: candle-transformers derives the head width from the model width.
#[test]
fn llama_agrees_with_candle_transformers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    for name in ["llama", "llama-tied"] {
        let dir = fixtures.join(name);
        let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let config = serde_json::from_str::<LlamaConfig>(&text).unwrap().into_config(false);
        // SAFETY: nothing writes to the fixture while the test runs.
        let vars = unsafe {
            candle_nn::VarBuilder::from_mmaped_safetensors(
                &[dir.join("model.safetensors")],
                DType::F32,
                &Device::Cpu,
            )
        };
        let theirs = Llama::load(vars.unwrap(), &config).unwrap();
        let ours = Model::load(dir.to_str().unwrap()).unwrap();
        let expected =
            candle_core::safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap();
        let prompts: Vec<Vec<u32>> =
            expected["ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap();
        for (prompt, length) in prompts.iter().zip([24, 17, 5]) {
            let prompt = &prompt[..length];
            let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            let input = Tensor::new(prompt, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let logits = theirs.forward(&input, 0, &mut cache).unwrap().flatten_all().unwrap();
            let want: Vec<f32> = logits.to_vec1().unwrap();
            let forward = Forward { rows: vec![Row::new(prompt)], ..Forward::default() };
            let got = ours.logits(&ours.forward(&forward).unwrap().residual);
            let got = &got[got.len() - want.len()..];
            let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // `f32::max` passes over NaN.
            assert!(
                off <= TOLERANCE && got.iter().all(|logit| logit.is_finite()),
                "{name}, {length} tokens: logits differ by {off}"
            );
        }
    }
}
