//! `glitch model show|logits|complete|bench`.

use std::time::Instant;

use clap::Subcommand;

use super::args::{MODEL_HELP, ModelArg};
use super::{exit, output};
use crate::edit::{Component, Matrix, Trial};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator as _, ModelEvaluator, Request};
use crate::model::batch::Row;
use crate::model::{Config, Forward, Mixer, Model, Read};
use crate::text::escape;

/// Look at a model: its parts, its logits, its speed.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Architecture, components, fingerprints, noise floor.
    Show {
        #[command(flatten)]
        model: RequiredModel,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Logits of a sequence of token ids at all positions, as JSON `{"logits": [[...], ...]}`.
    Logits {
        #[command(flatten)]
        model: RequiredModel,
        /// Token ids, comma-separated.
        #[arg(long, value_delimiter = ',', required = true)]
        ids: Vec<u32>,
    },
    /// The most probable continuation of a text, token by token, and the ids of both.
    #[command(override_usage = "glitch model complete [OPTIONS] <MODEL> <TEXT>\n       \
        glitch model complete [OPTIONS] --model <MODEL> <TEXT>")]
    Complete {
        #[arg(value_names = ["MODEL", "TEXT"], num_args = 1..=2, required = true,
            help = "The model and the text to continue; the text alone with --model")]
        arguments: Vec<String>,
        #[arg(long, help = MODEL_HELP)]
        model: Option<String>,
        /// Tokens to add.
        #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=4096))]
        tokens: u32,
    },
    /// Tokens per second of plain forwards with logits at the last position, median of several.
    Bench {
        #[command(flatten)]
        model: ModelArg,
        /// Rows of a batch.
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
        batch: u32,
        /// Tokens of a row.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
        length: u32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// A model that has to be named, as an argument or as `--model`.
#[derive(clap::Args)]
struct RequiredModel {
    #[arg(value_name = "MODEL", help = MODEL_HELP, required_unless_present = "option")]
    argument: Option<String>,
    #[arg(
        long = "model",
        value_name = "MODEL",
        conflicts_with = "argument",
        help = "The same as the argument MODEL"
    )]
    option: Option<String>,
}

impl RequiredModel {
    fn load(&self) -> Result<Model> {
        Model::load(self.option.as_deref().or(self.argument.as_deref()).unwrap_or_default())
    }
}

pub fn run(args: Args) -> Result<u8> {
    match args.command {
        Command::Show { model, json } => show(&model.load()?, json)?,
        Command::Logits { model, ids } => logits(&model.load()?, ids)?,
        Command::Complete { arguments, model, tokens } => {
            let (model, text) = match (&arguments[..], &model) {
                ([model, text], None) | ([text], Some(model)) => (model, text),
                ([_], None) => return Err(Error::request("which model? give MODEL and TEXT")),
                _ => return Err(Error::request("the model is given twice: MODEL and --model")),
            };
            complete(&Model::load(model)?, text, tokens as usize)?
        }
        Command::Bench { model, batch, length, json } => {
            bench(&Model::load(model.name())?, batch as usize, length as usize, json)?
        }
    }
    Ok(exit::OK)
}

fn show(model: &Model, json: bool) -> Result<()> {
    let c = &model.config;
    let noise = ModelEvaluator::new(model).noise_floor()?;
    if json {
        let value = serde_json::json!({
            "name": model.name, "model_type": c.model_type, "parameters": model.parameters(),
            "vocab_size": c.vocab_size,
            "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim,
            "mixers": c.mixers.iter().map(|m| format!("{m:?}").to_lowercase()).collect::<Vec<_>>(),
            "tie_word_embeddings": c.tie_word_embeddings, "bos_token_id": c.bos_token_id,
            "eos_token_ids": c.eos_token_ids,
            "fingerprint": model.fingerprint, "tokenizer_fingerprint": model.tokenizer_fingerprint,
            "noise_floor": noise,
        });
        output::json(&value)?;
        return Ok(());
    }
    let window = match c.sliding_window.iter().flatten().next() {
        Some(w) => format!(", window {w} in {} layers", c.sliding_window.iter().flatten().count()),
        None => String::new(),
    };
    let rows = [
        ("model", escape(&model.name)),
        ("family", format!("{}, {:.1}M parameters", c.model_type, model.parameters() as f64 / 1e6)),
        (
            "layers",
            format!(
                "{} of d_model {}: {}{window}",
                c.num_hidden_layers,
                c.hidden_size,
                blocks(c).join("; ")
            ),
        ),
        (
            "vocabulary",
            format!(
                "{} tokens, {} head",
                c.vocab_size,
                if c.tie_word_embeddings { "tied" } else { "separate" }
            ),
        ),
        (
            "bos, eos",
            format!(
                "{}, {:?}",
                c.bos_token_id.map_or("none".into(), |b| b.to_string()),
                c.eos_token_ids
            ),
        ),
        ("components", components(c)),
        ("weights", weights(c)),
        ("fingerprint", model.fingerprint.clone()),
        (
            "tokenizer",
            model.tokenizer_fingerprint.clone().unwrap_or_else(|| "none (token ids only)".into()),
        ),
        (
            "noise floor",
            format!("{noise:.2e} (largest change when only the batch shape changes, nats or bits)"),
        ),
    ];
    rows.iter().for_each(|(name, value)| output::line(format!("{name:<12} {value}")));
    Ok(())
}

/// Describes the blocks of the layers.
fn blocks(c: &Config) -> Vec<String> {
    let mut blocks = Vec::new();
    if c.mixers.contains(&Mixer::Attention) {
        let (heads, kv) = (c.num_attention_heads, c.num_key_value_heads);
        blocks.push(format!(
            "attention with {heads} heads ({kv} for keys and values) of {}",
            c.head_dim
        ));
    }
    if let Some(ssm) = &c.ssm {
        let heads =
            if ssm.num_heads > 0 { format!(" in {} heads", ssm.num_heads) } else { String::new() };
        blocks.push(format!(
            "state space with {} channels{heads}, states of {}",
            ssm.intermediate_size, ssm.state_size
        ));
    }
    match &c.rwkv {
        Some(rwkv) if rwkv.num_heads > 0 => {
            blocks.push(format!("time mixing with {} heads of {}", rwkv.num_heads, rwkv.head_dim()))
        }
        Some(rwkv) => blocks.push(format!("time mixing with {} channels", rwkv.attention_size)),
        None => {}
    }
    let sparse = (0..c.num_hidden_layers).filter(|layer| c.is_sparse(*layer)).count();
    if let Some(experts) = c.experts.as_ref().filter(|_| sparse > 0) {
        let (n, k, width) =
            (experts.num_experts, experts.num_experts_per_tok, experts.moe_intermediate_size);
        blocks.push(format!("{k} of {n} experts of {width} in {sparse} layers"));
    }
    if c.has_mlp() && sparse < c.num_hidden_layers {
        blocks.push(format!("d_mlp {}", c.intermediate_size));
    }
    blocks
}

/// The addresses of the first layer that has each kind of component, with the last of each kind.
fn components(c: &Config) -> String {
    let kinds = [
        Component::Head { layer: 0, head: 0 },
        Component::Channel { layer: 0, channel: 0 },
        Component::Neuron { layer: 0, neuron: 0 },
        Component::Expert { layer: 0, expert: 0 },
        Component::State { layer: 0, part: Some(0) },
    ];
    let mut names = vec!["embed".to_owned(), format!("L0..L{}:", c.num_hidden_layers - 1)];
    let wholes = ["attn", "ssm", "time_mix", "mlp", "channel_mix", "router", "conv", "gate", "dt"];
    let shifts = ["time_mix.shift", "channel_mix.shift", "state"];
    let exists = |name: &&str| {
        format!("L0.{name}")
            .parse::<Component>()
            .is_ok_and(|like| c.all_like(like).next().is_some())
    };
    names.extend(
        wholes.iter().chain(&shifts).filter(|name| exists(name)).map(|name| format!(".{name}")),
    );
    for like in kinds {
        let most = (0..c.num_hidden_layers).map(|layer| c.count_in(layer, like)).max().unwrap_or(0);
        if most > 0 {
            let name = like.to_string().replace("L0.", ".");
            names.push(format!("{name}..{}", most - 1));
        }
    }
    names.join(" ")
}

/// The single-weight addresses there are.
fn weights(c: &Config) -> String {
    let exists =
        |m: &Matrix| (0..c.num_hidden_layers).any(|layer| c.matrix_shape(layer, *m).is_some());
    let names: Vec<&str> = Matrix::ALL.into_iter().filter(exists).map(Matrix::name).collect();
    format!("L0.NAME[out,in] with NAME of {}", names.join(" "))
}

fn logits(model: &Model, ids: Vec<u32>) -> Result<()> {
    let forward = Forward { rows: vec![Row::new(ids)], ..Forward::default() };
    let logits = model.logits(&model.forward(&forward)?.residual);
    let rows: Vec<&[f32]> = logits.chunks(model.config.vocab_size).collect();
    output::json(&serde_json::json!({ "logits": rows }))
}

fn complete(model: &Model, text: &str, tokens: usize) -> Result<()> {
    let ids = model.encode(text)?;
    if ids.is_empty() {
        return Err(Error::request("the text has no tokens"));
    }
    let request = Request::new(Trial::new(&ids[..], [])).generating(tokens);
    let generated = ModelEvaluator::new(model).observe_alone(&request)?.generated;
    output::line(format!("{}{}", escape(text), escape(&model.decode(&generated))));
    output::line(format!("ids {ids:?} {generated:?}"));
    Ok(())
}

/// Arbitrary ids, those of the peer script that benches/forward.sh compares with.
fn bench(model: &Model, batch: usize, length: usize, json: bool) -> Result<()> {
    let span = model.config.vocab_size.min(49_000);
    let rows: Vec<Row> = (0..batch)
        .map(|b| {
            Row::new(
                (0..length).map(|i| ((b * length + i) * 7919 % span) as u32).collect::<Vec<_>>(),
            )
        })
        .collect();
    let reads: Vec<Read> = (1..=batch)
        .map(|b| Read {
            token: b * length - 1,
            target: None,
            reference: None,
            keep: false,
            centre: false,
        })
        .collect();
    let forward = Forward { rows, ..Forward::default() };
    let mut seconds = Vec::new();
    for _ in 0..8 {
        let start = Instant::now();
        let output = model.forward(&forward)?;
        std::hint::black_box(model.read(&output.residual, &reads));
        seconds.push(start.elapsed().as_secs_f64());
    }
    let mut seconds = seconds.split_off(2);
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let rate = (batch * length) as f64 / median;
    if json {
        let value = serde_json::json!({
            "work": "forward", "batch": batch, "length": length, "median_s": median,
            "tokens_per_s": rate,
        });
        output::json(&value)?;
    } else {
        output::line(format!(
            "{rate:.0} tokens/s: {batch} x {length} tokens in {:.1} ms (median of {})",
            1e3 * median,
            seconds.len()
        ));
    }
    Ok(())
}
