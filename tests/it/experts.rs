//! Lesions of experts and routers: they land, they are what they say, and they are per row.

use std::collections::BTreeSet;

use glitch::edit::{Action, Component, Edit, Trial};
use glitch::evaluate::{Evaluator, ModelEvaluator, Patch, Request};
use glitch::localize::{LocalizeOptions, localize};
use glitch::model::batch::Row;
use glitch::model::hooks::Site;
use glitch::model::{Forward, Model};
use glitch::sweep::{LesionOptions, LesionSweep, Target};

use super::cut_out::load_changed;
use super::parity::load;

const FAMILIES: [&str; 4] = ["mixtral", "olmoe", "qwen2-moe", "qwen3-moe"];

fn ids() -> Vec<u32> {
    (0..20).map(|i| (i * 37 + 5) % 96).collect()
}

fn trial() -> Trial {
    let ids = ids();
    Trial::new(&ids[..12], &ids[12..])
}

/// Experts of layer 0 that some token of the trial is routed to.
fn used(model: &Model) -> Vec<usize> {
    let run = ModelEvaluator::new(model).activations(&trial(), &[]).unwrap();
    let of = |expert| {
        run.output(&Component::Expert { layer: 0, expert }, 0..run.positions, &model.config)
            .unwrap()
    };
    (0..model.config.num_experts(0))
        .filter(|expert| of(*expert).iter().any(|x| *x != 0.0))
        .collect()
}

fn lesions(model: &Model) -> Vec<Edit> {
    let actions = [
        Action::Zero,
        Action::Mean,
        Action::Resample { seed: 1 },
        Action::Scale { factor: 3.0 },
        Action::Noise { seed: 1, strength: 1.0 },
    ];
    let edits = |component| actions.into_iter().map(move |action| Edit::lesion(component, action));
    let experts = used(model).into_iter().map(|expert| Component::Expert { layer: 0, expert });
    let masked = experts.clone().map(|component| Edit::lesion(component, Action::Mask));
    experts.flat_map(edits).chain(masked).chain(edits(Component::Router { layer: 0 })).collect()
}

#[test]
fn every_lesion_of_an_expert_lands_and_a_batch_equals_each_alone() {
    for name in FAMILIES {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let request = |edits| Request::new(trial().with_edits(edits));
        let baseline = evaluator.observe_alone(&request(vec![])).unwrap();
        let edits = lesions(&model);
        let requests: Vec<Request> = edits.iter().map(|edit| request(vec![edit.clone()])).collect();
        for ((edit, request), batched) in
            edits.iter().zip(&requests).zip(evaluator.observe(&requests).unwrap())
        {
            let alone = evaluator.observe_alone(request).unwrap();
            assert_ne!(alone.log_probs, baseline.log_probs, "{name}: {edit:?} did nothing");
            assert!(alone.finite, "{name}: {edit:?}");
            assert_eq!(
                (&batched.log_probs, &batched.entropy),
                (&alone.log_probs, &alone.entropy),
                "{name}: {edit:?}"
            );
        }
    }
}

#[test]
fn an_expert_patched_with_itself_leaves_every_bit() {
    for name in FAMILIES {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let baseline = evaluator.observe_alone(&Request::new(trial())).unwrap();
        let run = evaluator.activations(&trial(), &[]).unwrap();
        let experts =
            (0..model.config.num_experts(0)).map(|expert| Component::Expert { layer: 0, expert });
        for component in experts.chain([Component::Router { layer: 0 }]) {
            let values = run.output(&component, 0..run.positions, &model.config).unwrap();
            let patch = Patch { component, first: 0, values: values.into() };
            let observed =
                evaluator.observe_alone(&Request::new(trial()).patched(vec![patch])).unwrap();
            assert_eq!(observed.log_probs, baseline.log_probs, "{name}: {component}");
        }
    }
}

/// Against a checkpoint in which the expert's last matrix is zero.
#[test]
fn zeroing_an_expert_is_zeroing_its_weights() {
    let names =
        [("mixtral", "block_sparse_moe.experts", "w2"), ("qwen2-moe", "mlp.experts", "down_proj")];
    for (name, experts, down) in names {
        let model = load(name);
        let expert = used(&model)[0];
        let cut = load_changed(name, |tensors| {
            let weight = format!("model.layers.0.{experts}.{expert}.{down}.weight");
            let zeros = tensors[&weight].zeros_like().unwrap();
            tensors.insert(weight, zeros);
        });
        let edit = Edit::lesion(Component::Expert { layer: 0, expert }, Action::Zero);
        let lesioned = ModelEvaluator::new(&model)
            .observe_alone(&Request::new(trial().with_edits(vec![edit])))
            .unwrap();
        let without = ModelEvaluator::new(&cut).observe_alone(&Request::new(trial())).unwrap();
        assert_eq!(lesioned.log_probs, without.log_probs, "{name}");
    }
}

/// The tokens of an expert that is not to be chosen go to the next one, and every weight is the
/// softmax over the others.
#[test]
fn masking_an_expert_gives_its_tokens_to_the_next() {
    for name in FAMILIES {
        let model = load(name);
        let (config, d) = (&model.config, model.config.hidden_size);
        let experts = config.experts.as_ref().unwrap();
        let (n, k) = (experts.num_experts, experts.num_experts_per_tok);
        let gone = used(&model)[0];
        let run = |edits| {
            let run =
                ModelEvaluator::new(&model).activations(&trial().with_edits(edits), &[]).unwrap();
            (run.sites[&(0, Site::RouterLogits)].clone(), run.sites[&(0, Site::Experts)].clone())
        };
        let lesion = Edit::lesion(Component::Expert { layer: 0, expert: gone }, Action::Mask);
        let ((logits, before), (_, after)) = (run(vec![]), run(vec![lesion]));
        for token in 0..ids().len() {
            let logits = &logits[token * n..][..n];
            // The choice and its weights, written for reading.
            let weights = |allowed: &dyn Fn(usize) -> bool| -> Vec<f64> {
                let mut order: Vec<usize> = (0..n).filter(|e| allowed(*e)).collect();
                let sum: f64 = order.iter().map(|e| f64::from(logits[*e]).exp()).sum();
                order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
                order.truncate(k);
                let kept: f64 = order.iter().map(|e| f64::from(logits[*e]).exp() / sum).sum();
                let share = if experts.norm_topk_prob { kept } else { 1.0 };
                (0..n)
                    .map(|e| {
                        if order.contains(&e) {
                            f64::from(logits[e]).exp() / sum / share
                        } else {
                            0.0
                        }
                    })
                    .collect()
            };
            let (old, new) = (weights(&|_| true), weights(&|e| e != gone));
            assert_eq!(new[gone], 0.0);
            for e in 0..n {
                let at = (token * n + e) * d;
                let norm = |x: &[f32]| {
                    x[at..at + d].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
                };
                assert_eq!(
                    (norm(&before) > 0.0, norm(&after) > 0.0),
                    (old[e] > 0.0, new[e] > 0.0),
                    "{name}: {token}, {e}"
                );
                if old[e] > 0.0 && new[e] > 0.0 {
                    let ratio = norm(&after) / norm(&before);
                    assert!(
                        (ratio / (new[e] / old[e]) - 1.0).abs() < 1e-4,
                        "{name}: token {token}, expert {e}: {ratio}"
                    );
                }
            }
        }
    }
}

/// A token sent to one expert gets that expert with all the weight, and nothing of another.
#[test]
fn a_routed_token_goes_to_one_expert_alone() {
    for name in FAMILIES {
        let model = load(name);
        let (d, n) = (model.config.hidden_size, model.config.num_experts(0));
        let expert = (0..n).find(|e| !used(&model).contains(e)).unwrap_or(0);
        let component = Component::Expert { layer: 0, expert };
        let edit = Edit::Lesion { component, action: Action::Force, position: Some(4) };
        let evaluator = ModelEvaluator::new(&model);
        let run = evaluator.activations(&trial().with_edits(vec![edit]), &[]).unwrap();
        let before = evaluator.activations(&trial(), &[]).unwrap();
        let added = |run: &glitch::evaluate::Activations, token: usize| {
            run.sites[&(0, Site::Experts)][token * n * d..][..n * d].to_vec()
        };
        for (e, of_expert) in added(&run, 4).chunks(d).enumerate() {
            assert_eq!(of_expert.iter().any(|x| *x != 0.0), e == expert, "{name}: expert {e}");
        }
        for token in (0..ids().len()).filter(|token| *token != 4) {
            assert_eq!(added(&run, token), added(&before, token), "{name}: token {token}");
        }
    }
}

/// A promotion changes the router logit of its expert alone, and the larger it is, the more tokens
/// the expert gets.
#[test]
fn a_promoted_expert_gets_more_tokens_and_a_demoted_one_fewer() {
    for name in FAMILIES {
        let model = load(name);
        let (d, n) = (model.config.hidden_size, model.config.num_experts(0));
        let evaluator = ModelEvaluator::new(&model);
        let expert = 1;
        let run = |logit: f32| {
            let component = Component::Expert { layer: 0, expert };
            let edits = vec![Edit::lesion(component, Action::Promote { logit })];
            evaluator.activations(&trial().with_edits(edits), &[]).unwrap()
        };
        let logits = |logit| run(logit).sites[&(0, Site::RouterLogits)].clone();
        for (i, (promoted, before)) in logits(2.5).iter().zip(logits(0.0)).enumerate() {
            let expect = if i % n == expert { before + 2.5 } else { before };
            assert_eq!(*promoted, expect, "{name}: token {}, expert {}", i / n, i % n);
        }
        let tokens = |logit| {
            let added = run(logit).sites[&(0, Site::Experts)].clone();
            let of_expert = added.chunks(d).skip(expert).step_by(n);
            of_expert.filter(|added| added.iter().any(|x| *x != 0.0)).count()
        };
        let counts = [-100.0, -0.1, 0.0, 0.1, 100.0].map(tokens);
        assert!(counts.is_sorted(), "{name}: {counts:?}");
        assert_eq!((counts[0], counts[4]), (0, ids().len()), "{name}");
    }
}

/// With its routing frozen a lesion cannot send tokens elsewhere; what it does to their values is
/// left.
#[test]
fn frozen_routing_is_that_of_the_baseline() {
    for name in FAMILIES {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let last = model.config.num_hidden_layers - 1;
        let logits = |edits: Vec<Edit>| {
            let run = evaluator.activations(&trial().with_edits(edits), &[]).unwrap();
            run.sites[&(last, Site::RouterLogits)].clone()
        };
        let lesion = Edit::lesion(Component::Attention { layer: 0 }, Action::Scale { factor: 3.0 });
        let token = Edit::Replace { position: 3, id: 9 };
        let baseline = logits(vec![]);
        for edit in [lesion, token] {
            assert_ne!(logits(vec![edit.clone()]), baseline, "{name}");
            assert_eq!(logits(vec![edit.clone(), Edit::FreezeRouting]), baseline, "{name}");
            let observe = |edits| {
                evaluator.observe_alone(&Request::new(trial().with_edits(edits))).unwrap().log_probs
            };
            let (plain, free, frozen) = (
                observe(vec![]),
                observe(vec![edit.clone()]),
                observe(vec![edit, Edit::FreezeRouting]),
            );
            assert!(
                plain != free && plain != frozen && free != frozen,
                "{name}: the three are different things"
            );
        }
        let alone = evaluator
            .observe_alone(&Request::new(trial().with_edits(vec![Edit::FreezeRouting])))
            .unwrap();
        let plain = evaluator.observe_alone(&Request::new(trial())).unwrap();
        assert_eq!(alone.log_probs, plain.log_probs, "{name}: freezing alone changes nothing");
    }
}

#[test]
fn a_sweep_of_experts_and_routers_has_every_one() {
    let model = load("qwen2-moe"); // of its three layers, the second has an MLP
    let evaluator = ModelEvaluator::new(&model);
    for (target, count) in [(Target::Experts, 16), (Target::Routers, 2), (Target::Neurons, 64)] {
        let options = LesionOptions::new(target);
        let sweep = LesionSweep::run(&evaluator, &[ids()], &options, &|_, _| {}).unwrap();
        let named: BTreeSet<Component> = sweep.rows.iter().map(|row| row.component).collect();
        assert_eq!((named.len(), sweep.rows.len()), (count, count), "{target:?}");
    }
    let dense = load("llama");
    let refused = LesionSweep::run(
        &ModelEvaluator::new(&dense),
        &[ids()],
        &LesionOptions::new(Target::Experts),
        &|_, _| {},
    );
    assert!(refused.err().unwrap().to_string().contains("has no meaning for llama"));
}

/// What a mixture puts out is the sum of what its experts add (no shared expert here).
#[test]
fn experts_add_up_to_the_mixture() {
    let model = load("olmoe");
    let mut forward = Forward { rows: vec![Row::new(ids())], ..Forward::default() };
    forward.hooks.capture = [(0, Site::Experts), (0, Site::MlpOut)].into();
    let captured = model.forward(&forward).unwrap().captured;
    let (d, n) = (model.config.hidden_size, model.config.num_experts(0));
    for (experts, out) in
        captured[&(0, Site::Experts)].chunks(n * d).zip(captured[&(0, Site::MlpOut)].chunks(d))
    {
        for (c, out) in out.iter().enumerate() {
            let sum: f32 = experts.chunks(d).map(|e| e[c]).sum();
            assert!((sum - out).abs() < 1e-5);
        }
    }
}

/// Routing is observed as it is, whether a row resumes above some layers or not; and sending
/// everything to one expert is a collapse.
#[test]
fn routing_is_observed_and_its_collapse_scored() {
    use glitch::oracle::OracleKind;
    for name in FAMILIES {
        let model = load(name);
        let evaluator = ModelEvaluator::new(&model);
        let last =
            (0..model.config.num_hidden_layers).rev().find(|l| model.config.is_sparse(*l)).unwrap();
        let force = |layer| Edit::lesion(Component::Expert { layer, expert: 1 }, Action::Force);
        let request = |edits| Request::new(trial().with_edits(edits));
        let baseline = evaluator.observe_alone(&request(vec![])).unwrap();
        let sparse =
            (0..model.config.num_hidden_layers).filter(|l| model.config.is_sparse(*l)).count();
        assert_eq!(baseline.routing.len(), sparse, "{name}");
        let all: Vec<Edit> = (0..=last).filter(|l| model.config.is_sparse(*l)).map(force).collect();
        let requests = [request(vec![force(last)]), request(vec![force(last)]), request(all)];
        let batch = evaluator.observe(&requests).unwrap();
        let score = |o: &glitch::evaluate::Observation| {
            OracleKind::RoutingCollapse.oracle().score(o, &baseline)
        };
        for (request, batched) in requests.iter().zip(&batch) {
            let alone = evaluator.observe_alone(request).unwrap();
            assert_eq!(score(batched), score(&alone), "{name}");
        }
        assert_eq!(score(&baseline), 0.0, "{name}");
        let first = |o: &glitch::evaluate::Observation| {
            o.routing.iter().find(|r| r.layer == last).unwrap().chosen[0]
        };
        assert_eq!(first(&batch[0]), 1, "{name}");
        assert!(
            score(&batch[2]) > score(&batch[0]),
            "{name}: {} {}",
            score(&batch[2]),
            score(&batch[0])
        );
        let k = model.config.experts.as_ref().unwrap().num_experts_per_tok;
        assert!(
            batch[2].routing.iter().all(|r| r.chosen.chunks(k).all(|chosen| chosen[0] == 1)),
            "{name}"
        );
    }
}

/// The share of an effect that acts through routing is that of the symptom, measured by hand.
#[test]
fn frozen_routing_removes_its_share_of_the_symptom() {
    let model = Model::load("builtin:moe").unwrap();
    let evaluator = ModelEvaluator::new(&model);
    let base = model.encode("It was the best of times, it was the worst of").unwrap();
    let mut shares = Vec::new();
    for id in [300, 900, 2500] {
        let edits = vec![Edit::Replace { position: base.len() - 1, id }];
        let trial = Trial::new(&base[..], []).with_edits(edits.clone());
        let options = LocalizeOptions { graph: false, ..LocalizeOptions::default() };
        let found = localize(&evaluator, &trial, &[], &[], &options).unwrap();
        let Some(symptom) = found.symptom else { continue };
        let frozen = edits.into_iter().chain([Edit::FreezeRouting]).collect();
        let frozen = Trial::new(&base[..], [symptom.id]).with_edits(frozen);
        let said = evaluator.observe_alone(&Request::new(frozen)).unwrap().log_probs[0];
        let share = (symptom.log_prob - f64::from(said)) / symptom.effect;
        assert!((found.routing.unwrap() - share).abs() < 1e-4, "{share} {:?}", found.routing);
        shares.push(share);
    }
    assert!(shares.iter().any(|share| share.abs() > 0.01), "{shares:?}");
}
