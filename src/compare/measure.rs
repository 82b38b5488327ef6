//! Measures the figures of one model.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::{EmergenceSpectrum, Estimate, HARMFUL, ModelFigures, Share, Spread};
use crate::campaign::{CampaignConfig, Event, Sink, StopSignal, Summary, run, setup};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluator as _, ModelEvaluator, REFERENCE_TEXT, Request};
use crate::localize::{Contrast, Role};
use crate::model::Model;
use crate::oracle::OracleKind;
use crate::pipeline::ModelExplainer;
use crate::sweep::{
    LesionOptions, LesionSweep, PairKind, PairOptions, PairSweep, Target, TokenVerdict,
    VocabularySweep,
};
use crate::vocabulary::Vocabulary;

/// Called with a line that says what is being measured.
pub type Progress<'a> = &'a dyn Fn(&str);

/// The number of most suspect tokens that are tested, and of controls.
const TOKENS: usize = 8192;

/// The largest number of lesions of a kind; of more components, an even choice over all layers is
/// taken.
const LESIONS: usize = 2048;

const TARGETS: [(Target, &str); 7] = [
    (Target::Blocks, "blocks"),
    (Target::Heads, "heads"),
    (Target::Mlps, "mlps"),
    (Target::Neurons, "neurons"),
    (Target::Experts, "experts"),
    (Target::Routers, "routers"),
    (Target::States, "states"),
];

/// A sink that keeps the cases of a campaign.
#[derive(Default)]
struct Cases(Vec<Case>);

impl Sink for Cases {
    fn event(&mut self, event: Event) -> Result<()> {
        if let Event::Case(case) = event {
            self.0.push(*case);
        }
        Ok(())
    }
}

/// Measures a model: a campaign with `config` for each seed, then the sweeps, then the emergence
/// spectrum on so many `passages` (0: not at all; `None`: 12, or 4 where sets are drawn).
///
/// # Errors
/// Errors of loading and evaluating; [`Error::Interrupted`] if the user interrupts, because an
/// unfinished campaign cannot be compared.
pub fn measure(
    spec: &str,
    config: &CampaignConfig,
    seeds: &[u64],
    passages: Option<usize>,
    interrupted: &AtomicBool,
    progress: Progress,
) -> Result<ModelFigures> {
    let model = Model::load(spec)?;
    let evaluator = ModelEvaluator::new(&model);
    let vocabulary = Vocabulary::of(&model);
    let token = |id| model.token(id);
    let subject = setup::subject(config, &model, &evaluator, &vocabulary, &token)?;
    let reference = model.reference();
    let explainer = ModelExplainer {
        evaluator: &evaluator,
        vocabulary: &vocabulary,
        model: &reference,
        new_prompts: Some(&subject.new_prompts),
        against: None,
        attribution: None,
    };
    let mut runs: Vec<(Summary, Vec<Case>)> = Vec::new();
    for &seed in seeds {
        progress(&format!("{spec}: campaign of seed {seed}"));
        let mut cases = Cases::default();
        let signal = StopSignal { interrupted, started: Instant::now() };
        let summary = run(
            &CampaignConfig { seed, ..config.clone() },
            &subject,
            &explainer,
            &mut cases,
            &signal,
        )?;
        if summary.stopped_by == "interrupted" {
            return Err(Error::Interrupted);
        }
        runs.push((summary, cases.0));
    }
    progress(&format!("{spec}: vocabulary"));
    let tokens = VocabularySweep::run(
        &model,
        &evaluator,
        Some(TOKENS.min(model.config.vocab_size)),
        &|_, _| {},
    )?;
    let mut ids = model.encode(REFERENCE_TEXT.trim_end())?;
    ids.truncate(model.config.max_position_embeddings);
    let text = crate::edit::Trial::new(&ids[..1], &ids[1..]);
    let loss =
        evaluator.observe(&[Request::new(text.clone())])?.first().map_or(f64::NAN, |o| o.loss());

    progress(&format!("{spec}: pairs of blocks"));
    let options = PairOptions { target: Target::Blocks, controls: 0, ..PairOptions::default() };
    let pairs = PairSweep::run(&evaluator, &text, &options, &|_, _| {})?;
    let redundant = pairs.rows.iter().filter(|row| row.kind == PairKind::Redundant).count();

    let (mut harmful, mut not_applicable) = (BTreeMap::new(), Vec::new());
    for (target, name) in TARGETS {
        progress(&format!("{spec}: lesions of {name}"));
        let options = LesionOptions { limit: Some(LESIONS), ..LesionOptions::new(target) };
        let Some(sweep) =
            LesionSweep::if_any(&evaluator, std::slice::from_ref(&ids), &options, &|_, _| {})?
        else {
            not_applicable.push(name.to_owned());
            continue;
        };
        let harms = sweep.rows.iter().filter(|row| row.effect >= HARMFUL).count();
        harmful.insert(name.to_owned(), Share::new(harms as u64, sweep.rows.len() as u64));
    }
    let tell = |what: &str| progress(&format!("{spec}: sets of blocks, {what}"));
    let spectrum = match passages {
        Some(0) => None,
        _ => match EmergenceSpectrum::measure(&evaluator, passages, interrupted, &tell) {
            Ok(Some(spectrum)) => Some(spectrum),
            Ok(None) => {
                not_applicable.push("sets of blocks (there are too few)".into());
                None
            }
            Err(Error::Request(reason)) => {
                not_applicable.push(format!("sets of blocks ({reason})"));
                None
            }
            Err(error) => return Err(error),
        },
    };
    let kinds = config.oracles_on(&model.config)?;
    let per_thousand = |kind: Option<OracleKind>| {
        let rate = |(summary, cases): &(Summary, Vec<Case>)| {
            let found = cases
                .iter()
                .filter(|case| kind.is_none_or(|kind| case.verdict.oracle == kind))
                .count();
            1000.0 * found as f64 / summary.evaluations.max(1) as f64
        };
        Estimate::new(runs.iter().map(rate).collect())
    };
    not_applicable.extend(
        OracleKind::ALL.iter().filter(|k| !k.applies(&model.config)).map(|k| k.name().to_owned()),
    );
    let echo_works = tokens.median_ordinary >= crate::sweep::LEAST_ECHO;
    if !echo_works {
        not_applicable.push("glitch tokens (ordinary ones cannot be repeated)".into());
    }
    let glitches = tokens.rows.iter().filter(|row| row.verdict == TokenVerdict::Glitch).count();
    let localizations =
        || runs.iter().flat_map(|(_, cases)| cases).filter_map(|case| case.localization.as_ref());
    let compared = localizations().filter(|i| !i.contrasts.is_empty()).count();
    let is_specific = |contrast: &Contrast| contrast.role == Role::Specific;
    let specific = localizations().filter(|i| i.contrasts.iter().any(is_specific)).count();
    let with_symptom = localizations().filter(|i| i.symptom.is_some()).count();
    let faithful = localizations().filter_map(|i| i.graph.as_ref()).filter(|g| g.is_faithful());
    let places: Vec<f64> = faithful.map(|graph| graph.nodes.len() as f64).collect();
    let joint: Vec<f64> = localizations()
        .filter_map(|i| i.interactions.as_ref()?.sufficient.first().map(|single| 1.0 - single))
        .collect();
    let routing: Vec<f64> = localizations().filter_map(|i| i.routing).collect();
    let sum =
        |count: fn(&Summary) -> u64| runs.iter().map(|(summary, _)| count(summary)).sum::<u64>();
    Ok(ModelFigures {
        model: reference,
        model_type: model.config.model_type.clone(),
        parameters: model.parameters(),
        loss,
        findings: kinds
            .iter()
            .map(|kind| (kind.name().to_owned(), per_thousand(Some(*kind))))
            .collect(),
        all_findings: per_thousand(None),
        controls_flagged: Share::new(sum(|s| s.controls_flagged), sum(|s| s.controls)),
        glitch_tokens: echo_works.then(|| Share::new(glitches as u64, tokens.tested as u64)),
        with_specific: Some(Share::new(specific as u64, compared as u64)),
        graph_places: Some(Spread::new(&places)),
        without_graph: Some(Share::new((with_symptom - places.len()) as u64, with_symptom as u64)),
        concentration: None,
        diffuse: None,
        joint: Some(Spread::new(&joint)),
        emergence: None,
        spectrum,
        routing: (!routing.is_empty()).then(|| Spread::new(&routing)),
        interaction: Spread::new(&pairs.rows.iter().map(|row| row.ratio).collect::<Vec<_>>()),
        redundant: Share::new(redundant as u64, pairs.rows.len() as u64),
        harmful,
        not_applicable,
    })
}
