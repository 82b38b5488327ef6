//! A lesion against a checkpoint from which the same weights were cut out: that something moved
//! does not prove that the right thing did.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use glitch::edit::{
    Action, Component, Edit, InLayer, Matrix, ResidualSite, Steering, SteeringChange,
    SteeringVector, Trial,
};
use glitch::evaluate::{Evaluator, ModelEvaluator, Request};
use glitch::model::{Config, Model};

use super::parity::{fixtures, load};

/// The layer that is cut.
const LAYER: usize = 1;

fn trial() -> Trial {
    let ids: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 96).collect();
    Trial::new(&ids[..12], &ids[12..])
}

fn log_probs(model: &Model, edits: Vec<Edit>) -> Vec<f32> {
    let request = Request::new(trial().with_edits(edits));
    ModelEvaluator::new(model).observe_alone(&request).unwrap().log_probs
}

/// Loads a model of the fixtures after `change` has changed its tensors.
pub fn load_changed(name: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Model {
    let (from, to) = (fixtures().join(name), tempfile::tempdir().unwrap());
    std::fs::copy(from.join("config.json"), to.path().join("config.json")).unwrap();
    let path = from.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, to.path().join("model.safetensors")).unwrap();
    Model::load(to.path().to_str().unwrap()).unwrap()
}

/// Loads a model of the fixtures with those values of a matrix zeroed whose row and column in the
/// file `cut` accepts.
fn load_without(name: &str, tensor: &str, cut: impl Fn(usize, usize) -> bool) -> Model {
    load_changed(name, |tensors| {
        let mut rows = tensors[tensor].to_vec2::<f32>().unwrap();
        for (row, values) in rows.iter_mut().enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                if cut(row, column) {
                    *value = 0.0;
                }
            }
        }
        tensors.insert(tensor.to_owned(), Tensor::new(rows, &Device::Cpu).unwrap());
    })
}

/// A fixture and what it calls the last matrix of each block of [`LAYER`].
struct Fixture {
    name: &'static str,
    /// The output projection of the mixer.
    mixer: &'static str,
    /// The last matrix of the MLP, or of the channel mixing.
    mlp: Option<&'static str>,
    /// Whether matrices are kept as `[in, out]`.
    transposed: bool,
}

const fn fixture(name: &'static str, mixer: &'static str, mlp: &'static str) -> Fixture {
    Fixture { name, mixer, mlp: Some(mlp), transposed: false }
}

const LLAMA_MIXER: &str = "model.layers.1.self_attn.o_proj";
const LLAMA_MLP: &str = "model.layers.1.mlp.down_proj";

/// One of each form of a block: attention with shared and with latent keys, blocks side by side and
/// with norms behind them, biases, every recurrence.
const FIXTURES: [Fixture; 12] = [
    fixture("llama", LLAMA_MIXER, LLAMA_MLP),
    fixture("gemma3", LLAMA_MIXER, LLAMA_MLP),
    fixture("olmo2", LLAMA_MIXER, LLAMA_MLP),
    fixture("phi3", LLAMA_MIXER, LLAMA_MLP),
    fixture("gpt-neox", "gpt_neox.layers.1.attention.dense", "gpt_neox.layers.1.mlp.dense_4h_to_h"),
    Fixture {
        transposed: true,
        ..fixture("gpt2", "transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj")
    },
    Fixture { mlp: None, ..fixture("deepseek-v2", LLAMA_MIXER, "") },
    Fixture { mlp: None, ..fixture("mamba", "backbone.layers.1.mixer.out_proj", "") },
    Fixture { mlp: None, ..fixture("mamba2", "backbone.layers.1.mixer.out_proj", "") },
    fixture("rwkv4", "rwkv.blocks.1.attention.output", "rwkv.blocks.1.feed_forward.value"),
    fixture("rwkv6", "blocks.1.att.output", "blocks.1.ffn.value"),
    fixture("rwkv7", "blocks.1.att.output", "blocks.1.ffn.value"),
];

/// Checks that zeroing a component is, to the bit, the model whose matrix lacks the inputs that
/// `cut` accepts, and that the model does not do without them.
fn check(fixture: &Fixture, component: Component, matrix: &str, cut: impl Fn(usize) -> bool) {
    let model = load(fixture.name);
    let input = |row: usize, column: usize| if fixture.transposed { row } else { column };
    let without = load_without(fixture.name, &format!("{matrix}.weight"), |r, c| cut(input(r, c)));
    let lesioned = log_probs(&model, vec![Edit::lesion(component, Action::Zero)]);
    assert_eq!(lesioned, log_probs(&without, vec![]), "{}: {component}", fixture.name);
    assert_ne!(lesioned, log_probs(&model, vec![]), "{}: {component}", fixture.name);
}

#[test]
fn zeroing_a_head_or_a_channel_is_zeroing_its_output_weights() {
    for fixture in &FIXTURES {
        let config = load(fixture.name).config;
        let (heads, width) = (config.heads(LAYER), config.z_width(LAYER));
        if let Some(dim) = width.checked_div(heads) {
            for head in [0, heads - 1] {
                let component = Component::Head { layer: LAYER, head };
                check(fixture, component, fixture.mixer, |input| input / dim == head);
            }
        }
        if config.channels(LAYER) > 0 {
            let component = Component::Channel { layer: LAYER, channel: 5 };
            check(fixture, component, fixture.mixer, |input| input == 5);
        }
    }
}

#[test]
fn zeroing_a_neuron_is_zeroing_its_output_weights() {
    for fixture in &FIXTURES {
        let Some(mlp) = fixture.mlp else { continue };
        let neurons = load(fixture.name).config.neurons(LAYER);
        for neuron in [7, neurons - 1] {
            let component = Component::Neuron { layer: LAYER, neuron };
            check(fixture, component, mlp, |input| input == neuron);
        }
    }
}

/// A block whose last matrix and bias are zero adds nothing.
#[test]
fn zeroing_a_block_is_zeroing_its_last_matrix() {
    for fixture in &FIXTURES {
        let model = load(fixture.name);
        let mixer = (model.config.mixer(LAYER), Some(fixture.mixer));
        let blocks = [Some(mixer), model.config.mlp(LAYER).map(|mlp| (mlp, fixture.mlp))];
        for (component, matrix) in blocks.into_iter().flatten() {
            let Some(matrix) = matrix else { continue };
            let without = load_changed(fixture.name, |tensors| {
                let names = [format!("{matrix}.weight"), format!("{matrix}.bias")];
                for name in names.iter().filter(|name| name.ends_with("weight")) {
                    assert!(tensors.contains_key(name), "{}: no {name}", fixture.name);
                }
                for (_, tensor) in tensors.iter_mut().filter(|(name, _)| names.contains(name)) {
                    *tensor = tensor.zeros_like().unwrap();
                }
            });
            let lesioned = log_probs(&model, vec![Edit::lesion(component, Action::Zero)]);
            assert_eq!(lesioned, log_probs(&without, vec![]), "{}: {component}", fixture.name);
            assert_ne!(lesioned, log_probs(&model, vec![]), "{}: {component}", fixture.name);
        }
    }
}

/// A direction removed everywhere in the residual stream is a model that never writes along it
/// (Arditi et al. 2024, section 4.1): with a direction along one axis, the checkpoint whose
/// embeddings and last matrices lack that column or row.
#[test]
fn removing_a_direction_everywhere_is_never_writing_along_it() {
    const AXIS: usize = 3;
    for (name, embed, writers, parallel) in [
        ("llama", "embed_tokens.weight", &["o_proj.weight", "down_proj.weight"][..], false),
        ("mamba", "embeddings.weight", &["out_proj.weight"][..], false),
        ("gpt-neox", "embed_in.weight", &["attention.dense.", "dense_4h_to_h."][..], true),
    ] {
        let model = load(name);
        let without = load_changed(name, |tensors| {
            let mut cut = 0;
            for (tensor, values) in tensors.iter_mut() {
                let d = model.config.hidden_size;
                let kept =
                    Tensor::from_iter((0..d).map(|i| f32::from(u8::from(i != AXIS))), &Device::Cpu);
                let kept = kept.unwrap();
                let kept = match tensor {
                    tensor if tensor.ends_with(embed) => kept,
                    tensor if !writers.iter().any(|writer| tensor.contains(writer)) => continue,
                    _ if values.rank() == 2 => kept.unsqueeze(1).unwrap(),
                    _ => kept,
                };
                *values = values.broadcast_mul(&kept).unwrap();
                cut += 1;
            }
            assert!(cut > writers.len() * model.config.num_hidden_layers, "{name}: {cut} tensors");
        });
        let mut along = vec![0.0; model.config.hidden_size];
        along[AXIS] = 2.0;
        let remove = |layer, at| {
            let vector = SteeringVector::Values { values: along.clone() };
            let site = ResidualSite { layer, at };
            let steering = Steering { site, vector, change: SteeringChange::Remove };
            Edit::Steering { steering, position: None }
        };
        let mut edits = vec![remove(0, InLayer::Pre)];
        for layer in 0..model.config.num_hidden_layers {
            edits.extend((!parallel).then(|| remove(layer, InLayer::Mid)));
            edits.push(remove(layer, InLayer::Post));
        }
        let removed = log_probs(&model, edits);
        assert_eq!(removed, log_probs(&without, vec![]), "{name}");
        assert_ne!(removed, log_probs(&model, vec![]), "{name}");
    }
}

/// Where the weight from `input` to `out` of a matrix of [`LAYER`] is in a checkpoint: its tensor,
/// row and column.
type Place = fn(&Config, out: usize, input: usize) -> (&'static str, usize, usize);

/// Every matrix of a layer, in each of the ways that families keep it.
const WEIGHTS: [(&str, Matrix, Place); 24] = [
    ("llama", Matrix::Q, |_, o, i| ("model.layers.1.self_attn.q_proj", o, i)),
    ("llama", Matrix::K, |_, o, i| ("model.layers.1.self_attn.k_proj", o, i)),
    ("llama", Matrix::V, |_, o, i| ("model.layers.1.self_attn.v_proj", o, i)),
    ("llama", Matrix::O, |_, o, i| (LLAMA_MIXER, o, i)),
    ("llama", Matrix::Gate, |_, o, i| ("model.layers.1.mlp.gate_proj", o, i)),
    ("llama", Matrix::Up, |_, o, i| ("model.layers.1.mlp.up_proj", o, i)),
    ("llama", Matrix::Down, |_, o, i| (LLAMA_MLP, o, i)),
    ("phi3", Matrix::K, |c, o, i| ("model.layers.1.self_attn.qkv_proj", c.q_width() + o, i)),
    ("phi3", Matrix::Up, |c, o, i| ("model.layers.1.mlp.gate_up_proj", c.intermediate_size + o, i)),
    ("gpt2", Matrix::V, |c, o, i| ("transformer.h.1.attn.c_attn", i, 2 * c.hidden_size + o)),
    ("gpt2", Matrix::Up, |_, o, i| ("transformer.h.1.mlp.c_fc", i, o)),
    ("gpt-neox", Matrix::K, |c, o, i| {
        let (head, row) = (o / c.head_dim, o % c.head_dim);
        ("gpt_neox.layers.1.attention.query_key_value", (3 * head + 1) * c.head_dim + row, i)
    }),
    ("mamba", Matrix::SsmIn, |_, o, i| ("backbone.layers.1.mixer.in_proj", o, i)),
    ("mamba", Matrix::SsmX, |_, o, i| ("backbone.layers.1.mixer.x_proj", o, i)),
    ("mamba", Matrix::SsmDt, |_, o, i| ("backbone.layers.1.mixer.dt_proj", o, i)),
    ("mamba2", Matrix::SsmOut, |_, o, i| ("backbone.layers.1.mixer.out_proj", o, i)),
    ("rwkv6", Matrix::Receptance, |_, o, i| ("blocks.1.att.receptance", o, i)),
    ("rwkv6", Matrix::Key, |_, o, i| ("blocks.1.att.key", o, i)),
    ("rwkv6", Matrix::Value, |_, o, i| ("blocks.1.att.value", o, i)),
    ("rwkv6", Matrix::TimeGate, |_, o, i| ("blocks.1.att.gate", o, i)),
    ("rwkv6", Matrix::TimeOut, |_, o, i| ("blocks.1.att.output", o, i)),
    ("rwkv6", Matrix::ChannelKey, |_, o, i| ("blocks.1.ffn.key", o, i)),
    ("rwkv6", Matrix::ChannelValue, |_, o, i| ("blocks.1.ffn.value", o, i)),
    ("rwkv6", Matrix::ChannelReceptance, |_, o, i| ("blocks.1.ffn.receptance", o, i)),
];

/// The largest weight of each matrix. Its lesion is a correction that is added to the product, so
/// it equals the checkpoint without it up to rounding: a hundredth of what the weight does.
#[test]
fn zeroing_a_weight_is_zeroing_it_in_the_checkpoint() {
    for (name, matrix, place) in WEIGHTS {
        let model = load(name);
        let (rows, columns) = model.config.matrix_shape(LAYER, matrix).unwrap();
        let value = |out, input| model.weight(LAYER, matrix, out, input);
        let all = (0..rows).flat_map(|out| (0..columns).map(move |input| (out, input)));
        let size = |(out, input)| f32::abs(value(out, input));
        let (out, input) = all.max_by(|a, b| size(*a).total_cmp(&size(*b))).unwrap();
        let (tensor, row, column) = place(&model.config, out, input);
        let without =
            load_without(name, &format!("{tensor}.weight"), |r, c| (r, c) == (row, column));
        assert_ne!(value(out, input), 0.0);
        assert_eq!(without.weight(LAYER, matrix, out, input), 0.0, "{name}: {matrix:?}");
        let component = Component::Weight { layer: LAYER, matrix, out, input };
        let lesioned = log_probs(&model, vec![Edit::lesion(component, Action::Zero)]);
        let (without, intact) = (log_probs(&without, vec![]), log_probs(&model, vec![]));
        let distance = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
        };
        let (error, effect) = (distance(&lesioned, &without), distance(&without, &intact));
        assert!(error < 0.01 * effect, "{name}: {component}: off by {error} of {effect}");
    }
}
