//! Planted chance findings: the most extreme of many ordinary trials, followed up like any finding.
//!
//! An ordinary trial replaces one token of a seed prompt by an ordinary one, or inserts one; there
//! is nothing to find in it. The most extreme of tens of thousands beats its own controls all the
//! same. In new prompts it should turn out to be specific to its own. Of the trials with the
//! highest scores, that with the largest excess over controls of the search is taken, which is what
//! a campaign picks.
//!
//! `chance_findings MODEL [TRIALS] [SEEDS] [FIRST]` [50000, 20, 0], one line for each seed and
//! oracle.

use anyhow::{Context as _, Result};
use glitch::case::Lineage;
use glitch::edit::{Edit, Trial};
use glitch::evaluate::{Evaluator as _, ModelEvaluator};
use glitch::minimize::{MinimizeOptions, PromptReduction};
use glitch::model::Model;
use glitch::oracle::{self, Judge as _, ModelJudge, OracleKind, Verdict};
use glitch::pipeline::{Explanation, Finding, FollowUp, Followed, ModelExplainer, Steps};
use glitch::replicate::{NewPrompts, Replicator};
use glitch::vocabulary::Vocabulary;
use glitch_benches::seed_prompts;
use rand::Rng as _;

const ORACLES: [OracleKind; 2] = [OracleKind::Divergence, OracleKind::LossBlowup];
const BATCH: usize = 500;
/// Trials with the highest scores, of which the one with the largest excess is followed up.
const JUDGED: usize = 64;
const CONTINUATION: usize = 8;

struct Described;

impl Steps for Described {
    fn minimized(&mut self, _: &Finding) -> glitch::Result<Explanation> {
        Ok(Explanation::Described)
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().context("chance_findings MODEL [TRIALS] [SEEDS] [FIRST]")?;
    let trials: usize = args.next().map_or(Ok(50_000), |n| n.parse())?;
    let seeds: u64 = args.next().map_or(Ok(20), |n| n.parse())?;
    let first: u64 = args.next().map_or(Ok(0), |n| n.parse())?;
    let model = Model::load(&name)?;
    let evaluator = ModelEvaluator::new(&model);
    let vocabulary = Vocabulary::of(&model);
    let new_prompts = NewPrompts::new(&model, &vocabulary, &[])?;
    let replicator = Some(Replicator { prompts: &new_prompts, null: false });
    let floor = evaluator.score_noise_floor()?;
    let reference = model.reference();
    let explainer = ModelExplainer {
        evaluator: &evaluator,
        vocabulary: &vocabulary,
        model: &reference,
        new_prompts: None,
        against: None,
        attribution: None,
    };
    let token = |id| model.token(id);
    let parents = seed_prompts(&model, CONTINUATION)?;
    let baselines = evaluator.observe(
        &parents.iter().map(|p| oracle::baseline_request(&ORACLES, p)).collect::<Vec<_>>(),
    )?;
    let mut reported = 0;
    for seed in first..first + seeds {
        let mut rng = glitch::rng::stream(seed, "ordinary trials");
        let mut best: [Vec<(f64, Trial)>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..trials.div_ceil(BATCH) {
            let drawn: Vec<(usize, Trial)> = (0..BATCH)
                .map(|_| {
                    let at = rng.random_range(0..parents.len());
                    let parent = &parents[at];
                    let first = parent.first_editable(model.config.bos_token_id);
                    let position = rng.random_range(first..parent.base.len());
                    let id = vocabulary.ordinary[rng.random_range(0..vocabulary.ordinary.len())];
                    let edit = match rng.random() {
                        true => Edit::Replace { position, id },
                        false => Edit::Insert { position, id },
                    };
                    (at, parent.with_edits(vec![edit]))
                })
                .collect();
            let requests: Vec<_> = drawn
                .iter()
                .map(|(at, trial)| {
                    oracle::request(&ORACLES, trial, baselines[*at].distributions.as_ref())
                })
                .collect();
            for ((at, trial), observation) in drawn.iter().zip(evaluator.observe(&requests)?) {
                for (best, kind) in best.iter_mut().zip(ORACLES) {
                    let score = kind.oracle().score(&observation, &baselines[*at]);
                    best.push((score, trial.clone()));
                }
            }
            for best in &mut best {
                best.sort_by(|a, b| b.0.total_cmp(&a.0));
                best.truncate(JUDGED);
            }
        }
        let mut any = false;
        for (kind, best) in ORACLES.into_iter().zip(best) {
            let judge = ModelJudge::new(&evaluator, &model.config, &vocabulary, kind, seed, floor);
            let trials: Vec<Trial> = best.into_iter().map(|(_, trial)| trial).collect();
            let excess = |verdict: &Verdict| verdict.margin / verdict.threshold;
            let (trial, search) = trials
                .iter()
                .zip(judge.judge(&trials)?)
                .max_by(|a, b| excess(&a.1).total_cmp(&excess(&b.1)))
                .context("no trial")?;
            let (trial, score) = (trial.clone(), search.score);
            let (raw, text) = (search.fails(), trial.edits[0].to_text());
            let options = MinimizeOptions {
                max_calls: 200,
                batch: 8,
                prompt: PromptReduction::Text { token: &token },
                keep_first: trial.first_editable(model.config.bos_token_id),
                ..Default::default()
            };
            let lineage =
                Lineage { seed, evaluation: 0, mutators: vec![], parent: "ordinary".into() };
            let pipeline = FollowUp { judge: &judge, options, replicator, explainer: &explainer };
            let outcome = match pipeline.run(trial, Some(search), lineage, &mut Described)? {
                Followed::Dropped => "not confirmed".to_owned(),
                Followed::Case { case, .. } => match &case.replication {
                    None => "specific: cannot be put elsewhere".to_owned(),
                    Some(found) => {
                        any |= found.consistent;
                        format!(
                            "{}: holds in {} of {}, e {:.3}",
                            if found.consistent { "CONSISTENT" } else { "specific" },
                            found.holds(),
                            found.prompts.len(),
                            found.e_value
                        )
                    }
                },
            };
            println!("{name} seed {seed} {kind}: {text} scores {score:.3}, raw {raw}; {outcome}");
        }
        reported += u64::from(any);
    }
    println!("{name}: reported as consistent in {reported} of {seeds} seeds");
    Ok(())
}
