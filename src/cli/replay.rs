//! `glitch replay CASE|DIR...`: are the glitches still what they were?

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::{MODEL_HELP, exists};
use super::output::figure;
use super::{exit, output};
use crate::case::{Case, Expectation};
use crate::corpus::{self, ModelUnderTest, Outcome, Status};
use crate::error::{Error, Result};
use crate::text::{escape, fit};

/// Run cases again, on the model they were made on, and compare.
///
/// Says `reproduced`, `gone` or `changed` for each. A model that is not where it was when the case
/// was made is looked for near the case and near the current folder, by its fingerprint.
///
/// Exit 0 when every case is as it expects itself to be; 100 when one is not or cannot be read; 3
/// when a case's model cannot be loaded; 103 when it is not the model the case was made on and
/// --model did not say so. Where several apply, the first of these counts. Exit 4 when there is no
/// case at all.
#[derive(clap::Args)]
pub struct Args {
    /// Case files, or folders that hold them at any depth, as those that `glitch fuzz` writes.
    #[arg(required = true, value_name = "CASE|DIR")]
    paths: Vec<PathBuf>,
    #[arg(
        long,
        help = format!("Replay on this model, whichever one the cases were made on. {MODEL_HELP}"),
    )]
    model: Option<String>,
    /// Judge each case again under N seeds of controls that did not make its verdict, and say under
    /// how many it holds.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    control_seeds: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Columns that a title may take.
const TITLE: usize = 100;

/// Cases of one model, in the order met.
type Group = Vec<(PathBuf, Case)>;

#[derive(Default)]
struct Tally {
    json: bool,
    rows: Vec<Value>,
    reproduced: usize,
    gone: usize,
    changed: usize,
    /// Replayed, and not as the case expects.
    unexpected: usize,
    /// Not cases, or not cases of this model.
    bad: usize,
    unloaded: usize,
    other_model: usize,
}

pub fn run(args: Args) -> Result<u8> {
    args.paths.iter().try_for_each(|path| exists(path))?;
    let mut tally = Tally { json: args.json, ..Tally::default() };
    let mut groups: Vec<Group> = Vec::new();
    let mut found = 0;
    for path in &args.paths {
        for entry in corpus::entries(path)? {
            found += 1;
            match entry.case {
                Ok(case) => {
                    let together = |group: &&mut Group| {
                        let model = &group[0].1.model;
                        args.model.is_some()
                            || model.name == case.model.name
                                && model.fingerprint == case.model.fingerprint
                    };
                    match groups.iter_mut().find(together) {
                        Some(group) => group.push((entry.path, case)),
                        None => groups.push(vec![(entry.path, case)]),
                    }
                }
                Err(error) => tally.failed(&entry.path, &error),
            }
        }
    }
    for cases in groups {
        let near: Vec<&Path> = cases.iter().map(|(path, _)| path.as_path()).collect();
        let model = match &args.model {
            Some(spec) => ModelUnderTest::load(spec),
            None => corpus::load_model(&cases[0].1.model, &near).map(ModelUnderTest::new),
        };
        let model = match model {
            Ok(model) => model,
            // One line for each case: none of them was looked at.
            Err(error) => {
                cases.iter().for_each(|(path, _)| tally.failed(path, &error));
                continue;
            }
        };
        let evaluator = model.evaluator();
        for (path, case) in cases {
            let held = |seeds| -> Result<(u64, u64)> {
                let held = corpus::holds_under(&path, &case, &model, &evaluator, seeds)?;
                Ok((held, seeds))
            };
            let replayed = corpus::replay(&path, &case, &model, &evaluator, args.model.is_some())
                .and_then(|outcome| Ok((outcome, args.control_seeds.map(held).transpose()?)));
            match replayed {
                Ok((outcome, held)) => tally.replayed(&path, &case, &outcome, held),
                Err(error) => tally.failed(&path, &error),
            }
        }
    }
    tally.print()?;
    Ok(if found == 0 { output::no_cases() } else { tally.exit() })
}

impl Tally {
    /// A case that was replayed; `held` is under how many seeds of controls it holds, of how many.
    fn replayed(&mut self, path: &Path, case: &Case, outcome: &Outcome, held: Option<(u64, u64)>) {
        match outcome.status {
            Status::Reproduced => self.reproduced += 1,
            Status::Gone => self.gone += 1,
            Status::Changed => self.changed += 1,
        }
        let as_expected = outcome.as_expected(case.expectation);
        self.unexpected += usize::from(!as_expected);
        let (then, now) = (&case.verdict, &outcome.verdict);
        if self.json {
            let mut row = json!({
                "path": path.display().to_string(), "id": case.id, "status": outcome.status.name(),
                "as_expected": as_expected, "expectation": case.expectation, "oracle": now.oracle,
                "score_then": then.score, "score": now.score, "threshold_then": then.threshold,
                "threshold": now.threshold,
                "margin_then": then.margin, "margin": now.margin, "noise_floor": now.noise_floor,
                "title": case.comment.title,
            });
            if let (Some((held, seeds)), Some(row)) = (held, row.as_object_mut()) {
                row.insert("control_seeds".into(), seeds.into());
                row.insert("control_seeds_held".into(), held.into());
            }
            self.rows.push(row);
            return;
        }
        let surprise = match (as_expected, case.expectation) {
            (true, _) => "",
            (false, Expectation::Reproduces) => "  NOT AS EXPECTED (reproduced)",
            (false, Expectation::Gone) => "  NOT AS EXPECTED (gone)",
        };
        let held = held.map_or(String::new(), |(held, seeds)| {
            format!("holds under {held} of {seeds} seeds of controls  ")
        });
        output::line(format!(
            "{:<10}  {}  {:<11}  score {} -> {}  threshold {}  margin {}  {held}{}{surprise}",
            outcome.status.name(),
            escape(&case.id),
            now.oracle.name(),
            figure(then.score),
            figure(now.score),
            figure(now.threshold),
            figure(now.margin),
            fit(&case.comment.title, TITLE),
        ));
    }

    /// A case that was set aside.
    fn failed(&mut self, path: &Path, error: &Error) {
        let status = match error {
            Error::Fingerprint { .. } => {
                self.other_model += 1;
                "other_model"
            }
            Error::Model { .. } => {
                self.unloaded += 1;
                "no_model"
            }
            _ => {
                self.bad += 1;
                "bad"
            }
        };
        let message = error.to_string();
        let place = path.display().to_string();
        let named =
            if message.contains(&place) { message.clone() } else { format!("{place}: {message}") };
        output::warn(format!("set aside: {named}"));
        if self.json {
            self.rows.push(
                json!({ "path": place, "status": status, "as_expected": false, "error": message }),
            );
        }
    }

    fn print(&self) -> Result<()> {
        let replayed = self.reproduced + self.gone + self.changed;
        if self.json {
            let totals = json!({
                "replayed": replayed, "reproduced": self.reproduced, "gone": self.gone,
                "changed": self.changed,
                "not_as_expected": self.unexpected, "bad": self.bad, "no_model": self.unloaded,
                "other_model": self.other_model,
            });
            return output::json(&json!({ "cases": self.rows, "totals": totals }));
        }
        let mut text = format!(
            "{replayed} replayed: {} reproduced, {} gone, {} changed; {} not as expected",
            self.reproduced, self.gone, self.changed, self.unexpected
        );
        let aside = [
            (self.bad, "bad"),
            (self.unloaded, "without their model"),
            (self.other_model, "of another model"),
        ];
        for (count, what) in aside.into_iter().filter(|(count, _)| *count > 0) {
            text.push_str(&format!(", {count} {what}"));
        }
        output::line(text);
        Ok(())
    }

    fn exit(&self) -> u8 {
        if self.unexpected + self.bad > 0 {
            exit::REGRESSION
        } else if self.unloaded > 0 {
            exit::MODEL
        } else if self.other_model > 0 {
            exit::FINGERPRINT
        } else {
            exit::OK
        }
    }
}
