//! Campaigns on the fake evaluator: planted glitches are found, nothing else is, and the same seed
//! gives the same events.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::*;
use crate::case::Case;
use crate::edit::Edit;
use crate::error::Result;
use crate::evaluate::{Evaluator, Observation, Request};
use crate::model::ModelRef;
use crate::mutate::Layers;
use crate::pipeline::{Explainer, Finding, signature};
use crate::testing::fake::{self, FakeEvaluator};

struct Plain;

impl Explainer for Plain {
    fn explain(&self, finding: &Finding, _: bool) -> Result<(Case, u64)> {
        let id = format!("{:?} {:?}", finding.verdict.oracle, signature(&finding.trial));
        Ok((Case { id, ..fake::case_of(finding) }, 0))
    }
}

#[derive(Default)]
struct Events(Vec<Event>);

impl Sink for Events {
    fn event(&mut self, event: Event) -> Result<()> {
        self.0.push(event);
        Ok(())
    }
}

/// The fake evaluator asked backwards: batch order must not matter.
struct Reversed(FakeEvaluator);

impl Evaluator for Reversed {
    fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>> {
        let backwards: Vec<Request> = requests.iter().rev().cloned().collect();
        let mut observations = self.0.observe(&backwards)?;
        observations.reverse();
        Ok(observations)
    }

    fn observe_alone(&self, request: &Request) -> Result<Observation> {
        self.0.observe_alone(request)
    }
}

fn model() -> ModelRef {
    ModelRef { name: "fake".into(), fingerprint: String::new(), tokenizer: None }
}

fn small() -> CampaignConfig {
    CampaignConfig {
        max_evals: Some(3000),
        batch_size: 96,
        generate_every: 2,
        ..Default::default()
    }
}

fn campaign(
    evaluator: &dyn Evaluator,
    config: &CampaignConfig,
    interrupted: bool,
) -> (Summary, Vec<Event>) {
    let (shape, vocabulary) = (fake::config(), fake::vocabulary());
    let ids = |start: u32| std::iter::once(0).chain(start..start + 14).collect::<Vec<u32>>();
    let seeds = [30, 50, 70]
        .iter()
        .filter_map(|&start| Seed::new(format!("seed{start}"), &ids(start), 4))
        .collect();
    let subject = Subject {
        evaluator,
        model: model(),
        against: None,
        config: &shape,
        vocabulary: &vocabulary,
        token: &|id| format!(" t{id}"),
        seeds,
        new_prompts: fake::new_prompts(),
        echo: vec![fake::echo()],
        weights: fake::weights(),
        stored: None,
        interactions: vec![fake::interactions()],
        suffixes: fake::suffixes(),
        routing: Vec::new(),
        layers: config.layers,
        noise_floors: Default::default(),
    };
    let mut events = Events::default();
    let signal = StopSignal { interrupted: &AtomicBool::new(interrupted), started: Instant::now() };
    let summary = run(config, &subject, &Plain, &mut events, &signal).unwrap();
    (summary, events.0)
}

#[test]
fn planted_glitches_are_found_and_nothing_else() {
    let (summary, events) = campaign(&FakeEvaluator, &small(), false);
    // What fails both is of one kind, under whichever of them it was found.
    let predictions = &["Divergence", "LossBlowup"][..];
    for (oracles, planted) in [
        (predictions, "{\"token 666\"}"),
        (&["NonFinite"], "{\"token 667\"}"),
        (&["Collapse"], "{\"token 668\"}"),
        (&["Echo"], "{\"token 669\"}"),
        (predictions, "{\"zero L1.head2\"}"),
    ] {
        let names = oracles.iter().map(|oracle| format!("{oracle} {planted}"));
        let found = names.into_iter().any(|name| summary.cases.contains(&name));
        assert!(found, "{planted} is not among {:#?}", summary.cases);
    }
    for case in &summary.cases {
        let planted = ["token 666", "token 667", "token 668", "token 669", "L1.head2"]
            .iter()
            .any(|part| case.contains(part));
        assert!(planted, "{case} is ordinary");
    }
    assert_eq!((summary.evaluations, summary.stopped_by.as_str()), (3000, "max-evals"));
    // Not none: a control of another head's lesion may be the planted head's.
    assert!(
        100 * summary.controls_flagged <= summary.controls,
        "{} of {}",
        summary.controls_flagged,
        summary.controls
    );
    let cases = events.iter().filter(|event| matches!(event, Event::Case(_))).count();
    assert_eq!(cases, summary.cases.len());
}

#[test]
fn the_same_seed_gives_the_same_events_in_any_batch_order() {
    let first = campaign(&FakeEvaluator, &small(), false);
    assert_eq!(first, campaign(&FakeEvaluator, &small(), false));
    assert_eq!(first, campaign(&Reversed(FakeEvaluator), &small(), false));
    let other = campaign(&FakeEvaluator, &CampaignConfig { seed: 9, ..small() }, false);
    assert_ne!(first.1, other.1);
}

#[test]
fn budgets_and_interruptions_stop_a_campaign() {
    let check = |config: CampaignConfig, interrupted: bool, expect: &str| {
        assert_eq!(campaign(&FakeEvaluator, &config, interrupted).0.stopped_by, expect);
    };
    check(small(), true, "interrupted");
    check(CampaignConfig { exit_on_find: true, ..small() }, false, "exit-on-find");
    check(
        CampaignConfig { max_time: Some(Duration::from_millis(1)), max_evals: None, ..small() },
        false,
        "max-time",
    );
    check(CampaignConfig { max_evals: Some(10), ..small() }, false, "max-evals");
}

/// The chance of a new kind is told, and a campaign stops where it is as small as asked for.
#[test]
fn a_campaign_stops_when_little_is_left_to_see() {
    let config = CampaignConfig { max_evals: Some(40_000), until_stable: Some(0.9), ..small() };
    let (summary, _) = campaign(&FakeEvaluator, &config, false);
    assert_eq!(summary.stopped_by, "stable");
    let unseen = summary.unseen.unwrap();
    assert!(summary.evaluations >= 1000 && unseen.chance_of_new.high <= 0.9, "{unseen:?}");
    assert!(unseen.kinds_in_all.value >= summary.kinds.len() as f64);
    let (longer, _) = campaign(
        &FakeEvaluator,
        &CampaignConfig {
            max_evals: Some(summary.evaluations + 3000),
            until_stable: None,
            ..config
        },
        false,
    );
    assert_eq!(longer.stopped_by, "max-evals");
    assert!(longer.unseen.unwrap().chance_of_new.high < unseen.chance_of_new.high);
}

/// The fake model, which takes one split of the token 36 for the token 666.
struct BreaksOnOneSplit;

impl BreaksOnOneSplit {
    fn planted(&self, request: &Request) -> Request {
        let mut request = request.clone();
        for edit in &mut request.trial.edits {
            if let Edit::Retokenize { position, pieces } = edit
                && pieces[..] == [2, 20]
            {
                *edit = Edit::Replace { position: *position, id: 666 };
            }
        }
        request
    }
}

impl Evaluator for BreaksOnOneSplit {
    fn observe(&self, requests: &[Request]) -> Result<Vec<Observation>> {
        FakeEvaluator.observe(&requests.iter().map(|r| self.planted(r)).collect::<Vec<_>>())
    }

    fn observe_alone(&self, request: &Request) -> Result<Observation> {
        FakeEvaluator.observe_alone(&self.planted(request))
    }
}

#[test]
fn a_planted_retokenization_is_found_and_nothing_else() {
    let config = CampaignConfig { mutate: vec!["retokenization".into()], ..small() };
    let (summary, events) = campaign(&BreaksOnOneSplit, &config, false);
    let is_planted = |case: &String| case.contains("retokenize Some(36) as [2, 20]");
    assert!(
        !summary.cases.is_empty() && summary.cases.iter().all(is_planted),
        "{:?}",
        summary.cases
    );
    for event in &events {
        let Event::Case(case) = event else { continue };
        assert!(matches!(case.edits[..], [Edit::Retokenize { .. }]), "{:?}", case.edits);
    }
}

#[test]
fn lesions_of_a_campaign_stay_within_its_layers() {
    let layers = Some(Layers { first: 2, last: 3 });
    let mutate = ["lesions", "sets", "weights"].map(String::from).to_vec();
    let config = CampaignConfig { layers, mutate, max_evals: Some(1000), ..small() };
    let (restricted, events) = campaign(&FakeEvaluator, &config, false);
    let (free, _) = campaign(&FakeEvaluator, &CampaignConfig { layers: None, ..config }, false);
    // The planted head is in layer 1.
    let planted = |summary: &Summary| summary.cases.iter().any(|case| case.contains("L1.head2"));
    assert!(planted(&free) && !planted(&restricted), "{:?}", restricted.cases);
    assert_eq!(restricted.evaluations, 1000);
    for event in &events {
        let Event::Raw { trial, .. } = event else { continue };
        for edit in &trial.edits {
            let Edit::Lesion { component, .. } = edit else { panic!("{edit:?}") };
            assert!(Layers::allow(layers, component), "{component}");
        }
    }
}
