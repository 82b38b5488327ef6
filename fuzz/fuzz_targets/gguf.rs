//! GGUF files: metadata, tokenizer, tensor table, tensors.
#![no_main]

mod checked;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checked::load("model.gguf", data, &[], false));
