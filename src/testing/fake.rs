//! An evaluator without a model, for tests: a function of the trial with planted glitches.

use crate::case::{Case, Comment, Expectation, SCHEMA_VERSION};
use crate::echo::EchoPrompt;
use crate::edit::{Action, Component, Edit, Matrix, Trial};
use crate::error::Result;
use crate::evaluate::{Evaluator, Observation, Request};
use crate::model::{
    Activation, Config, Distributions, Mixer, ModelRef, NormKind, QkNorm, Residual, Rotary,
};
use crate::mutate::Context;
use crate::mutate::interactions::{Interaction, Interactions};
use crate::mutate::suffix::Promising;
use crate::pipeline::Finding;
use crate::replicate::{NewEcho, NewPrompts};
use crate::vocabulary::{Splits, Vocabulary};

/// The fake evaluator. Planted glitches: the tokens 666 (divergence, loss), 667 (not finite), 668
/// (loops) and 669 (cannot be repeated), and lesions of `L1.head2`.
#[derive(Debug, Default)]
pub struct FakeEvaluator;

const VOCABULARY: usize = 700;

pub fn config() -> Config {
    config_of(4)
}

pub fn config_of(layers: usize) -> Config {
    Config {
        model_type: "llama".into(),
        vocab_size: VOCABULARY,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: layers,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 4,
        max_position_embeddings: 128,
        latent: None,
        mixers: vec![Mixer::Attention; layers],
        ssm: None,
        rwkv: None,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        residual: Residual::PreNorm,
        qk_norm: QkNorm::Off,
        activation: Activation::Silu,
        gated_mlp: true,
        attention_scale: 0.5,
        rope: vec![Rotary { theta: 1e4, dim: 4, scaling: None }; layers],
        sliding_window: vec![None; layers],
        embedding_scale: 1.0,
        experts: None,
        tie_word_embeddings: true,
        bos_token_id: Some(0),
        eos_token_ids: vec![1],
    }
}

pub fn vocabulary() -> Vocabulary {
    Vocabulary {
        anomalous: (660..670).collect(),
        ordinary: (25..500).collect(),
        special: vec![0, 1],
        splits: Splits::new((0..VOCABULARY as u32).map(spelling).collect()),
        ..Vocabulary::default()
    }
}

/// Spells the tokens 2 to 511 in binary without the leading digit, so that they are all the texts
/// of one to eight digits, and every cut of one is a split.
fn spelling(id: u32) -> Option<String> {
    (2..512).contains(&id).then(|| format!("{id:b}")[1..].to_owned())
}

pub fn echo() -> EchoPrompt {
    EchoPrompt { name: "fake".into(), base: [5, 40, 6, 40, 7].into(), slots: vec![1, 3], token: 40 }
}

/// Twenty passages of thirty ordinary tokens, and twenty echo prompts.
pub fn new_prompts() -> NewPrompts {
    let passage = |i: u32| {
        let ids = (0..30).map(|j| if j == 0 { 0 } else { 30 + (i * 37 + j * 11) % 400 });
        (format!("passage {i}"), ids.collect())
    };
    let echo = |i: u32| {
        let base = [50 + i, 80 + i, 6, 80 + i, 7];
        let (name, slots, token) = ("fake".into(), vec![1, 3], 80 + i);
        NewEcho::new(EchoPrompt { name, base: base.into(), slots, token })
    };
    NewPrompts { passages: (0..20).map(passage).collect(), echo: (0..20).map(echo).collect() }
}

/// A context of mutators with the vocabulary and nothing else.
pub fn context<'a>(config: &'a Config, vocabulary: &'a Vocabulary) -> Context<'a> {
    Context {
        config,
        vocabulary,
        seeds: &[],
        echo: &[],
        weights: &[],
        stored: None,
        interactions: &[],
        suffixes: &[],
        routing: &[],
        layers: None,
    }
}

pub fn weights() -> Vec<Component> {
    vec![Component::Weight { layer: 1, matrix: Matrix::Down, out: 3, input: 4 }]
}

pub fn suffixes() -> Vec<Promising> {
    vec![Promising { base: [5, 6, 7].into(), places: vec![vec![8, 9], vec![10], vec![11, 12]] }]
}

pub fn interactions() -> Interactions {
    let components: Vec<Component> =
        (0..4).flat_map(|layer| (0..4).map(move |head| Component::Head { layer, head })).collect();
    let every = (0..16).flat_map(|a| (a + 1..16).map(move |b| (a, b)));
    let pairs = every.zip((0..120).rev()).map(|((a, b), i)| Interaction {
        a,
        b,
        nats: 0.01 * f64::from(i) - 0.2,
    });
    let (base, continuation) = (vec![0, 30, 31, 32, 33], vec![34, 35]);
    Interactions {
        prompt: "twin".into(),
        base,
        continuation,
        alone: vec![0.01; 16],
        components,
        pairs: pairs.collect(),
    }
}

/// Returns a case with nothing in it but the finding.
pub fn case_of(finding: &Finding) -> Case {
    Case {
        schema_version: SCHEMA_VERSION,
        id: String::new(),
        model: ModelRef { name: "fake".into(), fingerprint: "f".into(), tokenizer: None },
        base: finding.trial.base.to_vec(),
        continuation: finding.trial.continuation.to_vec(),
        edits: finding.trial.edits.clone(),
        verdict: finding.verdict.clone(),
        control_seed: finding.control_seed,
        search: finding.search.clone(),
        replication: finding.replication.clone(),
        sampled: finding.sampled,
        deficits: None,
        against: None,
        expectation: Expectation::Reproduces,
        minimization: finding.minimization.clone(),
        localization: None,
        lineage: finding.lineage.clone(),
        top_before: vec![],
        top_after: vec![],
        comment: Comment::default(),
    }
}

/// Returns a number in `[0, 1)` that is a function of its input.
fn hash(value: u64) -> f64 {
    let mixed = (value ^ (value >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed ^ (mixed >> 29)) >> 11) as f64 / (1_u64 << 53) as f64
}

fn observe(request: &Request) -> Observation {
    let trial: &Trial = &request.trial;
    let layout = trial.layout();
    let prompt = &layout.ids[..layout.prompt_len];
    let continuation = &layout.ids[layout.prompt_len..];
    let head = Component::Head { layer: 1, head: 2 };
    let lesioned = trial.edits.iter().any(|e| match e {
        Edit::Lesion { component, action, .. } => *component == head && *action != Action::Mean,
        _ => false,
    });
    let broken = prompt.contains(&666) || lesioned;
    let stuck = prompt.contains(&669);
    // Ordinary edits move the distribution a little.
    let sum: u64 =
        layout.ids.iter().map(|&id| u64::from(id)).sum::<u64>() + trial.edits.len() as u64;
    let mild = 0.02 * hash(sum);
    let mut log_probs = Vec::new();
    let mut rows = Vec::new();
    for read in 0..continuation.len().max(1) {
        let target = continuation.get(read).copied().unwrap_or(2) as usize % VOCABULARY;
        let peak = if broken || stuck { 2 } else { target };
        let likely = 0.9 - mild;
        let mut row = vec![((1.0 - likely) / (VOCABULARY - 1) as f64).ln() as f32; VOCABULARY];
        row[peak] = likely.ln() as f32;
        if read < continuation.len() {
            log_probs.push(row[target]);
        }
        rows.push(row);
    }
    let divergence = |reference: &Distributions| {
        let js = |p: &[f32], q: &[f32]| {
            let term = |a: f64, m: f64| if a > 0.0 { a * (a / m).log2() } else { 0.0 };
            let pair = |(&x, &y): (&f32, &f32)| {
                let (x, y) = (f64::from(x).exp(), f64::from(y).exp());
                0.5 * (term(x, (x + y) / 2.0) + term(y, (x + y) / 2.0))
            };
            p.iter().zip(q).map(pair).sum::<f64>() as f32
        };
        rows.iter().enumerate().map(|(i, row)| js(row, reference.row(i))).collect()
    };
    let generated = |i: u32| if prompt.contains(&668) { 3 } else { 30 + i };
    Observation {
        disagreement_bits: Vec::new(),
        log_probs,
        entropy: vec![if broken { 3.0 } else { 1.0 }; rows.len()],
        top: rows
            .iter()
            .map(|row| {
                vec![(
                    (0..VOCABULARY).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32,
                    -0.1,
                )]
            })
            .collect(),
        divergence_bits: request.reference.as_deref().map(divergence).unwrap_or_default(),
        mean_log_probs: Vec::new(),
        finite: !prompt.contains(&667),
        generated: (0..request.generate as u32).map(generated).collect(),
        generated_entropy: vec![if broken { 3.0 } else { 1.0 }; request.generate],
        sketch: u64::from(broken) * 5 + (hash(sum) * 4.0) as u64,
        routing: Vec::new(),
        state_norms: Vec::new(),
        memory: None,
        elsewhere: Vec::new(),
        distributions: request
            .keep_distributions
            .then(|| Distributions { vocabulary: VOCABULARY, log_probs: rows.concat() }.into()),
    }
}

impl Evaluator for FakeEvaluator {
    fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>> {
        Ok(requests.iter().map(observe).collect())
    }

    fn observe_alone(&self, request: &Request) -> Result<Observation> {
        Ok(observe(request))
    }
}
