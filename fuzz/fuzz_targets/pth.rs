//! `.pth` archives of RWKV: the zip archive and the pickle in it.
#![no_main]

mod checked;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checked::load("model.pth", data, &[], false));
