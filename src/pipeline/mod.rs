//! From a trial that fails to a case: confirm it alone, minimize it, explain what is left.
//!
//! Everything that makes cases goes through [`FollowUp::run`]: a campaign's raw findings, the
//! suffixes of a search, the proposals of a sweep. Nothing becomes a case there that does not fail
//! when it runs alone; only a case written by hand ([`case_by_hand`]) may say that its trial does
//! not fail.

mod by_hand;
mod explain;
mod finding;
mod follow_up;
mod proposals;
mod suffixes;
mod title;

pub use by_hand::{Judgement, case_by_hand, parse_edit};
pub use explain::{
    Attribution, Explainer, ModelExplainer, attribute_replaced_tokens, describe,
    localize_against_controls,
};
pub use finding::{Finding, signature};
pub use follow_up::{Explanation, FollowUp, Followed, Steps, confirmation_seed};
pub use proposals::Proposals;
pub use suffixes::{SearchFollowUp, cases_of_search};
