//! Cases of `glitch sweep insert --cases DIR`.

use std::path::Path;

use super::output;
use crate::case::Case;
use crate::edit::Trial;
use crate::error::Result;
use crate::evaluate::{ModelEvaluator, TwoModels};
use crate::oracle::OracleKind;
use crate::pipeline::Proposals;
use crate::replicate::NewPrompts;
use crate::text::escape;
use crate::vocabulary::Vocabulary;

/// Prompts in which a proposal is tried until it is confirmed in one.
const TRIED: usize = 4;

/// Where the cases go, and how the proposals are judged.
pub struct InsertCases<'a> {
    /// The folder; `None`: no cases are made.
    pub dir: Option<&'a Path>,
    /// The oracle.
    pub oracle: OracleKind,
    /// Both models, where there are two.
    pub against: Option<&'a TwoModels<'a, 'a>>,
    /// Seed of the controls.
    pub seed: u64,
    /// The prompts of the sweep.
    pub used: &'a [Vec<u32>],
    /// Prints nothing.
    pub quiet: bool,
}

impl InsertCases<'_> {
    /// Follows up proposals, trials in several prompts each, and writes a case of each that is
    /// confirmed. A case that is there already is left as it is.
    pub fn write(
        &self,
        evaluator: &ModelEvaluator,
        mut proposals: Vec<Vec<Trial>>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Case>> {
        let Some(dir) = self.dir else { return Ok(Vec::new()) };
        let model = evaluator.model;
        let vocabulary = Vocabulary::of(model);
        let new_prompts = NewPrompts::new(model, &vocabulary, &[])?.without(self.used);
        proposals.iter_mut().for_each(|trials| trials.truncate(TRIED));
        let follow_up = Proposals {
            oracle: self.oracle,
            sweep: "insert",
            seed: self.seed,
            against: self.against,
            new_prompts: &new_prompts,
            stop,
        };
        let bar = output::Progress::bar(proposals.len() as u64, "cases");
        let mut cases = Vec::new();
        follow_up.follow_up(evaluator, &proposals, &mut |case| {
            let path = dir.join(format!("{}.json", case.id));
            let there = path.exists();
            if !there {
                case.write_new(dir, false)?;
            }
            bar.inc(1);
            if !self.quiet {
                let left = if there { "  (was there already, left as it is)" } else { "" };
                let path = escape(&path.display().to_string());
                output::line(format!("{path}  {}{left}", escape(&case.comment.title)));
            }
            cases.push(case);
            Ok(())
        })?;
        bar.finish_and_clear();
        Ok(cases)
    }
}
