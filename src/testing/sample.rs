//! A made-up campaign for the tests of the report: hostile texts, long texts, a small and a large
//! model.

use super::residuals::{logit_lens, residual_map};
use crate::campaign::{CurvePoint, KindCount, MutatorYield, Summary, Timing, Unseen};
use crate::case::{Case, Comment, Expectation, Lineage, SCHEMA_VERSION, TokenProbability};
use crate::deficits::{Deficits, Measure, Measured};
use crate::edit::{Action, Component, Edit, EmbeddingChange, Matrix};
use crate::localize::{
    Baseline, BlockEffect, ComparisonKind, ComparisonTokens, Contrast, Direction, DirectionAt,
    Edge, Effect, Generalization, Graph, Interactions, Localization, Mediation, Node, Pair,
    PairKind, PositionEffect, Role, SymptomToken, TokenAttribution,
};
use crate::minimize::Minimization;
use crate::model::ModelRef;
use crate::oracle::{OracleKind, Verdict};
use crate::replicate::{InPrompt, Replication, Sampled};
use crate::stats::evidence;

/// Returns a repeatable number in `[0, 1)`.
fn wave(i: usize) -> f64 {
    ((i as f64 * 12.9898).sin() * 43_758.545_3).fract().abs()
}

fn model() -> ModelRef {
    ModelRef {
        name: "builtin:dense".into(),
        fingerprint: "9f3a61c07be24d55".repeat(4),
        tokenizer: None,
    }
}

fn summary() -> Summary {
    let curve = (1..=120).map(|i: u64| CurvePoint {
        evaluations: i * 512,
        behaviours: ((i as f64).sqrt() * 71.0) as u64,
        findings_raw: (i as f64 * 0.9) as u64,
        findings_confirmed: (i as f64 * 0.55) as u64,
    });
    let mutator = |mutator: &str, trials, new_behaviours, findings| MutatorYield {
        mutator: mutator.into(),
        trials,
        new_behaviours,
        findings,
    };
    let kind = |kind: &str, raw, minimized| KindCount {
        kind: kind.into(),
        raw,
        minimized,
        sampled: if raw > 10 { 7 } else { 0 },
        held: if raw > 10 { 6 } else { 0 },
    };
    let kinds = vec![
        kind("hardly trained token put in: echo failure", 71, 3),
        kind("lesion of weight in L1: divergence", 2, 1),
        kind("ordinary token put in: collapse", 1, 0),
    ];
    Summary {
        schema_version: 1,
        model: model(),
        against: None,
        seed: 1,
        batch_size: 64,
        evaluations: 61_440,
        follow_up_evaluations: 8_214,
        behaviours: 777,
        queue: 312,
        findings_raw: 108,
        findings_confirmed: 66,
        findings_minimized: 41,
        null: false,
        extreme: 9_411,
        judged: 2_880,
        replicated: 41,
        consistent: 29,
        controls: 12_000,
        controls_flagged: 9,
        mutators: vec![
            mutator("replace", 20_480, 301, 31),
            mutator("dictionary", 10_240, 212, 29),
            mutator("embedding-direction", 10_240, 140, 4),
            mutator("lesion-weights", 20_480, 124, 2),
            mutator("splice", 0, 0, 0),
        ],
        unseen: Some(Unseen::new(61_440, &kinds)),
        kinds,
        curve: curve.collect(),
        interactions: vec![crate::testing::fake::interactions()],
        cases: vec![],
        stopped_by: "max-evals".into(),
        timing: Some(Timing { elapsed_s: 52.4, evaluations_per_s: 1172.5, tokens_per_s: 28_340.0 }),
    }
}

fn top(tokens: &[(u32, &str, f64)]) -> Vec<TokenProbability> {
    tokens
        .iter()
        .map(|&(id, text, probability)| TokenProbability { id, text: text.into(), probability })
        .collect()
}

/// Returns the effects of a model of `layers` by `heads` in which a few components matter.
fn localization(layers: usize, heads: usize, set: &[Component]) -> Localization {
    let mut effects = Vec::new();
    for layer in 0..layers {
        for head in 0..heads {
            let noise = (wave(layer * heads + head) - 0.45) * 0.12;
            effects.push(Effect {
                component: Component::Head { layer, head },
                necessity: noise,
                sufficiency: noise * 0.7,
            });
        }
        let noise = wave(layer + 977) * 0.15;
        effects.push(Effect {
            component: Component::Mlp { layer },
            necessity: noise,
            sufficiency: noise * 0.5,
        });
    }
    for (i, &component) in set.iter().enumerate() {
        let strength = 0.7 / (i + 1) as f64;
        match effects.iter_mut().find(|e| e.component == component) {
            Some(effect) => (effect.necessity, effect.sufficiency) = (strength, strength * 0.8),
            None => {
                effects.push(Effect { component, necessity: strength, sufficiency: strength * 0.3 })
            }
        }
    }
    if let Some(against) = effects.get_mut(7) {
        against.necessity = -0.31;
    }
    for neuron in [17, 201, 340] {
        let necessity = wave(neuron) * 0.4;
        effects.push(Effect {
            component: Component::Neuron { layer: 2, neuron },
            necessity,
            sufficiency: necessity / 2.0,
        });
    }
    let mut controls: Vec<f64> = (0..16).map(|i| wave(i) * 0.2).collect();
    controls.sort_by(f64::total_cmp);
    let place = |(i, position): (usize, usize)| PositionEffect {
        component: set[i % set.len()],
        position,
        id: 7 * position as u32,
        necessity: 0.6 / (i + 1) as f64,
        sufficiency: 0.4 / (i + 1) as f64,
    };
    let positions = if set.is_empty() {
        Vec::new()
    } else {
        [4, 2, 7].into_iter().enumerate().map(place).collect()
    };
    Localization {
        set: set.to_vec(),
        necessity: 0.88,
        sufficiency: 0.74,
        components_for_80_percent: Some(1),
        controls,
        effects,
        positions,
        calls: 412,
        ..Localization::default()
    }
}

/// Adds a symptom, a graph of four places, pairs and new prompts.
fn explained(found: Localization) -> Localization {
    let head = |head| Component::Head { layer: 3, head };
    let mlp = |layer| Component::Mlp { layer };
    let node = |component, position: usize, text: &str, necessity, direct| Node {
        component,
        hook: None,
        position,
        id: 7 * position as u32,
        text: text.into(),
        necessity,
        direct,
    };
    let edge = |from, to, effect| Edge { from, to, effect };
    let pair = |first, second, kind, direct| Pair {
        components: [first, second],
        kind,
        necessity: [0.99, 0.62, 1.0],
        sufficiency: [0.98, 0.84, 1.0],
        direct,
    };
    let direction = Direction {
        component: mlp(3),
        at: DirectionAt::Symptom,
        norm: 31.5,
        made: 18,
        removed: 16,
        made_by_random: 0,
        removed_by_random: 1,
        values: Vec::new(),
    };
    Localization {
        symptom: Some(SymptomToken {
            id: 11,
            text: " the".into(),
            position: 9,
            log_prob: -0.21,
            effect: 14.3,
        }),
        graph: Some(Graph {
            effect: 16.1,
            baseline: Baseline::Controls,
            nodes: vec![
                node(mlp(0), 4, " great", 0.99, 0.0),
                node(head(0), 9, ":", 0.33, 0.06),
                node(head(1), 9, ":", 0.36, 0.05),
                node(mlp(3), 9, ":", 0.52, 0.66),
            ],
            edges: vec![
                edge(None, 0, 0.97),
                edge(Some(0), 2, 0.45),
                edge(Some(0), 1, 0.41),
                edge(Some(2), 3, 0.23),
                edge(Some(1), 3, 0.19),
            ],
            faithfulness: 0.89,
            random: (0..20).map(|i| f64::from(i) * 1e-3).collect(),
        }),
        residual_map: Some(residual_map()),
        logit_lens: Some(logit_lens()),
        interactions: Some(Interactions {
            controls: vec![0.4, 0.55, 0.6],
            members: vec![mlp(0), mlp(3)],
            effect: 12.5,
            sufficient: vec![0.64, 0.36],
            necessary: vec![0.71, 0.29],
            pairs: vec![
                pair(mlp(0), mlp(3), PairKind::Chain, 0.05),
                pair(head(0), head(1), PairKind::Or, 0.9),
            ],
        }),
        generalization: Some(Generalization {
            prompts: 20,
            with_effect: 19,
            set: None,
            direction: Some(direction),
            blocks: vec![BlockEffect { component: mlp(0), necessity: vec![0.9; 6] }],
        }),
        ..found
    }
}

/// Returns a component that carries so much of a case's effect, and up to `most` of its controls'.
fn contrast(component: Component, necessity: f64, most: f64, role: Role) -> Contrast {
    let controls: Vec<f64> = (0..19).map(|i| most * (1.0 - 0.1 * wave(i))).collect();
    let p_value = if role == Role::Specific { 0.05 } else { 0.8 };
    Contrast { component, necessity, controls: crate::stats::sorted(&controls), p_value, role }
}

/// Tokens that are read between the first layers, against two others.
fn attribution(layers: usize) -> TokenAttribution {
    let mediation = |divergence_bits: f64, late: f64| Mediation {
        loss: 0.4 / divergence_bits,
        divergence_bits,
        necessity: divergence_bits * 0.9,
        sufficiency: 0.7,
        attending: divergence_bits * 0.8,
        attending_each: vec![divergence_bits * 0.6, 0.2],
        layerwise: (0..layers)
            .map(|layer| 1.0 / (1.0 + (6.0 * (layer as f64 - late)).exp()))
            .collect(),
    };
    let comparison = |kind, bits, late| ComparisonTokens {
        kind,
        edits: vec![Edit::Replace { position: 5, id: 77 }],
        mediation: mediation(bits, late),
    };
    TokenAttribution {
        first: 5,
        last: 5,
        attending: [2, 1].map(|layer| Component::Head { layer, head: 2 }).to_vec(),
        mediation: mediation(0.92, 1.5),
        comparisons: vec![
            comparison(ComparisonKind::Random, 0.21, 0.5),
            comparison(ComparisonKind::Fails, 0.8, 2.5),
        ],
    }
}

/// Twelve new prompts, of which the finding holds in this many.
fn replication(holds: usize) -> Replication {
    let prompts: Vec<InPrompt> = (0..12)
        .map(|i| InPrompt {
            prompt: format!("passage {}", 2 * i + 1),
            score: if i < holds { 0.7 + 0.02 * i as f64 } else { 0.1 },
            threshold: 0.31,
            holds: i < holds,
            as_extreme: if i < holds { 0 } else { 9 + i },
            controls: 31,
        })
        .collect();
    let e_value =
        prompts.iter().map(|p| evidence::rank_e_value(p.as_extreme, p.controls)).product();
    Replication { prompts, e_value, consistent: holds > 6 }
}

fn deficits() -> Deficits {
    let measured = |measure, before: f64, after: f64, control: f64| Measured {
        measure,
        baseline: (0..6).map(|i| before + 0.02 * wave(i)).collect(),
        edited: (0..6).map(|i| after + 0.02 * wave(i)).collect(),
        controls: (0..24).map(|i| control * wave(i)).collect(),
    };
    let measures = vec![
        measured(Measure::Repetition, 0.12, 0.71, 0.08),
        measured(Measure::Copying, 0.66, 0.6, 0.1),
        measured(Measure::Entropy, 2.1, 1.2, 0.3),
    ];
    Deficits { new_prompts: true, generated: 32, measures }
}

fn case(id: u64, oracle: OracleKind, score: f64, controls: usize) -> Case {
    let mut scores: Vec<f64> =
        (0..controls).map(|i| 0.02 + 0.29 * wave(i + id as usize).powi(2)).collect();
    scores.push(0.31);
    scores.sort_by(f64::total_cmp);
    let threshold = 0.38;
    Case {
        schema_version: SCHEMA_VERSION,
        id: format!("{id:016x}"),
        model: model(),
        base: vec![1, 464, 12, 77, 31, 911],
        continuation: vec![5, 9],
        edits: vec![Edit::Replace { position: 5, id: 4091 }],
        verdict: Verdict {
            oracle,
            score,
            threshold,
            margin: score - threshold,
            noise_floor: 2.4e-6,
            p_value: 1.0 / (scores.len() + 1) as f64,
            controls: scores,
            baseline: Some(0.94),
        },
        control_seed: 11,
        search: Some(Verdict::new(oracle, score + 0.4, &[0.02; 16], 2.4e-6)),
        sampled: (oracle == OracleKind::Collapse).then_some(Sampled {
            samples: 32,
            degenerate: 20,
            degenerate_baseline: 1,
        }),
        replication: Some(replication(if id == 0xa1 { 11 } else { 1 })),
        deficits: (id == 0xa1).then(deficits),
        against: None,
        expectation: Expectation::Reproduces,
        minimization: Some(Minimization {
            calls: 96,
            elements_before: 9,
            elements_after: 1,
            one_minimal: true,
        }),
        localization: None,
        lineage: Lineage {
            seed: 1,
            evaluation: 20_311,
            mutators: vec!["dictionary".into(), "replace".into()],
            parent: "union-1905".into(),
        },
        top_before: top(&[
            (11, ",", 0.31),
            (290, " of", 0.22),
            (262, " the", 0.09),
            (287, " and", 0.05),
            (13, ".", 0.04),
        ]),
        top_after: top(&[
            (4091, " Guid", 0.91),
            (11, ",", 0.02),
            (198, "\n", 0.008),
            (0, "\u{0}", 0.0041),
            (13, ".", 0.0004),
        ]),
        comment: Comment {
            prompt: "It was the will of the king".into(),
            edited_prompt: "It was the will of the Guid".into(),
            continuation: " and of".into(),
            generated_before: " and of the people, and the government of the States".into(),
            generated_after: " Guid Guid Guid Guid Guid Guid Guid Guid".into(),
            title: String::new(),
        },
    }
}

/// Returns the campaign: a token glitch, a hostile one, an embedding, a weight of a large model.
pub fn campaign() -> (Summary, Vec<Case>) {
    let mut king = case(0xa1, OracleKind::Divergence, 0.92, 59);
    king.localization = Some(localization(
        4,
        4,
        &[Component::Mlp { layer: 2 }, Component::Head { layer: 3, head: 1 }],
    ));

    let relay = contrast(Component::Mlp { layer: 0 }, 0.98, 0.99, Role::Relay);
    king.localization.iter_mut().for_each(|localization| {
        localization.attribution = Some(attribution(4));
        localization.contrasts = vec![
            contrast(Component::Mlp { layer: 2 }, 0.7, 0.07, Role::Specific),
            contrast(Component::Head { layer: 3, head: 1 }, 0.35, 0.02, Role::Specific),
            contrast(Component::Mlp { layer: 1 }, 0.4, 0.15, Role::Unclear),
            relay.clone(),
        ];
    });

    let mut hostile = case(0xa2, OracleKind::Echo, 14.2, 40);
    hostile.verdict.threshold = 9.1;
    hostile.comment.edited_prompt =
        "It was the will of the<script>alert(1)</script> \u{202e}gnol \x1b[31m".into();
    hostile.comment.title = "Token `<script>alert(1)</script>` cannot be repeated".into();
    hostile.comment.generated_after =
        "<img src=x onerror=alert(1)>\u{0}\u{1}\n\n\u{200b}".repeat(9);
    hostile.top_after = top(&[
        (9, "<script>alert(1)</script>", 0.5),
        (10, "\u{202e}\u{200b}", 0.25),
        (12, "日本語のトークン", 0.1),
    ]);
    hostile.edits = (0..4).map(|i| Edit::Insert { position: 6, id: 4000 + i }).collect();
    hostile.localization =
        Some(Localization { contrasts: vec![relay], ..explained(localization(4, 4, &[])) });

    let mut large = case(0xa3, OracleKind::LossBlowup, 6.1, 900);
    let weight = Component::Weight { layer: 11, matrix: Matrix::Down, out: 507, input: 1229 };
    large.edits = vec![Edit::lesion(weight, Action::Zero)];
    large.comment.prompt =
        "Fellow citizens of the Senate and of the House of Representatives, ".repeat(14);
    large.comment.edited_prompt = large.comment.prompt.clone();
    large.comment.generated_after = "Supercalifragilistic".repeat(30);
    large.localization = Some(localization(
        30,
        9,
        &[
            Component::Mlp { layer: 11 },
            Component::Head { layer: 12, head: 4 },
            Component::Head { layer: 29, head: 8 },
        ],
    ));

    let mut embedding = case(0xa4, OracleKind::Collapse, 1.0, 12);
    embedding.edits = vec![Edit::Embedding {
        position: 3,
        change: EmbeddingChange::Towards { id: 4091, strength: 0.31 },
    }];
    embedding.comment.edited_prompt = embedding.comment.prompt.clone();
    embedding.minimization = None;
    embedding.expectation = Expectation::Gone;

    let mut empty = case(0xa5, OracleKind::NonFinite, 1.0, 0);
    empty.verdict.controls.clear();
    empty.comment = Comment::default();
    (empty.top_before, empty.top_after) = (vec![], vec![]);
    empty.edits = vec![
        Edit::Delete { position: 0 },
        Edit::lesion(Component::Mlp { layer: 3 }, Action::Scale { factor: 1e6 }),
        Edit::Embedding {
            position: 2,
            change: EmbeddingChange::Direction { from: 5, to: 6, strength: 4.0 },
        },
    ];
    (summary(), vec![embedding, king, empty, large, hostile])
}

/// Returns a campaign in which every text that comes from a model or a file is `text`.
pub fn saying(text: &str) -> (Summary, Vec<Case>) {
    let (mut summary, mut cases) = campaign();
    let said = || text.to_owned();
    (summary.model.name, summary.model.fingerprint, summary.stopped_by) = (said(), said(), said());
    summary.mutators[0].mutator = said();
    for case in &mut cases {
        case.comment = Comment {
            prompt: format!("a {text}"),
            edited_prompt: format!("b {text}"),
            continuation: said(),
            generated_before: said(),
            generated_after: said(),
            title: said(),
        };
        if let Some(found) = &mut case.localization {
            found.symptom.iter_mut().for_each(|symptom| symptom.text = said());
            let nodes = found.graph.iter_mut().flat_map(|graph| &mut graph.nodes);
            nodes.for_each(|node| node.text = said());
            let positions = found.residual_map.iter_mut().flat_map(|map| &mut map.positions);
            positions.for_each(|position| position.text = said());
            let lens = found.logit_lens.iter_mut();
            lens.for_each(|lens| lens.corrupted.texts.fill(said()));
        }
        case.id = said();
        (case.lineage.parent, case.lineage.mutators) = (said(), vec![said()]);
        case.top_before.iter_mut().chain(&mut case.top_after).for_each(|t| t.text = said());
    }
    (summary, cases)
}

/// Checks that every tag is closed, in order.
pub fn balanced(page: &str) -> Result<(), String> {
    const VOID: [&str; 1] = ["meta"];
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.split_once("<html").map(|(_, r)| r).ok_or("no html")?;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let end = rest.find('>').ok_or("a tag without end")?;
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or("");
        if tag.starts_with('/') {
            match open.pop() {
                Some(top) if top == name => {}
                None if name == "html" => {}
                top => return Err(format!("</{name}> closes {top:?}")),
            }
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("left open: {open:?}")) }
}
