//! Detectors: observations of a trial, its baseline and its controls become a verdict.
//!
//! A score means nothing by itself: every verdict carries the scores that matched controls got
//! under the same conditions, and the threshold is read off them. An oracle is one file in
//! `detectors/` and one line in its registry.

pub mod controls;
pub mod detectors;
mod interface;
pub mod judge;
mod other_keys;
mod other_splits;
mod request;
mod verdict;

pub use detectors::OracleKind;
pub use interface::Oracle;
pub use judge::{Judge, ModelJudge};
pub use request::{baseline_request, request};
pub use verdict::{LEAST_CONTROLS, Verdict, margin_among_controls, threshold, threshold_above};
