//! `glitch fuzz`: runs a campaign and shows how it goes.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::{exit, output};
use crate::campaign::config::{parse_duration, parse_oracle};
use crate::campaign::{
    CampaignConfig, Event, Progress, Record, Sink, StopSignal, Subject, Summary, Timing, run, setup,
};
use crate::error::{Error, Result};
use crate::evaluate::{ModelEvaluator, TwoModels};
use crate::model::{Model, is_named, split_difference};
use crate::mutate::Layers;
use crate::oracle::OracleKind;
use crate::pipeline::{Explainer, ModelExplainer};
use crate::storage::{self, OutputDir};
use crate::text::{fit, percent};
use crate::vocabulary::Vocabulary;
use clap::Args;

/// Search for glitches: mutate prompts, embeddings and components, judge against matched controls,
/// confirm, minimize and explain what stands out.
#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// Campaign definition (TOML), or a model; without one, a short one on the built-in
    /// model.
    #[arg(value_name = "FILE|MODEL")]
    pub file: Option<PathBuf>,
    /// The model: a folder, a GGUF file, `builtin:NAME` or `hf:org/name`.
    #[arg(long)]
    pub model: Option<String>,
    /// Compare with this model, of the same vocabulary: look for texts after which the two predict
    /// different things. Only mutators of text are used.
    #[arg(long, value_name = "MODEL")]
    pub against: Option<String>,
    #[arg(long)]
    pub seed: Option<u64>,
    /// Wall-clock budget: 60s, 10m, 8h.
    #[arg(long, value_parser = parse_duration)]
    pub max_time: Option<Duration>,
    /// Trials of the loop; the findings of a seed and a number of trials are always the same.
    #[arg(long)]
    pub max_evals: Option<u64>,
    /// Groups of mutators: tokens, dictionary, vocabulary, suffix, embeddings, lesions, sets,
    /// weights.
    #[arg(long, value_delimiter = ',')]
    pub mutate: Vec<String>,
    /// Start from the prompts in this file, one a paragraph; may be given several times. With
    /// --seeds or --prompt, the campaign file's own seeds and prompts are left out.
    #[arg(long, value_name = "FILE")]
    pub seeds: Vec<PathBuf>,
    /// Start from this prompt; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Score with these oracles alone: divergence, echo, collapse, non_finite, loss_blowup,
    /// routing_collapse, state_blowup, state_memory.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_oracle)]
    pub oracles: Vec<OracleKind>,
    /// Matched controls behind each verdict, 8 to 1024.
    #[arg(long, value_name = "N")]
    pub controls: Option<usize>,
    /// Lesion components of these layers alone, such as 3-7 or 5; controls come from all layers.
    #[arg(long, value_name = "A-B")]
    pub layers: Option<Layers>,
    /// Where cases, journal and report go.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Replace the results of an earlier run in that folder; without it they stay, and a folder
    /// beside it is written (`out-2`, ...).
    #[arg(long)]
    pub force: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// Stop at the first case, with exit code 77.
    #[arg(long)]
    pub exit_on_find: bool,
    /// Stop when the next 1,000 evaluations show a new kind of finding with at most this
    /// probability, by the upper end of its 95% interval: 0.1, say.
    #[arg(long, value_name = "P")]
    pub until_stable: Option<f64>,
    /// Replace every trial by one of its own controls, so that there is nothing to find: what is
    /// reported all the same is reported by chance.
    #[arg(long)]
    pub null: bool,
}

/// Loads what a campaign needs, runs it, writes its folder and says what was found.
pub fn run_command(args: FuzzArgs) -> Result<u8> {
    let started = Instant::now();
    let config = args.config()?;
    let interrupted = super::interrupt::flag();
    let wanted = Path::new(&config.out);
    OutputDir::check(wanted)?;
    let model = Model::load(&config.model)?;
    let evaluator = ModelEvaluator::new(&model);
    let other = config.against.as_deref().map(Model::load).transpose()?;
    let other = other.as_ref().map(ModelEvaluator::new);
    let models = other.as_ref().map(|other| TwoModels::new(&evaluator, other)).transpose()?;
    let model_ref = model.reference();
    let same =
        |models: &TwoModels| models.against.model.reference().fingerprint == model_ref.fingerprint;
    if models.as_ref().is_some_and(same) {
        return Err(Error::request("--against: the same model"));
    }
    let vocabulary = Vocabulary::of(&model);
    let token = |id| model.token(id);
    let mut subject = setup::subject(&config, &model, &evaluator, &vocabulary, &token)?;
    if let Some(models) = &models {
        subject = subject.compared(models);
    }
    let explainer = ModelExplainer {
        evaluator: &evaluator,
        vocabulary: &vocabulary,
        model: &model_ref,
        new_prompts: Some(&subject.new_prompts),
        against: models.as_ref(),
        attribution: None,
    };
    // Whatever can fail has been tried: only now is the folder touched.
    let dir = OutputDir::create(wanted, args.force)?;
    let out = dir.path();
    output::moved(wanted, out);
    let cases_dir = dir.cases()?;
    let mut journal = storage::Journal::open::<Record>(&out.join("journal.log"))?.journal;
    let mut cases = Vec::new();
    let mut store = |event: &Event| -> Result<()> {
        if let Some(record) = Record::from_event(event) {
            journal.append(&record)?;
            if let Event::Case(case) = event {
                case.write(&cases_dir)?;
                cases.push((**case).clone());
            }
            journal.sync()?;
        }
        Ok(())
    };
    let summary = campaign(&config, &subject, &explainer, &mut store, interrupted, started)?;
    storage::write_json(&out.join("summary.json"), &summary)?;
    storage::write_atomic(
        &out.join("report.html"),
        crate::report::page(&summary, &cases).as_bytes(),
    )?;
    if args.json {
        output::json(&summary)?;
    } else {
        output::print(&crate::report::terminal_in(out, &summary, &cases, output::columns()));
    }
    Ok(match summary.stopped_by.as_str() {
        "interrupted" => exit::INTERRUPTED,
        "exit-on-find" => exit::FOUND,
        _ => exit::OK,
    })
}

impl FuzzArgs {
    /// The definition with what the command line changes.
    pub fn config(&self) -> Result<CampaignConfig> {
        let (file, model) = match self.file.as_deref() {
            Some(path) if is_model(path) => (None, Some(path.display().to_string())),
            file => (file, None),
        };
        if model.is_some() && self.model.is_some() {
            return Err(Error::request("the model is given twice: as an argument and as --model"));
        }
        let mut config = match file {
            Some(path) => {
                CampaignConfig::parse(&storage::read_text(path, storage::MAX_TEXT)?, path)?
            }
            None => CampaignConfig::quick()?,
        };
        if let Some(model) = self.model.as_ref().or(model.as_ref()) {
            config.model.clone_from(model);
        }
        config.seed = self.seed.unwrap_or(config.seed);
        // A budget replaces the file's as a whole: the file's clock must not cut a run short that
        // is to be repeated, nor its count a run that is to go on overnight.
        if self.max_evals.is_some() || self.max_time.is_some() || self.until_stable.is_some() {
            config.max_evals = self.max_evals;
            config.max_time = self.max_time;
        }
        if !self.mutate.is_empty() {
            config.mutate.clone_from(&self.mutate);
        }
        if !self.seeds.is_empty() || !self.prompt.is_empty() {
            config.seeds = self.seeds.iter().map(|path| seed_file(path)).collect::<Result<_>>()?;
            config.prompts.clone_from(&self.prompt);
        }
        if !self.oracles.is_empty() {
            config.oracles = Some(self.oracles.clone());
        }
        config.controls_per_trial = self.controls.unwrap_or(config.controls_per_trial);
        config.layers = self.layers.or(config.layers);
        config.against = self.against.clone().or(config.against);
        if let Some(out) = &self.out {
            config.out = out.display().to_string();
        }
        config.exit_on_find |= self.exit_on_find;
        config.null |= self.null;
        config.until_stable = self.until_stable.or(config.until_stable);
        config.check().map_err(|(field, message)| {
            let flag = match field {
                "controls_per_trial" => "controls".to_owned(),
                field => field.replace('_', "-"),
            };
            Error::request(format!("--{flag}: {message}"))
        })?;
        Ok(config)
    }
}

/// Returns whether an argument names a model and not a campaign file.
fn is_model(path: &Path) -> bool {
    let ending = path.extension().and_then(|extension| extension.to_str());
    let named = |spec: &str| is_named(spec) || split_difference(spec).is_some();
    path.to_str().is_some_and(named) || matches!(ending, Some("gguf" | "pth")) || path.is_dir()
}

/// Returns a file of `--seeds` as the definition has it.
fn seed_file(path: &Path) -> Result<String> {
    if path.is_file() {
        return Ok(path.display().to_string());
    }
    let what = if path.exists() { "no file" } else { "no such file" };
    let hint = "--seeds takes files, --prompt takes a text";
    Err(Error::request(format!("--seeds {}: {what}; {hint}", path.display())))
}

/// Runs a campaign that is ready to run, with a progress line; `store` gets every event before it
/// is shown (it writes cases and the journal). The summary carries the timing.
pub fn campaign(
    config: &CampaignConfig,
    subject: &Subject,
    explainer: &dyn Explainer,
    store: &mut dyn FnMut(&Event) -> Result<()>,
    interrupted: &AtomicBool,
    started: Instant,
) -> Result<Summary> {
    let bar = output::Progress::spinner();
    let mut shown = Shown { bar, store, started, last: Progress::default() };
    let mut summary =
        run(config, subject, explainer, &mut shown, &StopSignal { interrupted, started })?;
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
    bar: output::Progress,
    store: &'a mut dyn FnMut(&Event) -> Result<()>,
    started: Instant,
    last: Progress,
}

impl Sink for Shown<'_> {
    fn event(&mut self, event: Event) -> Result<()> {
        (self.store)(&event)?;
        match event {
            Event::Round(progress) => {
                self.bar.set_message(status(
                    &progress,
                    self.started.elapsed().as_secs_f64(),
                    output::columns(),
                ));
                self.bar.tick();
                self.last = progress;
            }
            Event::Case(case) => {
                let (oracle, margin) = (case.verdict.oracle, case.verdict.margin);
                let line =
                    format!("{}  {oracle}  margin {margin:.3}  {}", case.id, case.comment.title);
                self.bar.println(fit(&line, output::columns()));
            }
            Event::Raw { .. } | Event::Confirmed { .. } | Event::Minimized { .. } => {}
        }
        Ok(())
    }
}

/// Three lines, each cut at the terminal's width.
fn status(progress: &Progress, elapsed: f64, columns: usize) -> String {
    let per_second = |count: u64| count as f64 / elapsed.max(1e-9);
    let rates = format!(
        "{} evals ({:.0}/s with follow-ups, {:.0} tok/s)",
        progress.evaluations,
        per_second(progress.evaluations + progress.follow_up_evaluations),
        per_second(progress.tokens),
    );
    let findings = format!(
        "findings {} raw, {} confirmed, {} minimized  {} kinds, new in 1,000: {}",
        progress.raw,
        progress.confirmed,
        progress.minimized,
        progress.kinds,
        percent(progress.chance_of_new)
    );
    let found = progress.yields.iter().filter(|m| m.findings > 0 || m.new_behaviours > 0);
    let yields: Vec<String> =
        found.map(|m| format!("{} {}+{}", m.mutator, m.findings, m.new_behaviours)).collect();
    let yields = format!("yield (findings+behaviours): {}", yields.join(", "));
    // What stands before the first line: a spinner and the time.
    let lines = [(rates, 11), (findings, 2), (yields, 2)]
        .map(|(line, before)| fit(&line, columns.saturating_sub(before + 1)));
    lines.join("\n  ")
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
    fn the_status_has_every_figure_and_fits_the_terminal() {
        let found = |mutator: &str, findings| crate::campaign::MutatorYield {
            mutator: mutator.into(),
            trials: 90,
            new_behaviours: 12,
            findings,
        };
        let progress = Progress {
            evaluations: 1000,
            follow_up_evaluations: 500,
            tokens: 4000,
            queue: 77,
            behaviours: 88,
            raw: 9,
            confirmed: 6,
            minimized: 5,
            kinds: 3,
            chance_of_new: 0.25,
            yields: vec![found("echo", 4), found("heads", 3)],
        };
        let expect = [
            "1000 evals (150/s with follow-ups, 400 tok/s)",
            "findings 9 raw, 6 confirmed, 5 minimized  3 kinds, new in 1,000: 25%",
            "yield (findings+behaviours): echo 4+12, heads 3+12",
        ];
        assert_eq!(
            status(&progress, 10.0, 80).lines().map(str::trim_start).collect::<Vec<_>>(),
            expect
        );
        let narrow = status(&progress, 10.0, 40);
        assert!(
            narrow.lines().count() == 3 && narrow.lines().all(|line| line.chars().count() < 40),
            "{narrow}"
        );
    }

    #[test]
    fn the_command_line_changes_the_definition() {
        let quick = config(&[]).unwrap();
        assert_eq!(
            (quick.model.as_str(), quick.max_time),
            ("builtin:dense", Some(Duration::from_secs(60)))
        );
        let counted =
            config(&["--max-evals", "500", "--mutate", "tokens,lesions", "--seed", "7"]).unwrap();
        assert_eq!((counted.max_evals, counted.max_time, counted.seed), (Some(500), None, 7));
        let timed = config(&["--max-time", "8h"]).unwrap();
        assert_eq!((timed.max_evals, timed.max_time), (None, Some(Duration::from_secs(8 * 3600))));
        let both = config(&["--max-time", "2s", "--max-evals", "9"]).unwrap();
        assert_eq!((both.max_evals, both.max_time), (Some(9), Some(Duration::from_secs(2))));
        assert_eq!(counted.mutate, ["tokens", "lesions"]);
        let model = |args: &[&str]| config(args).unwrap().model;
        assert_eq!(model(&["builtin:moe"]), "builtin:moe");
        assert_eq!(model(&["x.gguf"]), "x.gguf");
        assert!(config(&["builtin:moe", "--model", "builtin:dense"]).is_err());
        let narrowed = config(&[
            "--prompt",
            "It was",
            "--prompt",
            "a/b.txt",
            "--oracles",
            "echo,divergence",
            "--controls",
            "9",
            "--layers",
            "1-2",
        ])
        .unwrap();
        assert_eq!((narrowed.prompts.len(), narrowed.controls_per_trial), (2, 9));
        assert_eq!(narrowed.oracles, Some(vec![OracleKind::Echo, OracleKind::Divergence]));
        assert_eq!(narrowed.layers, Some(Layers { first: 1, last: 2 }));
        let error = config(&["--controls", "3"]).unwrap_err().to_string();
        assert!(error.starts_with("--controls: 3 is not within 8 to 1024"), "{error}");
        let error = config(&["--seeds", "/nowhere/x.txt"]).unwrap_err().to_string();
        assert!(error.starts_with("--seeds /nowhere/x.txt: no such file; "), "{error}");
        let error = config(&["--layers", "1", "--mutate", "tokens"]).unwrap_err().to_string();
        assert!(error.starts_with("--layers: no group of tokens draws"), "{error}");
        let error = config(&["--mutate", "tokns"]).unwrap_err().to_string();
        assert!(error.starts_with("--mutate: no mutator `tokns`"), "{error}");
    }
}
