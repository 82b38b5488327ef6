//! `glitch sweep ...`
use crate::error::Result;

/// Sweep.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<u8> {
    Ok(super::exit::OK)
}
