//! Power: effects just above the threshold, followed up like any finding.
//!
//! The head or recurrent state whose removal costs most on the seed prompts has a real effect.
//! In each prompt it is scaled down by as little as still fails against controls of the search,
//! which puts it at the threshold. How many of these are confirmed, and how many consistent?
//!
//! `threshold_effects MODEL`, one line for each prompt.

use anyhow::{Context as _, Result};
use glitch::case::Lineage;
use glitch::edit::{Action, Component, Edit};
use glitch::evaluate::{Evaluator as _, ModelEvaluator, Request};
use glitch::minimize::MinimizeOptions;
use glitch::model::Model;
use glitch::oracle::{Judge as _, ModelJudge, OracleKind, Verdict};
use glitch::pipeline::{Explanation, Finding, FollowUp, Followed, ModelExplainer, Steps};
use glitch::replicate::{NewPrompts, Replicator};
use glitch::stats;
use glitch::vocabulary::Vocabulary;
use glitch_benches::seed_prompts;

const ORACLE: OracleKind = OracleKind::LossBlowup;
const CONTINUATION: usize = 8;
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

fn main() -> Result<()> {
    let name = std::env::args().nth(1).context("threshold_effects MODEL")?;
    let model = Model::load(&name)?;
    let evaluator = ModelEvaluator::new(&model);
    let vocabulary = Vocabulary::of(&model);
    let new_prompts = NewPrompts::new(&model, &evaluator, &vocabulary, &[])?;
    let replicator = Some(Replicator { prompts: &new_prompts, null: false });
    let floor = evaluator.score_noise_floor()?;
    let reference = model.reference();
    let explainer = ModelExplainer { evaluator: &evaluator, model: &reference, attribution: None };
    let prompts = seed_prompts(&model, CONTINUATION)?;
    let config = &model.config;
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
    let (mut planted, mut confirmed, mut consistent) = (0u64, 0u64, 0u64);
    for (seed, prompt) in prompts.iter().enumerate() {
        let judge = ModelJudge::new(&evaluator, config, &vocabulary, ORACLE, seed as u64, floor);
        let at = |strength: f32| {
            let action = Action::Scale { factor: 1.0 - strength };
            prompt.with_edits(vec![Edit::lesion(strongest, action)])
        };
        let fails = |strength: f32| -> Result<bool> {
            Ok(judge.judge(std::slice::from_ref(&at(strength)))?[0].fails())
        };
        if !fails(1.0)? {
            println!("{name} prompt {seed}: {strongest} does not fail there");
            continue;
        }
        let (mut low, mut high) = (0.0f32, 1.0f32);
        for _ in 0..STEPS {
            let middle = 0.5 * (low + high);
            if fails(middle)? { high = middle } else { low = middle }
        }
        planted += 1;
        let search = judge.judge(std::slice::from_ref(&at(high)))?.remove(0);
        let (score, threshold) = (search.score, search.threshold);
        // Nothing is reduced: that would change the strength.
        let options = MinimizeOptions { max_calls: 0, ..Default::default() };
        let lineage =
            Lineage { seed: 0, evaluation: 0, mutators: vec![], parent: "planted".into() };
        let pipeline = FollowUp { judge: &judge, options, replicator, explainer: &explainer };
        let mut steps = Described::default();
        let followed = pipeline.run(at(high), Some(search), lineage, &mut steps)?;
        confirmed += u64::from(steps.confirmed);
        let outcome = match followed {
            Followed::Dropped => "not confirmed".to_owned(),
            Followed::Case { case, .. } => {
                let found = case.replication.context("a lesion can be put anywhere")?;
                consistent += u64::from(found.consistent);
                format!("holds in {} of 12, e {:.1}", found.holds(), found.e_value)
            }
        };
        println!(
            "{name} prompt {seed}: {strongest} scaled by {:.3} scores {score:.3} of \
            {threshold:.3}; {outcome}",
            1.0 - high
        );
    }
    let share = |n: u64| {
        let (low, high) = stats::wilson(n, planted, 1.96);
        format!("{n} of {planted} ({:.0}% to {:.0}%)", 100.0 * low, 100.0 * high)
    };
    println!(
        "{name}: at the threshold, confirmed {}, consistent {}",
        share(confirmed),
        share(consistent)
    );
    Ok(())
}
