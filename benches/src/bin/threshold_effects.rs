//! Power: effects just above the threshold, followed up like any finding.
//!
//! Lesions: the head or recurrent state whose removal costs most on the seed prompts has a real
//! effect. In each prompt it is scaled down by as little as still fails against controls of the
//! search, which puts it at the threshold. Tokens: those that the echo prompt gets repeated so
//! badly that they fail, and no worse. How many of these are confirmed, and how many consistent?
//!
//! `threshold_effects MODEL`, one line for each effect.

use anyhow::{Context as _, Result};
use glitch::case::Lineage;
use glitch::echo::EchoPrompt;
use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::{Evaluator as _, ModelEvaluator, Request};
use glitch::minimize::MinimizeOptions;
use glitch::model::Model;
use glitch::oracle::{Judge as _, ModelJudge, OracleKind, Verdict};
use glitch::pipeline::{Explanation, Finding, FollowUp, Followed, ModelExplainer, Steps};
use glitch::replicate::{NewPrompts, Replicator};
use glitch::stats;
use glitch::vocabulary::Vocabulary;
use glitch_benches::seed_prompts;

const CONTINUATION: usize = 8;
/// Tokens that are followed up.
const TOKENS: usize = 20;
/// Halvings of the strength.
const STEPS: usize = 12;

#[derive(Default)]
struct Described {
    confirmed: bool,
}

impl Steps for Described {
    fn confirmed(&mut self, _: &Verdict, holds: bool) -> glitch::Result<()> {
        self.confirmed = holds;
        Ok(())
    }

    fn minimized(&mut self, _: &Finding) -> glitch::Result<Explanation> {
        Ok(Explanation::Described)
    }
}

/// An effect at the threshold.
struct Planted {
    name: String,
    oracle: OracleKind,
    seed: u64,
    trial: Trial,
    search: Verdict,
}

fn main() -> Result<()> {
    let name = std::env::args().nth(1).context("threshold_effects MODEL")?;
    let model = Model::load(&name)?;
    let evaluator = ModelEvaluator::new(&model);
    let vocabulary = Vocabulary::of(&model);
    let floor = evaluator.score_noise_floor()?;
    let (lesions, without) = lesions(&evaluator, &vocabulary, floor)?;
    println!("{name}: in {without} prompts the strongest lesion does not fail");
    let (tokens, used) = tokens(&evaluator, &vocabulary, floor)?;
    for (kind, planted, used) in [("lesions", lesions, vec![]), ("tokens", tokens, vec![used])] {
        let new_prompts = NewPrompts::new(&model, &vocabulary, &used)?;
        follow(&evaluator, &vocabulary, &new_prompts, floor, kind, planted)?;
    }
    Ok(())
}

/// Returns the strongest lesion of each seed prompt where it fails, scaled to the threshold, and
/// the number of prompts where it does not.
fn lesions(
    evaluator: &ModelEvaluator,
    vocabulary: &Vocabulary,
    floor: f64,
) -> Result<(Vec<Planted>, usize)> {
    let (model, config) = (evaluator.model, &evaluator.model.config);
    let prompts = seed_prompts(model, CONTINUATION)?;
    let all: Vec<Component> =
        [Component::Head { layer: 0, head: 0 }, Component::State { layer: 0, part: Some(0) }]
            .into_iter()
            .flat_map(|like| config.all_like(like))
            .collect();
    let mut costs = Vec::new();
    for &component in &all {
        let lesion = Edit::lesion(component, Action::Zero);
        let requests: Vec<Request> =
            prompts.iter().map(|p| Request::new(p.with_edits(vec![lesion.clone()]))).collect();
        let losses: Vec<f64> = evaluator.observe(&requests)?.iter().map(|o| o.loss()).collect();
        costs.push((losses.iter().sum::<f64>(), component));
    }
    let (_, strongest) =
        costs.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).context("no head and no state")?;
    let (mut planted, mut without) = (Vec::new(), 0);
    for (seed, prompt) in prompts.iter().enumerate() {
        let oracle = OracleKind::LossBlowup;
        let judge = ModelJudge::new(evaluator, config, vocabulary, oracle, seed as u64, floor);
        let at = |strength: f32| {
            let action = Action::Scale { factor: 1.0 - strength };
            prompt.with_edits(vec![Edit::lesion(strongest, action)])
        };
        let fails = |strength: f32| -> Result<bool> {
            Ok(judge.judge(std::slice::from_ref(&at(strength)))?[0].fails())
        };
        if !fails(1.0)? {
            without += 1;
            continue;
        }
        let (mut low, mut high) = (0.0f32, 1.0f32);
        for _ in 0..STEPS {
            let middle = 0.5 * (low + high);
            if fails(middle)? { high = middle } else { low = middle }
        }
        let search = judge.judge(std::slice::from_ref(&at(high)))?.remove(0);
        let name = format!("prompt {seed}: {strongest} scaled by {:.3}", 1.0 - high);
        planted.push(Planted { name, oracle, seed: seed as u64, trial: at(high), search });
    }
    Ok((planted, without))
}

/// Returns the tokens that fail the best echo prompt by the least, and the prompt.
fn tokens(
    evaluator: &ModelEvaluator,
    vocabulary: &Vocabulary,
    floor: f64,
) -> Result<(Vec<Planted>, EchoPrompt)> {
    let model = evaluator.model;
    let (prompt, _) = EchoPrompt::ranked(model, evaluator, &vocabulary.ordinary)?.swap_remove(0);
    let ids: Vec<u32> = (0..model.config.vocab_size as u32)
        .filter(|id| !vocabulary.special.contains(id) && *id != prompt.token)
        .collect();
    let repeated = prompt.probabilities(evaluator, &ids)?;
    let ordinary = prompt.probabilities(evaluator, &[prompt.token])?[0];
    let mut bits: Vec<(f64, u32)> =
        repeated.iter().zip(ids).map(|(p, id)| ((ordinary / p).log2(), id)).collect();
    bits.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut planted = Vec::new();
    let oracle = OracleKind::Echo;
    let judge = ModelJudge::new(evaluator, &model.config, vocabulary, oracle, 0, floor);
    for (bits, id) in bits.into_iter().filter(|(bits, _)| *bits >= oracle.oracle().minimum()) {
        let trial = prompt.with_token(id);
        let search = judge.judge(std::slice::from_ref(&trial))?.remove(0);
        if search.fails() {
            let name = format!("token {id} ({bits:.2} bits)");
            planted.push(Planted { name, oracle, seed: 0, trial, search });
        }
        if planted.len() == TOKENS {
            break;
        }
    }
    Ok((planted, prompt))
}

/// Follows the effects up and prints what became of each.
fn follow(
    evaluator: &ModelEvaluator,
    vocabulary: &Vocabulary,
    new_prompts: &NewPrompts,
    floor: f64,
    kind: &str,
    planted: Vec<Planted>,
) -> Result<()> {
    let model = evaluator.model;
    let replicator = Some(Replicator { prompts: new_prompts, null: false });
    let reference = model.reference();
    let explainer = ModelExplainer {
        evaluator,
        vocabulary,
        model: &reference,
        new_prompts: None,
        against: None,
        attribution: None,
    };
    let (all, mut confirmed, mut consistent) = (planted.len() as u64, 0u64, 0u64);
    for Planted { name, oracle, seed, trial, search } in planted {
        let judge = ModelJudge::new(evaluator, &model.config, vocabulary, oracle, seed, floor);
        let (score, threshold) = (search.score, search.threshold);
        // Nothing is reduced: that would change the effect.
        let options = MinimizeOptions { max_calls: 0, ..Default::default() };
        let lineage =
            Lineage { seed: 0, evaluation: 0, mutators: vec![], parent: "planted".into() };
        let pipeline = FollowUp { judge: &judge, options, replicator, explainer: &explainer };
        let mut steps = Described::default();
        let followed = pipeline.run(trial, Some(search), lineage, &mut steps)?;
        confirmed += u64::from(steps.confirmed);
        let outcome = match followed {
            Followed::Dropped => "not confirmed".to_owned(),
            Followed::Case { case, .. } => {
                let found = case.replication.context("these can be put anywhere")?;
                consistent += u64::from(found.consistent);
                let (holds, prompts) = (found.holds(), found.prompts.len());
                format!("holds in {holds} of {prompts}, e {:.1}", found.e_value)
            }
        };
        println!("{}, {name} scores {score:.3} of {threshold:.3}; {outcome}", model.name);
    }
    let share = |n: u64| {
        let (low, high) = stats::wilson(n, all, 1.96);
        format!("{n} of {all} ({:.0}% to {:.0}%)", 100.0 * low, 100.0 * high)
    };
    println!(
        "{}: {kind} at the threshold, confirmed {}, consistent {}",
        model.name,
        share(confirmed),
        share(consistent)
    );
    Ok(())
}
