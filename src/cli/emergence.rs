//! `glitch emergence`: is the whole the sum of its parts?

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::ValueEnum;

use super::args::{ModelArg, Of, RowsArg};
use super::rows::texts;
use super::{exit, interrupt, output};
use crate::emergence::{
    Emergence, EmergenceOptions, Estimate, Function, Interaction, Measure, OrderShares,
    Replacement, Scale, Verdict,
};
use crate::error::Result;
use crate::evaluate::ModelEvaluator;
use crate::model::Model;
use crate::replicate::encoded_passages;
use crate::text::{count, escape, plural};

/// The orders that fit beside each other in 80 columns.
const COLUMNS: usize = 3;
/// The interactions that are shown of each scale.
const INTERACTIONS: usize = 6;
/// Columns for the names of an interaction's parts.
const NAMES: usize = 31;
/// The layers that are shown.
const LAYERS: usize = 6;

/// Measure how far sets of lesions (ablations) do what their members do alone.
///
/// The model is run under random sets of lesions. Their loss, and the right token's centred logit,
/// are predicted from single lesions (order 1), with pairs (order 2), with triples (order 3). The
/// shares of variance that each order explains stand beside those of an additive surrogate of the
/// same model, whose logits are sums of single effects, and of planted interactions.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// Kind of the components that are lesioned.
    #[arg(long, value_enum, default_value_t = Of::Blocks)]
    of: Of,
    /// What replaces a component's output: zero, its mean over plain English, or its output at the
    /// same position of another text.
    #[arg(long, value_enum, default_value_t = By::Zero)]
    action: By,
    /// Largest order that is fitted.
    #[arg(long, value_name = "ORDER", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=5))]
    order: u32,
    /// Size of the largest sets; the number of components or more: all subsets, each as likely.
    #[arg(long, value_name = "K", default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(2..))]
    sets_of: u32,
    /// Number of sets: all are run where there are no more, else this many are drawn. By default
    /// up to 4,096 are all run, else 1,024 are drawn.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..=65_536))]
    sets: Option<u32>,
    /// Take only this many components, evenly spread.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Texts whose loss is measured, one a paragraph; may be given many times. Passages of plain
    /// English by default.
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// How many of the 32 bundled passages are used: more give narrower intervals and take longer.
    #[arg(long, value_name = "N", default_value_t = 12, conflicts_with = "text",
        value_parser = clap::value_parser!(u64).range(1..=32))]
    passages: u64,
    /// Seed of drawn sets, planted interactions and bootstraps.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    rows: RowsArg,
    /// Print everything as JSON instead of tables.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Zero,
    Mean,
    Resample,
}

pub fn run(args: &Args) -> Result<u8> {
    let rows = args.rows.open()?;
    let model = Model::load(args.model.name())?;
    let evaluator = ModelEvaluator::new(&model);
    let texts = texts(&model, &args.text, args.passages as usize)?;
    // Counted for the unigram model alone.
    let more = encoded_passages(&model, usize::MAX)?;
    let options = EmergenceOptions {
        of: args.of.target(),
        limit: args.limit,
        replacement: match args.action {
            By::Zero => Replacement::Zero,
            By::Mean => Replacement::Mean,
            By::Resample => Replacement::Resample,
        },
        order: args.order as usize,
        sets_of: Some(args.sets_of as usize),
        sets: args.sets.map(|sets| sets as usize),
        seed: args.seed,
    };
    let bar = output::Progress::bar(0, "sets");
    let start = std::time::Instant::now();
    let progress = |done, total| {
        bar.set_length(total);
        bar.inc(done);
    };
    let interrupted = interrupt::flag();
    let go_on = || !interrupted.load(Ordering::Relaxed);
    let mut measured = Vec::new();
    let found =
        Emergence::run(&evaluator, &texts, &more, &options, &progress, &go_on, &mut |so_far| {
            rows.keep(so_far)?;
            measured = so_far.to_vec();
            Ok(())
        })?;
    let status = if found.complete { exit::OK } else { exit::INTERRUPTED };
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let of = format!("{:?}", args.of).to_lowercase();
    if args.json {
        let mut value = serde_json::to_value(&found)
            .map_err(|e| crate::error::Error::internal(format!("the figures are not JSON: {e}")))?;
        value["work"] = "emergence".into();
        value["of"] = of.into();
        value["seconds"] = seconds.into();
        output::json(&value)?;
        rows.write(&measured)?;
        return Ok(status);
    }
    heading(&found, &of, &model.name, seconds);
    for scale in Scale::ALL {
        shares(&found, scale);
    }
    conclusion(&found);
    spectra(&found);
    unexplained(&found);
    interactions(&found);
    let path = rows.path().map(|path| escape(&path.display().to_string()));
    rows.write(&measured)?;
    if let Some(path) = path {
        output::line(format!("all {} sets: {path}", found.sets_run));
    }
    Ok(status)
}

fn heading(found: &Emergence, of: &str, model: &str, seconds: f64) {
    let (n, done) = (
        found.parts.len(),
        match found.replacement {
            Replacement::Zero => "zeroed",
            Replacement::Mean => "set to their means",
            Replacement::Resample => "set to their outputs on other texts",
        },
    );
    output::line(format!("{n} {of} of {}, {done}, in {seconds:.1} s", escape(model)));
    output::line(match found.measure {
        Measure::Sizes { up_to } => {
            format!("sets of 1 to {up_to} lesions, every size as likely, and every set of a size")
        }
        Measure::Subsets => "all subsets, each as likely: every lesion with probability 1/2".into(),
    });
    let run = (found.sets_used + found.dead) as u64;
    output::line(match found.exact {
        true => format!("all of them were run: {}", plural(run, "set")),
        false => format!("drawn from them: {}", plural(run, "different set")),
    });
    output::line(format!(
        "{}, {} tokens; loss of the intact model: {:.4} nats a token",
        plural(found.texts as u64, "text"),
        count(found.tokens as u64),
        found.baseline_loss
    ));
    if found.stride > 1 {
        output::line(format!("measured at one position of {}", found.stride));
    }
    output::line(format!(
        "dead and left out: {}, worse than a unigram model ({:.2} nats a token)",
        plural(found.dead as u64, "set"),
        found.unigram_loss
    ));
    if !found.complete {
        output::line("interrupted: what follows is of the texts so far");
    }
}

/// Prints the shares of one scale, cumulative.
fn shares(found: &Emergence, scale: Scale) {
    let name = match scale {
        Scale::Loss => "loss",
        Scale::Logit => "centred logit of the right token",
    };
    output::line(format!("\n{name}: variance of held-out sets explained, % [95%]"));
    let most = found.shares.iter().map(|of| of.orders.len()).max().unwrap_or(0).max(1);
    let with_dead = found.with_dead.iter().map(|of| (format!("{}*", of.function.name()), of));
    let rows: Vec<(String, &OrderShares)> = found
        .shares
        .iter()
        .map(|of| (of.function.name().to_owned(), of))
        .chain(with_dead)
        .filter(|(_, of)| of.scale == scale)
        .collect();
    for first in (0..most).step_by(COLUMNS) {
        let columns = first..most.min(first + COLUMNS);
        let heads: String =
            columns.clone().map(|order| format!("{:>21}", order_name(order + 1))).collect();
        output::line(format!("{:<11}{heads}{:>5}", "", "95%"));
        for (name, of) in &rows {
            let cell = |order: usize| of.orders.get(order).map_or("-".into(), percent);
            let cells: String =
                columns.clone().map(|order| format!("{:>21}", cell(order))).collect();
            let order = match (of.order_for_95, of.orders.len()) {
                (Some(order), _) => order.to_string(),
                (None, 0) => "-".into(),
                (None, orders) => format!(">{orders}"),
            };
            output::line(format!("{name:<11}{cells}{order:>5}"));
        }
    }
}

/// Names the column of an order.
fn order_name(order: usize) -> String {
    match order {
        1 => "singles".into(),
        2 => "and pairs".into(),
        3 => "and triples".into(),
        _ => format!("order {order}"),
    }
}

/// Formats a share and its interval in percent.
fn percent(estimate: &Estimate) -> String {
    let value = 100.0 * estimate.value;
    match estimate.interval {
        Some((low, high)) => format!("{value:.1} [{:.1}, {:.1}]", 100.0 * low, 100.0 * high),
        None => format!("{value:.1}"),
    }
}

/// Says what the tables come to, in sentences.
fn conclusion(found: &Emergence) {
    if !found.with_dead.is_empty() && found.dead > 0 {
        output::line("* with the dead sets");
    }
    output::line("");
    for scale in Scale::ALL {
        let of = |function: Function| -> Option<&OrderShares> {
            found.shares.iter().find(|of| of.function == function && of.scale == scale)
        };
        let (Some(model), Some(surrogate)) = (of(Function::Model), of(Function::Surrogate)) else {
            continue;
        };
        let name = match scale {
            Scale::Loss => "Loss",
            Scale::Logit => "Logit",
        };
        let ([first, ..], [reference, ..]) = (&model.orders[..], &surrogate.orders[..]) else {
            output::line(format!("{name}: too few sets to fit"));
            continue;
        };
        let points = |order: usize| {
            let gain = model.orders.get(order)?.value - model.orders.get(order - 1)?.value;
            Some(format!("{:.1}", 100.0 * gain))
        };
        let more = match (points(1), points(2)) {
            (Some(pairs), Some(triples)) => {
                format!(";\npairs add {pairs} points, triples {triples}.")
            }
            (Some(pairs), None) => format!(";\npairs add {pairs} points."),
            _ => ".".into(),
        };
        let percent = |estimate: &Estimate| percent(estimate).replacen(' ', "% ", 1);
        output::line(format!(
            "{name}: single lesions explain {} of the variance{more}\nTheir measured \
            effects added up, without a fit, predict {}.",
            percent(first),
            percent(&found.sum_of_parts[scale as usize])
        ));
        output::line(format!(
            "In the additive surrogate single lesions explain {}.",
            percent(reference)
        ));
        match &found.beyond_surrogate[scale as usize] {
            Some(beyond) => output::line(verdict("The model's", beyond)),
            None => output::line(
                "Not judged: the fits fail even on the surrogate's logit, which is additive. Too\n\
                few sets are alive.",
            ),
        }
        if let Some(beyond) = &found.beyond_surrogate_with_dead[scale as usize] {
            output::line(verdict("With the dead sets,", beyond));
        }
    }
    let planted: Vec<String> = found
        .planted
        .iter()
        .map(|p| format!("{} {} of {}", p.function.name(), p.named, p.terms.len()))
        .collect();
    output::line(format!(
        "Planted and found again ({:.2} nats): {}.",
        found.planted_nats,
        planted.join(", ")
    ));
}

/// Says whether the model has more high orders than its surrogate.
fn verdict(of: &str, beyond: &Estimate) -> String {
    let said = match Verdict::of(Some(beyond)) {
        Verdict::NotJudged => "an interval needs more than one text",
        Verdict::SumOfParts => "the whole is the sum of its parts here",
        Verdict::NotSumOfParts => "the whole is not the sum of its parts",
        Verdict::Undecided => "not enough to tell",
    };
    let verb = if of.ends_with(',') { "the model's have" } else { "have" };
    format!("{of} {verb} {} points less:\n{said}.", percent(beyond))
}

/// Prints the spectra of the model and its surrogate over all subsets.
fn spectra(found: &Emergence) {
    let shown = |function| matches!(function, Function::Model | Function::Surrogate);
    let shown: Vec<_> = found.spectra.iter().filter(|of| shown(of.function)).collect();
    let Some(orders) = shown.iter().map(|of| of.orders.len()).max() else { return };
    let columns = orders.min(8);
    let how = if shown.iter().all(|of| of.exact) { "exact" } else { "estimated" };
    output::line("\nall subsets, each as likely, dead ones too: variance on each order, %");
    output::line(format!("({how} Walsh-Fourier spectrum)"));
    let heads: String = (1..=columns).map(|order| format!("{order:>7}")).collect();
    output::line(format!("{:<16}{heads}", ""));
    for of in shown {
        let scale = match of.scale {
            Scale::Loss => "loss",
            Scale::Logit => "logit",
        };
        let cell = |order: &Estimate| format!("{:>7.1}", 100.0 * order.value);
        let cells: String = of.orders.iter().take(columns).map(cell).collect();
        output::line(format!("{:<16}{cells}", format!("{} {scale}", of.function.name())));
    }
}

/// Prints where what low orders leave of the model is.
fn unexplained(found: &Emergence) {
    let [loss, logit] = &found.unexplained[..] else { return };
    output::line("\nleft of the model after singles, and pairs; % of the variance over all sets");
    let columns = ["loss", "and pairs", "logit", "and pairs"].map(|c| format!("{c:>11}"));
    output::line(format!("{:<12}{:>7}{}", "", "sets", columns.concat()));
    let figure = |value: Option<f64>| {
        value.map_or(format!("{:>11}", "-"), |value| format!("{:>11.2}", 100.0 * value))
    };
    for (what, loss, logit) in
        [("lesions", &loss.by_size, &logit.by_size), ("layer", &loss.by_layer, &logit.by_layer)]
    {
        let mut order: Vec<usize> = (0..loss.len().min(logit.len())).collect();
        if what == "layer" {
            let left = |at: &usize| loss[*at].after_order_1;
            order.sort_by(|a, b| left(b).total_cmp(&left(a)));
            order.truncate(LAYERS);
        }
        for at in order {
            let cells: String = [&loss[at], &logit[at]]
                .iter()
                .map(|left| figure(Some(left.after_order_1)) + &figure(left.after_order_2))
                .collect();
            let name = match what {
                "layer" => format!("in L{}", loss[at].at),
                _ => plural(loss[at].at as u64, "lesion"),
            };
            output::line(format!("{name:<12}{:>7}{cells}", loss[at].sets));
        }
    }
}

/// Prints the strongest interactions, first those in the loss, then others in the logit.
fn interactions(found: &Emergence) {
    if found.interactions.is_empty() {
        return;
    }
    let mut shown: Vec<&Interaction> = found.interactions.iter().take(INTERACTIONS).collect();
    let mut by_logit: Vec<&Interaction> = found.interactions.iter().collect();
    by_logit.sort_by(|a, b| b.logit.value.abs().total_cmp(&a.logit.value.abs()));
    for interaction in by_logit.into_iter().take(INTERACTIONS) {
        if !shown.contains(&interaction) {
            shown.push(interaction);
        }
    }
    output::line("\nstrongest interactions beyond all smaller sets, nats a token [95% over texts]");
    output::line(format!("{:<NAMES$}{:>24}{:>24}", "", "loss", "logit"));
    for interaction in shown {
        let parts: Vec<String> = interaction.parts.iter().map(ToString::to_string).collect();
        let mut parts = parts.join(" ");
        if parts.len() > NAMES {
            output::line(std::mem::take(&mut parts));
        }
        output::line(format!(
            "{parts:<NAMES$}{:>24}{:>24}",
            nats(&interaction.loss),
            nats(&interaction.logit)
        ));
    }
}

fn nats(estimate: &Estimate) -> String {
    match estimate.interval {
        Some((low, high)) => format!("{:+.2} [{low:+.2}, {high:+.2}]", estimate.value),
        None => format!("{:+.2}", estimate.value),
    }
}
