//! `glitch suffix`: searches for a suffix that makes a model do what it otherwise would not.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::args::ModelArg;
use super::{exit, output};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::model::Model;
use crate::mutate::suffix::{
    Algorithm, GoalKind, Problem, Prompt, Reached, Search, Step, SuffixOptions, Tokens, Wanted,
    encode_continuation, held_out_success, rungs,
};
use crate::pipeline::{SearchFollowUp, cases_of_search};
use crate::text::escape;
use crate::{report, storage};
use storage::{OutputDir, TextOrFile};

/// Search for an adversarial suffix by gradient; confirm, shorten and explain what reaches the
/// goal.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// A prompt, or a file with one a line; `{suffix}` is where the suffix goes (at the end where
    /// it is missing), and `\n` a new line. With several prompts one suffix is searched for all.
    /// A value that looks like a file name (it ends in `.txt`, or has a `/` and no spaces) must
    /// exist; one with `{suffix}` in it is always a text.
    #[arg(long, value_name = "TEXT|FILE")]
    prompt: String,
    /// Text that the model should say (or, with `--goal loss`, find improbable).
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "goal",
        required_if_eq_any([("goal", "target"), ("goal", "loss")]),
        value_parser = clap::builder::NonEmptyStringValueParser::new(),
    )]
    target: Option<String>,
    /// Behaviour to search for.
    #[arg(long, value_enum, default_value_t = GoalKind::Target)]
    goal: GoalKind,
    /// Search method.
    #[arg(long, value_enum, default_value_t = Algorithm::Gcg)]
    algorithm: Algorithm,
    /// Number of steps; a beam search takes one per token of the suffix instead.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100,
        value_parser = clap::value_parser!(u64).range(1..=100_000),
    )]
    steps: u64,
    /// Candidates per step.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(1..=65_536),
    )]
    width: u64,
    /// Candidates of the last step; between the first and the last the number changes evenly
    /// [default: as many as in the first].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    last_width: Option<u64>,
    /// Length of the suffix in tokens.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        value_parser = clap::value_parser!(u64).range(1..=512),
    )]
    length: u64,
    /// Draw candidates from the N tokens that the gradient ranks highest at each place.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(1..),
    )]
    top_k: u64,
    /// Replace N tokens at once in each candidate.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=512),
    )]
    replace: u64,
    /// Keep the N best suffixes and continue from the best; 0 always continues from the latest.
    #[arg(long, value_name = "N", default_value_t = 0)]
    buffer: usize,
    /// Also try the best 2, 3, ... N candidates of a step together; 0: none.
    #[arg(long, value_name = "N", default_value_t = 8)]
    merge: usize,
    /// Do not copy runs of the target's tokens into candidates (by default one in sixteen does).
    #[arg(long)]
    no_copies: bool,
    /// Combine the target's tokens by mellowmax with this sharpness instead of the mean.
    #[arg(long, value_name = "ALPHA", value_parser = positive)]
    mellowmax: Option<f64>,
    /// Run every candidate through the whole model: no successive halving.
    #[arg(long)]
    exact: bool,
    /// Allow tokens beyond printable ASCII.
    #[arg(long)]
    any_text: bool,
    /// Also try suffixes that do not round-trip through the tokenizer: no text encodes to them.
    #[arg(long)]
    any_ids: bool,
    /// Hold out the last N prompts: the search does not see them, and the best suffix is tested on
    /// them at the end.
    #[arg(long, value_name = "N", default_value_t = 0)]
    held_out: usize,
    /// Stop when the goal is reached in all prompts.
    #[arg(long)]
    stop_on_success: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for suffix.json (the search, after every step), the cases and report.html.
    #[arg(long, value_name = "DIR", default_value = "fuzz/suffix")]
    out: PathBuf,
    /// Confirm and minimize findings without localizing them to components.
    #[arg(long)]
    no_implication: bool,
    /// Continue the search in --out.
    #[arg(long)]
    resume: bool,
    /// Replace the search of an earlier run in that folder; without it, and without --resume, it
    /// stays, and a folder beside it is written (`suffix-2`, ...).
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Parses a number above zero.
fn positive(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(number),
        _ => Err("expected a number above 0".into()),
    }
}

/// Marks where the suffix goes in a prompt.
const GAP: &str = "{suffix}";
/// Name of the file of the search.
const SEARCH: &str = "suffix.json";

pub fn run(args: Args) -> Result<u8> {
    let interrupted = super::interrupt::flag();
    OutputDir::check(&args.out)?;
    let model = Model::load(args.model.name())?;
    let evaluator = ModelEvaluator::new(&model);
    let mut prompts = prompts(&model, &args.prompt)?;
    if args.held_out >= prompts.len() {
        return Err(Error::request(format!(
            "--held-out {} leaves none of {} prompts",
            args.held_out,
            prompts.len()
        )));
    }
    let held_out = prompts.split_off(prompts.len() - args.held_out);
    let tokens = Tokens::new(&model, !args.any_text)?;
    let length = args.length as usize;
    let wanted = Wanted {
        kind: args.goal,
        text: args.target.as_deref().unwrap_or_default(),
        mellowmax: args.mellowmax,
        length,
    };
    let goal = wanted.goal(&evaluator, &prompts[0], tokens.neutral)?;
    let problem = Problem::new(&evaluator, prompts, goal, tokens, length)?;
    let fresh = Search::new(&problem, options(&args, &model))?;
    let asked = args.out.join(SEARCH);
    if args.resume && !asked.exists() {
        return Err(Error::file(&asked, "--resume", "there is no search to continue"));
    }
    // Whatever can fail has been tried: only now is the folder touched.
    let (dir, mut search) = if args.resume {
        // Under the lock: no other process may write a step after it was read.
        let dir = OutputDir::resume(&args.out)?;
        (dir, fresh.resume(&asked, &model)?)
    } else {
        (OutputDir::create(&args.out, args.force)?, fresh)
    };
    output::moved(&args.out, dir.path());
    let path = dir.path().join(SEARCH);
    let (start, resumed_at) = (Instant::now(), search.state.step);
    let ended = descend(&mut search, &problem, &args, &path, interrupted)?;
    let seconds = start.elapsed().as_secs_f64();
    let steps = search.state.step - resumed_at;
    search.held_out = held_out_success(&problem, &search, &held_out)?;
    if search.held_out.is_some() {
        search.write(&path)?;
    }
    let cases = cases(&problem, &search, &args, &dir.cases()?, interrupted)?;
    storage::write_atomic(
        &dir.path().join("report.html"),
        report::suffix_page(&search, &cases).as_bytes(),
    )?;
    if args.json {
        let value = serde_json::json!({
            "search": search, "cases": cases.iter().map(|case| &case.id).collect::<Vec<_>>(),
            "timing": {
                "seconds": seconds, "steps": steps,
                "seconds_per_step": seconds / steps.max(1) as f64,
            },
        });
        output::json(&value)?;
    } else {
        let round_trips = problem.round_trips(1, &search.state.best.suffix);
        let columns = output::columns();
        let summary = report::suffix_terminal(&search, &cases, &model, round_trips, columns);
        output::print(&summary);
        output::line(format!("written   {}", escape(&dir.path().display().to_string())));
        if steps > 0 {
            output::line(format!(
                "{steps} steps in {seconds:.1} s, {:.2} s a step",
                seconds / steps as f64
            ));
        }
    }
    Ok(if ended { exit::OK } else { exit::INTERRUPTED })
}

fn options(args: &Args, model: &Model) -> SuffixOptions {
    let rungs = if args.exact {
        Vec::new()
    } else {
        rungs(model.config.num_hidden_layers, model.config.is_recurrent())
    };
    SuffixOptions {
        algorithm: args.algorithm,
        seed: args.seed,
        length: args.length as usize,
        steps: args.steps as usize,
        width: args.width as usize,
        last_width: args.last_width.unwrap_or(args.width) as usize,
        top_k: args.top_k as usize,
        replace: args.replace as usize,
        buffer: args.buffer,
        merge: args.merge,
        // What a model is to find improbable is better not said to it.
        copies: !args.no_copies && args.goal != GoalKind::Loss,
        text: !args.any_ids,
        rungs,
    }
}

/// Returns the prompts of the command line: the lines of a file, or the text itself.
fn prompts(model: &Model, value: &str) -> Result<Vec<Prompt>> {
    let text = match TextOrFile::parse(value, "--prompt")? {
        TextOrFile::Text(text) => return Ok(vec![prompt(model, text, "--prompt")?]),
        TextOrFile::File(path) => storage::read_text(path, storage::MAX_TEXT)?,
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts: Vec<Prompt> = lines
        .map(|(index, line)| prompt(model, line, &format!("{value}: line {}", index + 1)))
        .collect::<Result<_>>()?;
    if prompts.is_empty() { Err(Error::request("--prompt: no prompt in it")) } else { Ok(prompts) }
}

/// Encodes one prompt; `place` names it in the error.
fn prompt(model: &Model, line: &str, place: &str) -> Result<Prompt> {
    let line = line.replace("\\n", "\n");
    let (before, after) = line.split_once(GAP).unwrap_or((&line, ""));
    if after.contains(GAP) {
        return Err(Error::request(format!("{place}: {GAP} stands there more than once")));
    }
    Ok(Prompt { before: model.encode(before)?, after: encode_continuation(model, after)? })
}

/// Runs the search to its end and writes it after every step; returns false if it was interrupted.
fn descend(
    search: &mut Search,
    problem: &Problem,
    args: &Args,
    path: &Path,
    interrupted: &AtomicBool,
) -> Result<bool> {
    search.write(path)?;
    let steps = if args.algorithm == Algorithm::Beast { args.length } else { args.steps };
    let bar = output::Progress::bar(steps, "steps");
    bar.set_position(search.state.step as u64);
    let done = |search: &Search| {
        let all = |reached: &Reached| reached.prompts == problem.prompts.len();
        search.state.ended(&search.options)
            || args.stop_on_success && search.state.reached.iter().any(all)
    };
    while !done(search) {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let start = Instant::now();
        let step = search.advance(problem)?;
        search.write(path)?;
        bar.set_message(message(&step, start.elapsed().as_secs_f64()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(true)
}

fn message(step: &Step, seconds: f64) -> String {
    let reached =
        if step.reached > 0 { format!(", {} reach the goal", step.reached) } else { String::new() };
    format!(
        "loss {:.3} best {:.3}, {:.0} candidates/s{reached}",
        step.loss,
        step.best,
        step.candidates as f64 / seconds
    )
}

/// Makes the cases of the search and writes each at once.
fn cases(
    problem: &Problem,
    search: &Search,
    args: &Args,
    dir: &Path,
    interrupted: &AtomicBool,
) -> Result<Vec<Case>> {
    let stop = || interrupted.load(Ordering::Relaxed);
    let follow_up = SearchFollowUp { localize: !args.no_implication, stop: &stop };
    let mut cases = Vec::new();
    cases_of_search(problem, search, follow_up, &mut |case| {
        case.write(dir)?;
        cases.push(case);
        Ok(())
    })?;
    Ok(cases)
}
