//! `glitch sweep blocks|heads|mlps|neurons|experts|routers|states|weights`: what each component is
//! worth.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::ValueEnum;

use super::args::{ModelArg, RowsArg};
use super::rows::{SHOWN, more, texts};
use super::{exit, interrupt, output};
use crate::edit::Action;
use crate::error::Result;
use crate::evaluate::ModelEvaluator;
use crate::model::Model;
use crate::sweep::{LEAST_TEXTS, LesionOptions, LesionRow, LesionSweep, Target, WeightRank};
use crate::text::{count, escape, percent, plural};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// Texts whose loss is measured, one a paragraph; may be given many times. Passages of plain
    /// English by default.
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// How many of the 32 bundled passages are used: more give narrower intervals and take longer.
    #[arg(long, value_name = "N", default_value_t = 16, conflicts_with = "text",
        value_parser = clap::value_parser!(u64).range(1..=32))]
    passages: u64,
    #[command(flatten)]
    rows: RowsArg,
    /// Lesion only this many, evenly spread (weights: those that rank highest, 64 by default).
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// What is done to each: its output zeroed, set to its mean over a reference text, or negated
    /// (of a single weight: its sign bit flipped).
    #[arg(long, value_enum, default_value_t = By::Zero)]
    by: By,
    /// Seed of the noise that each lesion is compared with.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Replace each lesion by noise of its norm: what is flagged then is flagged by chance.
    #[arg(long)]
    null: bool,
    /// Print a JSON summary instead of the table.
    #[arg(long)]
    json: bool,
}

/// The lesion of each component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Zero,
    Mean,
    Negate,
}

impl By {
    fn action(self) -> Action {
        match self {
            Self::Zero => Action::Zero,
            Self::Mean => Action::Mean,
            Self::Negate => Action::Scale { factor: -1.0 },
        }
    }
}

/// Returns the name of a value on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Arguments of the sweep over single weights.
#[derive(clap::Args)]
pub struct WeightArgs {
    #[command(flatten)]
    lesions: Args,
    /// Which weights: those whose product with their largest input on the texts is largest, or the
    /// largest ones by themselves.
    #[arg(long, value_enum, default_value_t = Rank::Product)]
    rank: Rank,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rank {
    Product,
    Magnitude,
}

/// Sweeps single weights.
pub fn run_weights(args: &WeightArgs) -> Result<u8> {
    let rank = match args.rank {
        Rank::Product => WeightRank::Product,
        Rank::Magnitude => WeightRank::Magnitude,
    };
    sweep(&args.lesions, Target::Weights, rank)
}

/// Sweeps the components of a kind.
pub fn run(args: &Args, target: Target) -> Result<u8> {
    sweep(args, target, WeightRank::default())
}

fn sweep(args: &Args, target: Target, rank: WeightRank) -> Result<u8> {
    let rows = args.rows.open()?;
    let model = Model::load(args.model.name())?;
    let evaluator = ModelEvaluator::new(&model);
    let texts = texts(&model, &args.text, args.passages as usize)?;
    let options = LesionOptions {
        target,
        limit: args.limit,
        action: args.by.action(),
        rank,
        seed: args.seed,
        null: args.null,
    };
    let bar = output::Progress::bar(0, "lesions");
    let start = std::time::Instant::now();
    let progress = |done, total| {
        bar.set_length(total);
        bar.inc(done);
    };
    let interrupted = interrupt::flag();
    let sweep = LesionSweep::run_with(&evaluator, &texts, &options, &progress, &mut |sweep| {
        rows.keep(&sweep.rows)?;
        Ok(!interrupted.load(Ordering::Relaxed))
    })?;
    let status = if sweep.complete { exit::OK } else { exit::INTERRUPTED };
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let flagged: Vec<&LesionRow> = sweep.rows.iter().filter(|row| row.is_flagged()).collect();
    let above = flagged.iter().filter(|row| row.is_above_noise()).count();
    let flagged = flagged.len();
    if args.json {
        output::json(&serde_json::json!({
            "work": format!("{target:?}").to_lowercase(), "null": args.null,
            "by": name(args.by), "texts": sweep.texts, "tokens": sweep.tokens,
            "lesions": sweep.rows.len(), "seconds": seconds, "complete": sweep.complete,
            "baseline_loss": sweep.baseline_loss, "flagged": flagged, "flagged_above_noise": above,
            "routing_correlation": sweep.routing_correlation,
            "groups": sweep.groups, "channels": sweep.channels,
            "worst": sweep.rows.iter().take(8).collect::<Vec<_>>(),
        }))?;
        rows.write(&sweep.rows)?;
        return Ok(status);
    }
    output::line(format!(
        "{} ({}) of {} in {seconds:.1} s",
        plural(sweep.rows.len() as u64, "lesion"),
        name(args.by),
        escape(&model.name)
    ));
    output::line(format!(
        "{}, {} tokens; loss of the intact model: {:.4} nats a token",
        plural(sweep.texts as u64, "text"),
        count(sweep.tokens as u64),
        sweep.baseline_loss
    ));
    output::line(match (sweep.texts < LEAST_TEXTS, args.null) {
        _ if !sweep.complete => "interrupted: measured on the texts so far, and not tested".into(),
        (true, _) => format!(
            "not tested: with fewer than {LEAST_TEXTS} texts, effect and chance cannot be told \
            apart"
        ),
        (_, true) => format!(
            "null sweep, noise in place of every lesion: {flagged} flagged at a false discovery\n\
            rate of 5%"
        ),
        _ => format!(
            "{flagged} flagged at a false discovery rate of 5%: they cost something, and not what\n\
            noise of the same norm costs; {above} of them more than it, {} less",
            flagged - above
        ),
    });
    if let Some(correlation) = sweep.routing_correlation {
        output::line(format!(
            "how often an expert is chosen and how far its removal moves the output:\n\
            rank correlation {correlation:.2}"
        ));
    }
    output::line("effect: loss over the intact model's, nats a token; bits: divergence from it\n");
    output::line(match target {
        Target::Heads => {
            head_line(&["head", "effect", "95%", "noise", "q", "outlier", "sink", "name"])
        }
        _ => line(&["component", "effect", "95%", "noise", "q", "bits", "outlier"]),
    });
    for row in sweep.rows.iter().take(SHOWN) {
        output::line(match target {
            Target::Heads => head_row(row),
            _ => component_row(row),
        });
    }
    more(rows, &sweep.rows, SHOWN)?;
    groups(&sweep);
    Ok(status)
}

/// Formats what is shown of every lesion: effect, interval, noise, q, bits, outlier score.
fn figures(row: &LesionRow) -> [String; 6] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    [
        format!("{:+.3}", row.effect),
        or_dash(row.effect_interval.map(|(low, high)| format!("{low:+.3}..{high:+.3}"))),
        or_dash(row.noise_effect().map(|noise| format!("{noise:+.3}"))),
        or_dash(row.q_value.map(|q| format!("{q:.1e}"))),
        format!("{:.4}", row.divergence_bits),
        or_dash(row.outlier_score.map(|score| format!("{score:.1}"))),
    ]
}

fn component_row(row: &LesionRow) -> String {
    let [effect, interval, noise, q, bits, outlier] = figures(row);
    line(&[&row.component.to_string(), &effect, &interval, &noise, &q, &bits, &outlier])
}

fn line(cells: &[&str; 7]) -> String {
    let [component, effect, interval, noise, q, bits, outlier] = cells;
    format!("{component:<22} {effect:>7} {interval:>15} {noise:>7} {q:>7} {bits:>6} {outlier:>7}")
}

fn head_row(row: &LesionRow) -> String {
    let [effect, interval, noise, q, _, outlier] = figures(row);
    let sink = row.head.map_or("-".into(), |head| format!("{:.2}", head.sink));
    let name = row.head.and_then(|head| head.name()).unwrap_or_default();
    let component = row.component.to_string();
    head_line(&[&component, &effect, &interval, &noise, &q, &outlier, &sink, name])
}

fn head_line(cells: &[&str; 8]) -> String {
    let [head, effect, interval, noise, q, outlier, sink, name] = cells;
    let line = format!(
        "{head:<10} {effect:>7} {interval:>15} {noise:>7} {q:>7} {outlier:>7} {sink:>5}  {name}"
    );
    line.trim_end().to_owned()
}

/// Prints the groups that flagged components form.
fn groups(sweep: &LesionSweep) {
    for group in sweep.groups.iter().take(SHOWN) {
        let heads: Vec<String> = group.heads.iter().map(usize::to_string).collect();
        output::line(format!(
            "L{} heads {} share keys and values: {:+.3} lesioned together, {:+.3} in sum",
            group.layer,
            heads.join(", "),
            group.effect,
            group.sum_of_effects
        ));
    }
    for channel in sweep.channels.iter().take(SHOWN) {
        output::line(format!(
            "channel {}, written to by {}: up to {:.0} at position {},\n  {} times the median{}; \
            {} of the costliest one's effect\n  goes through the first token",
            channel.channel,
            plural(channel.weights.len() as u64, "flagged weight"),
            channel.largest,
            channel.position,
            count(channel.times_median as u64),
            if channel.massive { " (a massive activation)" } else { "" },
            percent(channel.through_first_token)
        ));
    }
}
