//! Campaign definitions (TOML).
#![no_main]

mod checked;

use std::path::Path;

use glitch::campaign::CampaignConfig;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match CampaignConfig::parse(text, Path::new("campaign.toml")) {
        Ok(config) => drop(config.check()),
        Err(error) => checked::refusal(&error),
    }
});
