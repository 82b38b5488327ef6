//! `glitch sweep pairs`: what two lesions do together beyond what each does alone.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::ValueEnum;

use super::args::{ModelArg, Of, RowsArg};
use super::rows::{SHOWN, lesion_text, more};
use super::{exit, interrupt, output};
use crate::edit::{Action, Trial};
use crate::error::{Error, Result};
use crate::evaluate::ModelEvaluator;
use crate::model::Model;
use crate::sweep::{PairOptions, PairSweep};
use crate::text::escape;

#[derive(clap::Args)]
pub struct Args {
    /// Kind of the components that are paired.
    #[arg(long, value_enum, default_value_t = Of::Heads)]
    of: Of,
    /// Kind of lesion (ablation): set to zero, set to the mean over plain English, or mask
    /// (experts) so that the router cannot choose them.
    #[arg(long, value_enum, default_value_t = By::Zero)]
    by: By,
    #[command(flatten)]
    model: ModelArg,
    /// Text whose loss is measured; a paragraph of plain English by default.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    #[command(flatten)]
    rows: RowsArg,
    /// Measure at most this many pairs; where there are more, a screen of at most as many gradients
    /// picks them.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    limit: usize,
    /// Matched controls: pairs given noise of their own norm instead of being removed.
    #[arg(long, value_name = "N", default_value_t = 16)]
    controls: usize,
    /// Seed of the random pairs on which the null of a screened sweep is measured.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print a JSON summary instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Zero,
    Mean,
    /// The router cannot choose the expert.
    #[value(alias = "unroute")]
    Mask,
}

pub fn run(args: &Args) -> Result<u8> {
    let of = args.of.target();
    let action = match args.by {
        By::Zero => Action::Zero,
        By::Mean => Action::Mean,
        By::Mask if args.of == Of::Experts => Action::Mask,
        By::Mask => return Err(Error::request("--by mask is for --of experts")),
    };
    let rows = args.rows.open()?;
    let model = Model::load(args.model.name())?;
    let evaluator = ModelEvaluator::new(&model);
    let ids = lesion_text(&model, args.text.as_deref())?;
    let [first, rest @ ..] = &ids[..] else { return Err(Error::request("the text has no tokens")) };
    let options = PairOptions {
        target: of,
        action,
        limit: args.limit,
        controls: args.controls,
        seed: args.seed,
    };
    let bar = output::Progress::bar(0, "pairs");
    let start = std::time::Instant::now();
    let interrupted = interrupt::flag();
    let progress = |done, total| {
        // Phase by phase: the bar begins anew with each.
        if bar.length() != Some(total) || bar.position() >= total {
            bar.set_length(total);
            bar.set_position(0);
        }
        bar.inc(done);
    };
    let trial = Trial::new([*first], rest);
    let sweep = PairSweep::run_with(&evaluator, &trial, &options, &progress, &mut |sweep| {
        rows.keep(&sweep.rows)?;
        Ok(!interrupted.load(Ordering::Relaxed))
    })?;
    let status = if sweep.complete { exit::OK } else { exit::INTERRUPTED };
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let flagged = sweep.flagged().count();
    if args.json {
        output::json(&serde_json::json!({
            "work": "pairs", "tokens": sweep.tokens, "components": sweep.components,
            "pairs": sweep.pairs,
            "measured": sweep.rows.len(), "seconds": seconds, "baseline_loss": sweep.baseline_loss,
            "flagged": flagged,
            "null_pairs": sweep.null_pairs, "null_flagged": sweep.null_flagged,
            "controls": sweep.controls, "controls_flagged": sweep.controls_flagged,
            "noise_floor": sweep.noise_floor, "complete": sweep.complete,
            "worst": sweep.rows.iter().take(8).collect::<Vec<_>>(),
        }))?;
        rows.write(&sweep.rows)?;
        return Ok(status);
    }
    output::line(format!(
        "{} of {} pairs of {} {} of {} in {seconds:.1} s; loss on {} tokens of the intact model: \
        {:.4} nats a token",
        sweep.rows.len(),
        sweep.pairs,
        sweep.components,
        format!("{of:?}").to_lowercase(),
        escape(&model.name),
        sweep.tokens,
        sweep.baseline_loss
    ));
    if !sweep.complete {
        output::line("interrupted: what follows is judged on the pairs measured so far");
    }
    let null = match sweep.screened {
        true => format!(
            "{} of {} random pairs of the same layers (the null) and ",
            sweep.null_flagged, sweep.null_pairs
        ),
        // All measured pairs are the null.
        false => String::new(),
    };
    output::line(format!(
        "{flagged} interact at a false discovery rate of 5%;\nthe same threshold flags {null}{} of \
        {} pairs given noise of the same norm",
        sweep.controls_flagged, sweep.controls
    ));
    output::line(
        "loss over the intact model's, nats a token; interaction = joint - a alone - b alone; \
        ratio: to the larger of the two alone\n",
    );
    let (a, b, joint, ratio) = ("a alone", "b alone", "joint", "ratio");
    output::line(format!(
        "{:<13} {:<13} {a:>8} {b:>8} {joint:>8} {:>11} {ratio:>8} {:>8}  kind",
        "a", "b", "interaction", "q"
    ));
    for row in sweep.rows.iter().take(SHOWN) {
        output::line(format!(
            "{:<13} {:<13} {:>+8.4} {:>+8.4} {:>+8.4} {:>+11.4} {:>8.2} {:>8.1e}  {}",
            row.a.to_string(),
            row.b.to_string(),
            row.alone_a,
            row.alone_b,
            row.joint,
            row.interaction,
            row.ratio,
            row.q_value,
            row.kind.name()
        ));
    }
    more(rows, &sweep.rows, SHOWN)?;
    Ok(status)
}
