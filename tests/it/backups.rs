//! Models with a planted interaction: the built-in dense model with one component made twice, so
//! that each copy backs up the other.

use candle_core::{Device, Tensor};
use glitch::edit::{Action, Component, Trial};
use glitch::evaluate::ModelEvaluator;
use glitch::model::Model;
use glitch::sweep::{Baseline, Target, set_of_lesions};
use rand::Rng as _;

use super::checkpoints::{Tensors, changed, dense, tensors};

fn scaled(x: &Tensor, factor: f64) -> Tensor {
    (x * factor).unwrap()
}

/// Copies head `from` of a layer over head `to`, with keys and values of its own for every head;
/// `silenced` heads write nothing. The built-in model has two heads that repeat a token (`L3.head0`
/// and `L3.head1`) and that back up each other and a copy: where a third would, it is silenced.
fn head_twice(layer: usize, from: usize, to: usize, silenced: &[(usize, usize)]) -> Model {
    const DIM: usize = 32;
    let mut t = tensors(&dense());
    for l in 0..4 {
        let name = |part: &str| format!("model.layers.{l}.self_attn.{part}_proj.weight");
        let source = |head: usize| if l == layer && head == to { from } else { head };
        // Query heads 0 and 1 share key and value head 0, 2 and 3 the other.
        let rows = |x: &Tensor, shared: usize| {
            let part = |head: usize| x.narrow(0, source(head) / shared * DIM, DIM).unwrap();
            Tensor::cat(&[part(0), part(1), part(2), part(3)], 0).unwrap()
        };
        let column = |head: usize| {
            let own = t[&name("o")].narrow(1, source(head) * DIM, DIM).unwrap();
            scaled(&own, if silenced.contains(&(l, head)) { 0.0 } else { 1.0 })
        };
        let o = Tensor::cat(&[column(0), column(1), column(2), column(3)], 1).unwrap();
        let (q, k, v) = (rows(&t[&name("q")], 1), rows(&t[&name("k")], 2), rows(&t[&name("v")], 2));
        [("q", q), ("k", k), ("v", v), ("o", o)]
            .into_iter()
            .for_each(|(part, x)| drop(t.insert(name(part), x)));
    }
    changed(&dense(), &t, &[("num_key_value_heads", 4.into())])
}

/// Adds a fifth layer after `layer` with the same MLP, and lets each of the two write half.
fn mlp_twice(layer: usize) -> Model {
    let original = tensors(&dense());
    let mut t: Tensors = original
        .iter()
        .filter(|(name, _)| !name.contains(".layers."))
        .map(|(n, x)| (n.clone(), x.clone()))
        .collect();
    for l in 0..5usize {
        let from = format!(".layers.{}.", if l > layer { l - 1 } else { l });
        for (name, x) in original.iter().filter(|(name, _)| name.contains(&from)) {
            let copies = l == layer || l == layer + 1;
            let factor = match name {
                _ if l == layer + 1 && name.contains("o_proj") => 0.0,
                _ if copies && name.contains("down_proj") => 0.5,
                _ => 1.0,
            };
            t.insert(name.replace(&from, &format!(".layers.{l}.")), scaled(x, factor));
        }
    }
    changed(&dense(), &t, &[("num_hidden_layers", 5.into())])
}

fn noise(shape: (usize, usize), seed: u64, scale: f32) -> Tensor {
    let mut rng = glitch::rng::stream(seed, "planted pairs");
    let values: Vec<f32> =
        (0..shape.0 * shape.1).map(|_| scale * rng.random_range(-1.0f32..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Puts a mixture of five experts in the place of every MLP, one expert for each token. In `layer`
/// experts 0 and 1 are the MLP with one router row for both, experts 2 and 3 are the MLP with the
/// opposite row, and expert 4, which the router never prefers to both sides, outputs zero. So if
/// one of the four is masked, its twin is chosen. In the other layers the experts are the MLP with
/// a little noise, and the router's rows are random.
fn experts_twice(layer: usize) -> Model {
    let mut t = tensors(&dense());
    for l in 0..4usize {
        let mut mlp =
            |part: &str| t.remove(&format!("model.layers.{l}.mlp.{part}_proj.weight")).unwrap();
        let (gate, up, down) = (mlp("gate"), mlp("up"), mlp("down"));
        for expert in 0..5usize {
            let name = |part: &str| {
                format!("model.layers.{l}.block_sparse_moe.experts.{expert}.{part}.weight")
            };
            let own = match (l == layer, expert) {
                (true, 4) => scaled(&down, 0.0),
                (true, _) => down.clone(),
                (false, _) => {
                    (&down + noise((128, 384), (10 * l + expert) as u64 + 100, 0.01)).unwrap()
                }
            };
            [("w1", gate.clone()), ("w3", up.clone()), ("w2", own)]
                .into_iter()
                .for_each(|(part, x)| drop(t.insert(name(part), x)));
        }
        let random = noise((5, 128), l as u64 + 50, 0.1);
        let row = random.narrow(0, 0, 1).unwrap();
        let opposite = scaled(&row, -1.0);
        let twins = [row.clone(), row.clone(), opposite.clone(), opposite, scaled(&row, 0.0)];
        let router = if l == layer { Tensor::cat(&twins, 0).unwrap() } else { random };
        t.insert(format!("model.layers.{l}.block_sparse_moe.gate.weight"), router);
    }
    changed(
        &dense(),
        &t,
        &[
            ("model_type", "mixtral".into()),
            ("architectures", serde_json::json!(["MixtralForCausalLM"])),
            ("num_local_experts", 5.into()),
            ("num_experts_per_tok", 1.into()),
        ],
    )
}

/// A model with a planted interaction.
pub struct Planted {
    pub model: Model,
    pub target: Target,
    pub action: Action,
    /// True if the answer to an echo prompt is measured, false for the loss on plain English.
    pub on_echo: bool,
    /// The two components that back up each other.
    pub pair: [Component; 2],
}

pub fn head(layer: usize, head: usize) -> Component {
    Component::Head { layer, head }
}

/// Makes ten such models; `english` decides which twins of a mixture are used more.
pub fn planted(english: &Trial) -> Vec<Planted> {
    let heads = |layer, from: usize, to: usize, silenced: &[(usize, usize)]| Planted {
        model: head_twice(layer, from, to, silenced),
        target: Target::Heads,
        action: Action::Zero,
        on_echo: true,
        pair: [head(layer, from.min(to)), head(layer, from.max(to))],
    };
    let experts = |layer| {
        let model = experts_twice(layer);
        // The twins that the router prefers on more of the text.
        let twins = [0, 2]
            .map(|first| [first, first + 1].map(|expert| Component::Expert { layer, expert }));
        let harm = |pair: &[Component; 2]| {
            let evaluator = ModelEvaluator::new(&model);
            Baseline::new(&evaluator, english)
                .unwrap()
                .effects(&[set_of_lesions(pair, Action::Mask)], &|_, _| {})
                .unwrap()[0]
                .nats
        };
        let pair = if harm(&twins[0]) > harm(&twins[1]) { twins[0] } else { twins[1] };
        Planted { model, target: Target::Experts, action: Action::Mask, on_echo: false, pair }
    };
    let mlps = Planted {
        model: mlp_twice(0),
        target: Target::Mlps,
        action: Action::Zero,
        on_echo: false,
        pair: [0, 1].map(|layer| Component::Mlp { layer }),
    };
    vec![
        heads(3, 0, 1, &[]),
        heads(3, 1, 0, &[]),
        heads(3, 0, 3, &[(3, 1)]),
        heads(3, 1, 3, &[(3, 0)]),
        heads(0, 3, 0, &[(3, 1)]),
        mlps,
        experts(0),
        experts(1),
        experts(2),
        experts(3),
    ]
}
