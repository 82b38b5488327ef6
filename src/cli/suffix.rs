//! `glitch suffix`: searches for a suffix that makes a model do what it otherwise would not.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::args::ModelArg;
use super::{exit, output};
use crate::campaign::{Explain, Follow as _, attribute_against, reduced};
use crate::case::{Case, Lineage};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator as _, ModelEvaluator, Request};
use crate::minimize;
use crate::model::Model;
use crate::mutate::suffix::{
    Algorithm, Goal, GoalKind, HeldOut, Mean, Problem, Prompt, Reached, Search, Step,
    SuffixOptions, Tokens, rungs,
};
use crate::oracle::ModelJudge;
use crate::text::{escape, fit};
use crate::vocabulary::Vocabulary;
use crate::{report, stats, storage};
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
    #[arg(long, value_name = "TEXT", required_if_eq_any([("goal", "target"), ("goal", "loss")]))]
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
    #[arg(long, value_name = "ALPHA")]
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

/// Marks where the suffix goes in a prompt.
const GAP: &str = "{suffix}";
/// Name of the file of the search.
const SEARCH: &str = "suffix.json";
/// Trials that a reduction may judge, and trials in one of its batches.
const MINIMISE_CALLS: u64 = 400;
const MINIMISE_BATCH: usize = 8;
/// Suffixes that are judged until one holds.
const JUDGED: usize = 4;

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
    let goal = goal(&args, &model, &evaluator, &prompts[0], tokens.neutral)?;
    let length = args.length as usize;
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
        tell(&problem, &search, &cases, dir.path());
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
    Ok(Prompt { before: model.encode(before)?, after: continued(model, after)? })
}

/// Encodes text that continues another one: without BOS.
fn continued(model: &Model, text: &str) -> Result<Vec<u32>> {
    match &model.tokenizer {
        Some(tokenizer) => tokenizer.encode(text),
        None => model.encode(text),
    }
}

/// Tokens that count as a loop.
const LOOP: usize = 8;

fn goal(
    args: &Args,
    model: &Model,
    evaluator: &ModelEvaluator,
    prompt: &Prompt,
    neutral: u32,
) -> Result<Goal> {
    let continuation = match args.goal {
        GoalKind::Target | GoalKind::Loss => {
            continued(model, args.target.as_deref().unwrap_or_default())?
        }
        GoalKind::Away => Vec::new(),
        GoalKind::End => {
            let end = model.config.eos_token_ids.first().or(model.config.bos_token_id.as_ref());
            vec![*end.ok_or_else(|| {
                Error::request(format!("{} has no token that ends a text", model.name))
            })?]
        }
        // A loop of the token that the model would say first anyway.
        GoalKind::Loop => {
            let trial =
                crate::edit::Trial::new(prompt.with(&vec![neutral; args.length as usize]), []);
            let observed = evaluator.observe(&[Request::new(trial)])?;
            let first = observed.first().and_then(|o| o.top.first()?.first().copied());
            vec![first.ok_or_else(|| Error::internal("the model predicts nothing"))?.0; LOOP]
        }
    };
    if continuation.is_empty() && args.goal != GoalKind::Away {
        return Err(Error::request("--target: no text"));
    }
    let mean = match args.mellowmax {
        None => Mean::Arithmetic,
        Some(alpha) if alpha.is_finite() && alpha > 0.0 => Mean::Mellowmax { alpha },
        Some(alpha) => {
            return Err(Error::request(format!("--mellowmax {alpha}: expected a number above 0")));
        }
    };
    Ok(Goal { kind: args.goal, continuation, mean })
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

/// Judges, reduces and explains the best suffixes that reached the goal, in every prompt of theirs.
fn cases(
    problem: &Problem,
    search: &Search,
    args: &Args,
    dir: &Path,
    interrupted: &AtomicBool,
) -> Result<Vec<Case>> {
    let mut found = Vec::new();
    if search.state.reached.is_empty() || interrupted.load(Ordering::Relaxed) {
        return Ok(found);
    }
    let (evaluator, model) = (problem.evaluator, problem.evaluator.model);
    let vocabulary = Vocabulary::of(model);
    let floor = evaluator.noise_floor()?.max(1e-6);
    let reference = model.reference();
    let explain = Explain { evaluator, model: &reference };
    for prompt in 0..search.state.prompts {
        for reached in search.state.reached.iter().filter(|r| r.prompts > prompt).take(JUDGED) {
            let trial = problem.trial(prompt, &reached.suffix);
            let judge = ModelJudge::new(
                evaluator,
                &model.config,
                &vocabulary,
                problem.goal.oracle(),
                search.options.seed,
                floor,
            );
            let confirmed = judge.judge_alone(&trial)?;
            if !confirmed.fails() {
                continue;
            }
            let stop = || interrupted.load(Ordering::Relaxed);
            let options = minimize::MinimizeOptions {
                max_calls: MINIMISE_CALLS,
                batch: MINIMISE_BATCH,
                neutral: Some(problem.tokens.neutral),
                keep_first: problem.prompts[prompt].before.len(),
                keep_last: problem.prompts[prompt].after.len(),
                stop: Some(&stop),
                ..Default::default()
            };
            let lineage = Lineage {
                seed: search.options.seed,
                evaluation: reached.step as u64,
                mutators: vec!["suffix".into()],
                parent: format!("prompt {}", prompt + 1),
            };
            let (finding, _) = reduced(trial, confirmed, &judge, &options, lineage)?;
            let (mut case, _) = explain.follow(&finding, !args.no_implication && !stop())?;
            if let Some(localization) = &mut case.localization {
                let fails =
                    search.state.fails.as_ref().map(|entry| problem.trial(prompt, &entry.suffix));
                attribute_against(
                    evaluator,
                    &finding.trial,
                    localization,
                    finding.control_seed,
                    fails,
                )?;
            }
            case.write(dir)?;
            found.push(case);
            break;
        }
    }
    Ok(found)
}

/// Counts the held-out prompts on which the best suffix reaches the goal.
fn held_out_success(
    problem: &Problem,
    search: &Search,
    held_out: &[Prompt],
) -> Result<Option<HeldOut>> {
    if held_out.is_empty() {
        return Ok(None);
    }
    let suffix =
        search.state.reached.first().map_or(&search.state.best.suffix, |reached| &reached.suffix);
    let (goal, tokens) = (problem.goal.clone(), problem.tokens.clone());
    let others = Problem::new(problem.evaluator, held_out.to_vec(), goal, tokens, suffix.len())?;
    let mut reached = 0;
    for prompt in 0..held_out.len() {
        let observed = others.observe(prompt, suffix, &[vec![]])?;
        reached += u64::from(others.goal.reached(&observed[0], others.baseline(prompt)));
    }
    Ok(Some(HeldOut { reached, prompts: held_out.len() as u64 }))
}

fn tell(problem: &Problem, search: &Search, cases: &[Case], out: &Path) {
    let (model, state) = (problem.evaluator.model, &search.state);
    let columns = output::columns();
    let text = |suffix: &[u32]| fit(&model.decode(suffix), columns.saturating_sub(16));
    output::line(match state.trace.first() {
        Some(step) => format!(
            "loss      {:.3} after the first step, {:.3} at best",
            step.loss, state.best.loss
        ),
        None => format!("loss      {:.3} to begin with; no step was made", state.best.loss),
    });
    output::line(format!("suffix    {}", text(&state.best.suffix)));
    let again = problem.round_trips(1, &state.best.suffix);
    output::line(format!(
        "as text   {}",
        if again {
            "encodes to the same tokens (round-trips)"
        } else {
            "encodes to other tokens: only ids give this suffix"
        }
    ));
    if let Some(soft) = &state.soft {
        let says = soft.reached.map_or("do not make the model do it".into(), |step| {
            format!("make the model do it, from step {step} on")
        });
        let gap = state.best.loss - soft.best;
        output::line(format!(
            "soft      embeddings get to {:.3} and {says}; tokens stay {gap:.3} behind",
            soft.best
        ));
    }
    match state.reached.first() {
        None => output::line(
            "reached   never: the model does not do it, greedily, after any suffix that was tried",
        ),
        Some(reached) => output::line(format!(
            "reached   by {} suffixes, in {} of {} prompts, first in step {}",
            state.reached.len(),
            reached.prompts,
            problem.prompts.len(),
            state.reached.iter().map(|r| r.step).min().unwrap_or(0)
        )),
    }
    if let Some(HeldOut { reached, prompts }) = search.held_out {
        let (low, high) = stats::wilson(reached, prompts, 1.96);
        output::line(format!(
            "held out  {reached} of {prompts} prompts ({:.0}% to {:.0}%)",
            100.0 * low,
            100.0 * high
        ));
    }
    if cases.is_empty() && !state.reached.is_empty() {
        output::line(
            "case      none: random suffixes score as high, or the run ended before controls were \
            evaluated",
        );
    }
    for case in cases {
        let changed = case.edits.len();
        let tokens =
            case.minimization.as_ref().map_or(String::new(), |m| format!(", {} judged", m.calls));
        output::line(format!(
            "case      {}: {changed} tokens are needed{tokens}",
            escape(&case.id)
        ));
        output::line(format!("          {}", fit(&case.comment.title, columns.saturating_sub(10))));
        output::line(format!(
            "          it says: {}",
            fit(&case.comment.generated_after, columns.saturating_sub(19))
        ));
        let attribution =
            case.localization.as_ref().and_then(|localization| localization.attribution.as_ref());
        for line in attribution.map(super::implicate::attribution_table).unwrap_or_default() {
            output::line(format!("  {line}"));
        }
    }
    output::line(format!("written   {}", escape(&out.display().to_string())));
}
