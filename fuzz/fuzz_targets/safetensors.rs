//! The header and the tensors of `model.safetensors`, beside a fixed configuration.
#![no_main]

mod checked;

const CONFIG: &[u8] = include_bytes!("../../tests/fixtures/llama/config.json");

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    checked::load("model.safetensors", data, &[("config.json", CONFIG)], true);
});
