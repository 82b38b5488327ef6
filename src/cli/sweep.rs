//! `glitch sweep vocabulary|insert|blocks|heads|mlps|neurons|experts|routers|states|weights|pairs`.

use clap::Subcommand;

use super::args::{ModelArg, RowsArg};
use super::rows::{SHOWN, more};
use super::{exit, insert, lesions, output, pairs};
use crate::error::Result;
use crate::evaluate::ModelEvaluator;
use crate::model::Model;
use crate::sweep::{Target, TokenVerdict, VocabularySweep};
use crate::text::{escape, fit};

/// Map a whole model: test every token, or remove every head, MLP, neuron or suspect weight in
/// turn.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every token: how near it is to the never-trained ones, and whether the model can repeat it.
    Vocabulary(VocabularyArgs),
    /// Insert every token into prompts: after which ones does the model say a fixed text, whatever
    /// the prompt is?
    Insert(insert::Args),
    /// Lesion (zero) what every layer's attention (state space, time mixing) and MLP add, in turn.
    Blocks(lesions::Args),
    /// Lesion (zero) every attention head in turn.
    Heads(lesions::Args),
    /// Lesion (zero) every MLP in turn.
    Mlps(lesions::Args),
    /// Lesion (zero) every MLP neuron in turn (a large model has tens of thousands: see --limit).
    Neurons(lesions::Args),
    /// Lesion (zero) every expert of a mixture of experts in turn.
    Experts(lesions::Args),
    /// Zero the logits of every router in turn: it has no preference then.
    Routers(lesions::Args),
    /// Zero the recurrent state of every head or channel in turn, after each position: it has no
    /// memory then.
    States(lesions::Args),
    /// Lesion (zero) the single weights whose product with their largest input is largest ("super
    /// weights").
    Weights(lesions::WeightArgs),
    /// Lesion two at a time: what do they do together beyond what each does alone?
    Pairs(pairs::Args),
}

#[derive(clap::Args)]
struct VocabularyArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    rows: RowsArg,
    /// Test the echo of the N most suspect tokens only, and of as many controls.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print a JSON summary instead of the table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<u8> {
    let (options, target) = match args.command {
        Command::Vocabulary(options) => return vocabulary(&options),
        Command::Insert(args) => return insert::run(&args),
        Command::Blocks(options) => (options, Target::Blocks),
        Command::Heads(options) => (options, Target::Heads),
        Command::Mlps(options) => (options, Target::Mlps),
        Command::Neurons(options) => (options, Target::Neurons),
        Command::Experts(options) => (options, Target::Experts),
        Command::Routers(options) => (options, Target::Routers),
        Command::States(options) => (options, Target::States),
        Command::Weights(options) => return lesions::run_weights(&options),
        Command::Pairs(args) => return pairs::run(&args),
    };
    lesions::run(&options, target)
}

fn vocabulary(options: &VocabularyArgs) -> Result<u8> {
    let rows = options.rows.open()?;
    let model = Model::load(options.model.name())?;
    let evaluator = ModelEvaluator::new(&model);
    let bar = output::Progress::bar(0, "tokens");
    let start = std::time::Instant::now();
    let sweep = VocabularySweep::run(&model, &evaluator, options.limit, &|done, total| {
        bar.set_length(total);
        bar.inc(done);
    })?;
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let count = |v: TokenVerdict| sweep.rows.iter().filter(|r| r.verdict == v).count();
    let verdicts = [
        TokenVerdict::Glitch,
        TokenVerdict::Unrepeatable,
        TokenVerdict::Weak,
        TokenVerdict::Ordinary,
        TokenVerdict::Special,
        TokenVerdict::Unreachable,
        TokenVerdict::Undecodable,
        TokenVerdict::Untested,
    ];
    let name = |v: &TokenVerdict| {
        serde_json::to_value(v).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    };
    if options.json {
        let counts: serde_json::Map<_, _> =
            verdicts.iter().map(|v| (name(v), count(*v).into())).collect();
        output::json(&serde_json::json!({
            "work": "vocabulary", "tokens": sweep.rows.len(), "tokens_tested": sweep.tested,
            "seconds": seconds,
            "tested_per_s": sweep.tested as f64 / seconds,
            "prompt": sweep.prompt.name, "prompt_length": sweep.prompt.base.len(),
            "median_ordinary": sweep.median_ordinary,
            "controls": sweep.controls, "controls_flagged": sweep.controls_flagged,
            "verdicts": counts,
        }))?;
        rows.write(&sweep.rows)?;
        return Ok(exit::OK);
    }
    output::line(format!(
        "{} of {} tokens of {} tested in {seconds:.1} s, prompt `{}`, ordinary tokens are repeated \
        with probability {:.3} (median)",
        sweep.tested,
        sweep.rows.len(),
        escape(&model.name),
        sweep.prompt.name,
        sweep.median_ordinary
    ));
    if sweep.median_ordinary < crate::sweep::LEAST_ECHO {
        output::line(
            "The model cannot repeat ordinary tokens: the echo test is not used, rows are in order \
            of the indicator.",
        );
    }
    output::line(
        verdicts
            .iter()
            .filter(|v| count(**v) > 0)
            .map(|v| format!("{} {}", count(*v), name(v)))
            .collect::<Vec<_>>()
            .join(", "),
    );
    output::line(format!(
        "the same thresholds flag {} of {} controls",
        sweep.controls_flagged, sweep.controls
    ));
    output::line(format!(
        "\n{:>7}  {:<20} {:>9} {:>9} {:>8}  {:<12} class",
        "id", "token", "indicator", "repeated", "q", "verdict"
    ));
    // Every token that is not repeated; where there are few, the next ones for comparison.
    let last = sweep.rows.iter().rposition(|row| row.unrepeatable.is_some()).map_or(0, |at| at + 1);
    let shown = last.max(SHOWN).min(sweep.rows.len());
    for row in &sweep.rows[..shown] {
        let repeated = row.repeated().map_or("-".into(), |p| format!("{p:.2e}"));
        let q = row.q_value.map_or("-".into(), |q| format!("{q:.1e}"));
        output::line(format!(
            "{:>7}  {:<20} {:>9.4} {repeated:>9} {q:>8}  {:<12} {}",
            row.id,
            fit(&escape(&row.text), 20),
            row.indicator,
            name(&row.verdict),
            row.unrepeatable.map_or("", |why| why.class.name())
        ));
    }
    more(rows, &sweep.rows, shown)?;
    Ok(exit::OK)
}
