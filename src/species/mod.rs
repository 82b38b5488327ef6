//! Kinds of glitch: what findings have in common, so that a thousand twins are one finding.
//!
//! A [`Descriptor`] is the kind of a finding, told from its edits and its oracle alone: it costs
//! nothing, so that a campaign can ask before it follows a raw finding up. A [`Species`] is the
//! cases of one kind that break the model in the same way (their deficits, where these were
//! measured), with the case that shows it best.

mod descriptor;
mod group;
mod ignore;
mod profile;

pub use descriptor::{Block, Descriptor, LesionClass, Place, TokenClass};
pub use group::{Species, group};
pub use ignore::{IgnoreList, Ignored};
