//! `glitch fuzz`: runs a campaign and shows how it goes.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::campaign::config::parse_duration;
use crate::campaign::{CampaignConfig, Control, Event, Follow, Progress, Sink, Subject, Summary, Timing, run};
use crate::error::{Error, Result};

/// What runs without arguments.
const QUICK: &str = include_str!("../../fuzz/quick.toml");

/// Search for glitches: mutate prompts, embeddings and components, judge against matched controls,
/// confirm, minimise and explain what stands out.
#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// Campaign definition (TOML); without one, a minute on the built-in model.
    pub file: Option<PathBuf>,
    /// The model: a folder, a GGUF file, `builtin:NAME` or `hf:org/name`.
    #[arg(long)]
    pub model: Option<String>,
    #[arg(long)]
    pub seed: Option<u64>,
    /// Wall-clock budget: 60s, 10m, 8h.
    #[arg(long, value_parser = parse_duration)]
    pub max_time: Option<Duration>,
    /// Trials of the loop; the findings of a seed and a number of trials are always the same.
    #[arg(long)]
    pub max_evals: Option<u64>,
    /// Groups of mutators: tokens, dictionary, vocabulary, embeddings, lesions, weights.
    #[arg(long, value_delimiter = ',')]
    pub mutate: Vec<String>,
    /// Where cases, journal and report go.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// Stop at the first case, with exit code 77.
    #[arg(long)]
    pub exit_on_find: bool,
}

impl FuzzArgs {
    /// The definition with what the command line changes.
    pub fn config(&self) -> Result<CampaignConfig> {
        let mut config = match &self.file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
                CampaignConfig::parse(&text, path)?
            }
            None => CampaignConfig::parse(QUICK, Path::new("fuzz/quick.toml"))?,
        };
        if let Some(model) = &self.model {
            config.model.clone_from(model);
        }
        config.seed = self.seed.unwrap_or(config.seed);
        // A count makes a run that can be repeated; the file's clock must not cut it short.
        if self.max_evals.is_some() {
            config.max_evals = self.max_evals;
            config.max_time = None;
        }
        config.max_time = self.max_time.or(config.max_time);
        if !self.mutate.is_empty() {
            config.mutate.clone_from(&self.mutate);
        }
        if let Some(out) = &self.out {
            config.out = out.display().to_string();
        }
        config.exit_on_find |= self.exit_on_find;
        config.check().map_err(|(field, message)| Error::request(format!("--{}: {message}", field.replace('_', "-"))))?;
        Ok(config)
    }
}

/// Runs a campaign that is ready to run, with a progress line; `store` gets every event before it is
/// shown (it writes cases and the journal). The summary carries the timing.
pub fn campaign(
    config: &CampaignConfig,
    subject: &Subject,
    follow: &dyn Follow,
    store: &mut dyn FnMut(&Event) -> Result<()>,
    interrupted: &AtomicBool,
    started: Instant,
) -> Result<Summary> {
    let bar = ProgressBar::new_spinner();
    let style = "{spinner} {elapsed_precise} {msg}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let mut shown = Shown { bar, store, started, last: Progress::default() };
    let mut summary = run(config, subject, follow, &mut shown, &Control { interrupted, started })?;
    let elapsed = started.elapsed().as_secs_f64().max(1e-9);
    summary.timing = Some(Timing {
        elapsed_s: elapsed,
        evaluations_per_s: (summary.evaluations + summary.follow_up_evaluations) as f64 / elapsed,
        tokens_per_s: shown.last.tokens as f64 / elapsed,
    });
    shown.bar.finish_and_clear();
    Ok(summary)
}

struct Shown<'a> {
    bar: ProgressBar,
    store: &'a mut dyn FnMut(&Event) -> Result<()>,
    started: Instant,
    last: Progress,
}

impl Sink for Shown<'_> {
    fn event(&mut self, event: Event) -> Result<()> {
        (self.store)(&event)?;
        match event {
            Event::Round(progress) => {
                self.bar.set_message(line(&progress, self.started.elapsed().as_secs_f64()));
                self.bar.tick();
                self.last = progress;
            }
            // Text of a case comes from a model: whatever it holds must not reach the terminal raw.
            Event::Case(case) => {
                let title: String = case.comment.title.chars().flat_map(char::escape_debug).collect();
                self.bar.println(format!("{}  {}  margin {:.3}  {title}", case.id, case.verdict.oracle, case.verdict.margin));
            }
            Event::Raw { .. } | Event::Confirmed { .. } | Event::Minimised { .. } => {}
        }
        Ok(())
    }
}

fn line(progress: &Progress, elapsed: f64) -> String {
    let per_second = |count: u64| count as f64 / elapsed.max(1e-9);
    format!(
        "{} evals ({:.0}/s, {:.0} tok/s)  queue {}  behaviours {}  findings {} raw, {} confirmed, {} minimised  best {}",
        progress.evaluations,
        per_second(progress.evaluations + progress.follow_up_evaluations),
        per_second(progress.tokens),
        progress.queue,
        progress.behaviours,
        progress.raw,
        progress.confirmed,
        progress.minimised,
        progress.best_mutator,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        fuzz: FuzzArgs,
    }

    fn config(args: &[&str]) -> Result<CampaignConfig> {
        Cli::parse_from(std::iter::once(&"fuzz").chain(args)).fuzz.config()
    }

    #[test]
    fn the_command_line_changes_the_definition() {
        let quick = config(&[]).unwrap();
        assert_eq!((quick.model.as_str(), quick.max_time), ("builtin:dense", Some(Duration::from_secs(60))));
        let counted = config(&["--max-evals", "500", "--mutate", "tokens,lesions", "--seed", "7"]).unwrap();
        assert_eq!((counted.max_evals, counted.max_time, counted.seed), (Some(500), None, 7));
        assert_eq!(counted.mutate, ["tokens", "lesions"]);
        let error = config(&["--mutate", "tokns"]).unwrap_err().to_string();
        assert!(error.starts_with("--mutate: no mutator `tokns`"), "{error}");
    }
}
