//! `config.json` of a Hugging Face folder.
#![no_main]

mod checked;

use glitch::model::Config;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::from_json("config.json", text) {
        Ok(config) => drop(config.identity()),
        Err(error) => checked::refusal(&error),
    }
});
