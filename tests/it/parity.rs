//! Every family against the logits of Hugging Face transformers (tests/fixtures/README.md), at
//! every position, in both numeric modes, with padding, caches and restarts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use glitch::model::batch::{Entry, Residuals, Restart, Row, Segment, from_padded};
use glitch::model::hooks::Site;
use glitch::model::{Forward, Model};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub fn load(name: &str) -> Model {
    Model::load(fixtures().join(name).to_str().unwrap()).unwrap()
}

/// Those with attention alone: one of each family and of what its configurations differ in.
pub const ATTENTION: [&str; 19] = [
    "llama",
    "llama-bias",
    "llama3-rope",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt-neox",
    "gpt-neox-serial",
    "gemma3",
    "olmo2",
    "phi3",
    "mixtral",
    "olmoe",
    "qwen2-moe",
    "qwen3-moe",
    "deepseek-v2",
    "deepseek-v2-lite",
    "deepseek-v2-yarn",
];

/// Those with a recurrent state.
pub const RECURRENT: [&str; 9] = [
    "mamba",
    "mamba-bias",
    "mamba2",
    "falcon-mamba",
    "jamba",
    "rwkv4",
    "rwkv4-rescale",
    "rwkv6",
    "rwkv7",
];

fn expected(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn ids(tensors: &HashMap<String, Tensor>, name: &str) -> Vec<Vec<u32>> {
    let rows = tensors[name].to_vec2::<i64>().unwrap();
    rows.into_iter().map(|row| row.into_iter().map(|id| id as u32).collect()).collect()
}

fn close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-4 && got.iter().all(|x| x.is_finite()), "{what}: off by {worst}");
}

fn logits(model: &Model, rows: Vec<Row>) -> Vec<f32> {
    model.logits(&model.forward(&Forward { rows, ..Forward::default() }).unwrap().residual).to_vec()
}

fn check(model: &Model, tensors: &HashMap<String, Tensor>, name: &str) {
    let rows: Vec<Row> = ids(tensors, "ids").into_iter().map(Row::new).collect();
    let want: Vec<f32> = tensors["logits"].flatten_all().unwrap().to_vec1().unwrap();
    close(&logits(model, rows.clone()), &want, name);

    let forward = Forward { rows, ..Forward::default() };
    let embeddings = model.embed_tensor(&forward).unwrap();
    let gradient = model.forward_gradient(&forward, &embeddings).unwrap();
    close(
        &gradient.flatten_all().unwrap().to_vec1().unwrap(),
        &want,
        &format!("{name} in gradient mode"),
    );

    if tensors.contains_key("padded_ids") {
        let mask: Vec<Vec<bool>> = ids(tensors, "attention_mask")
            .iter()
            .map(|r| r.iter().map(|m| *m != 0).collect())
            .collect();
        let rows = from_padded(&ids(tensors, "padded_ids"), &mask);
        let vocabulary = model.config.vocab_size;
        let all: Vec<f32> = tensors["padded_logits"].flatten_all().unwrap().to_vec1().unwrap();
        let kept = all
            .chunks(vocabulary)
            .zip(mask.iter().flatten())
            .filter(|(_, m)| **m)
            .flat_map(|(l, _)| l.iter().copied());
        close(&logits(model, rows), &kept.collect::<Vec<_>>(), &format!("{name} padded"));
    }
}

#[test]
fn folders_agree_with_transformers() {
    for name in [
        "llama",
        "llama-tied",
        "llama3-rope",
        "llama-bias",
        "mistral",
        "qwen2",
        "qwen2-window",
        "qwen3",
        "sharded",
        "llama-tok",
        "gpt2",
        "gpt-neox",
        "gpt-neox-serial",
        "gemma3",
        "gemma3-scaled",
        "olmo2",
        "phi3",
        "phi3-longrope",
        "mixtral",
        "olmoe",
        "qwen2-moe",
        "qwen3-moe",
        "deepseek-v2",
        "deepseek-v2-lite",
        "deepseek-v2-yarn",
        "qwen3-moe-yarn",
    ]
    .into_iter()
    .chain(RECURRENT)
    {
        check(&load(name), &expected(&fixtures().join(name).join("expected.safetensors")), name);
    }
}

/// The spellings of the same configuration: transformers 5 nests rope_theta, older Qwen2 has no
/// layer_types.
#[test]
fn other_spellings_of_the_configuration_agree() {
    for (name, config) in [
        ("llama", "config.v5.json"),
        ("llama-tied", "config.v5.json"),
        ("llama3-rope", "config.v5.json"),
        ("mistral", "config.v5.json"),
        ("qwen2", "config.v5.json"),
        ("qwen3", "config.v5.json"),
        ("qwen2-window", "config.v5.json"),
        ("qwen2-window", "config.no-layer-types.json"),
        ("gemma3", "config.no-layer-types.json"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for file in ["model.safetensors", "expected.safetensors"] {
            std::fs::copy(fixtures().join(name).join(file), dir.path().join(file)).unwrap();
        }
        std::fs::copy(fixtures().join(name).join(config), dir.path().join("config.json")).unwrap();
        let model = Model::load(dir.path().to_str().unwrap()).unwrap();
        check(
            &model,
            &expected(&dir.path().join("expected.safetensors")),
            &format!("{name}/{config}"),
        );
    }
}

#[test]
fn a_pth_file_agrees_with_the_rwkv_package() {
    let folder = fixtures().join("rwkv7");
    let model = Model::load(folder.join("model.pth").to_str().unwrap()).unwrap();
    check(&model, &expected(&folder.join("expected.safetensors")), "rwkv7/model.pth");
}

#[test]
fn gguf_files_agree_with_transformers() {
    let dense = [
        "f32",
        "f16",
        "q8_0",
        "q4_0",
        "q4_1",
        "q5_0",
        "q5_1",
        "k-quants",
        "llama3-rope",
        "qwen2",
        "qwen3",
        "gemma3",
    ];
    for name in
        dense.into_iter().chain(["mixtral", "mixtral-split", "qwen2moe", "qwen3moe", "olmoe"])
    {
        let model = load(&format!("gguf/{name}.gguf"));
        check(
            &model,
            &expected(&fixtures().join(format!("gguf/{name}.expected.safetensors"))),
            name,
        );
    }
}

#[test]
fn gguf_tokenizers_agree_with_their_json() {
    let text = std::fs::read_to_string(fixtures().join("gguf/expected_encodings.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (file, pre) in
        [("f32", "llama-bpe"), ("k-quants", "smollm"), ("qwen2", "qwen2"), ("gemma3", "gemma3")]
    {
        let model = load(&format!("gguf/{file}.gguf"));
        let tokenizer = model.tokenizer.as_ref().unwrap();
        let cases = all[pre].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let want: Vec<u32> = case["ids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_u64().unwrap() as u32)
                .collect();
            assert_eq!(
                tokenizer.encode(case["text"].as_str().unwrap()).unwrap(),
                want,
                "{pre}: {}",
                case["text"]
            );
        }
    }
}

fn captured_residuals(model: &Model) -> std::collections::BTreeSet<(usize, Site)> {
    (0..model.config.num_hidden_layers)
        .flat_map(|l| [(l, Site::ResidPre), (l, Site::ResidMid)])
        .collect()
}

fn residuals(captured: std::collections::BTreeMap<(usize, Site), Vec<f32>>) -> Arc<Residuals> {
    let of = |site| {
        captured
            .iter()
            .filter(move |((_, s), _)| *s == site)
            .map(|(_, values)| values.clone())
            .collect()
    };
    Arc::new(Residuals { pre: of(Site::ResidPre), mid: of(Site::ResidMid) })
}

/// Shared prefix, per-token continuation and restart from a cached layer are the same arithmetic:
/// equal to the bit, not merely close.
#[test]
fn caches_and_restarts_change_nothing() {
    for name in [
        "llama",
        "mistral",
        "qwen3",
        "gpt2",
        "gpt-neox",
        "gemma3",
        "olmo2",
        "qwen2-moe",
        "deepseek-v2",
    ] {
        let model = load(name);
        let rows = ids(&expected(&fixtures().join(name).join("expected.safetensors")), "ids");
        let row = &rows[0];
        let whole = logits(&model, vec![Row::new(row.clone())]);
        let mut forward =
            Forward { rows: vec![Row::new(row.clone())], keep_kv: true, ..Forward::default() };
        forward.hooks.capture = captured_residuals(&model);
        let output = model.forward(&forward).unwrap();
        let (store, residuals) = (output.kv.unwrap(), residuals(output.captured));
        let between = !residuals.mid.is_empty();
        let cut = row.len() / 2;
        let prefix = |len| vec![Segment { store: store.clone(), start: 0, len }];
        let split = vec![
            Segment { store: store.clone(), start: 0, len: 3 },
            Segment { store: store.clone(), start: 3, len: cut - 3 },
        ];
        let restart = |entry, start| Some(Restart { entry, residuals: residuals.clone(), start });
        let half = row[cut..].to_vec();
        let mut batch = vec![
            Row::new(rows[1].clone()),
            Row { prefix: prefix(cut), ids: half.clone(), restart: None },
            Row { prefix: split, ids: half.clone(), restart: None },
        ];
        for entry in [Entry::MidLayer(0), Entry::Layer(1), Entry::MidLayer(1)]
            .into_iter()
            .filter(|entry| between || matches!(entry, Entry::Layer(_)))
        {
            batch.push(Row { prefix: vec![], ids: row.clone(), restart: restart(entry, 0) });
            batch.push(Row {
                prefix: prefix(cut),
                ids: half.clone(),
                restart: restart(entry, cut),
            });
        }
        let lengths: Vec<usize> = batch.iter().map(|r| r.ids.len()).collect();
        let got = logits(&model, batch);
        let v = model.config.vocab_size;
        let mut at = lengths[0] * v;
        for (i, len) in lengths.iter().enumerate().skip(1) {
            assert_eq!(&got[at..at + len * v], &whole[whole.len() - len * v..], "{name}: row {i}");
            at += len * v;
        }
    }
}

/// A recurrent model's state handed on after every token, after every so-many, or not at all: the
/// same to the bit. And rows that enter above the first layer, in the middle of a sequence.
#[test]
fn stepwise_and_whole_agree() {
    for name in RECURRENT {
        let model = load(name);
        let rows = ids(&expected(&fixtures().join(name).join("expected.safetensors")), "ids");
        let row: Vec<u32> = rows[0].iter().chain(&rows[1]).copied().collect();
        let whole = logits(&model, vec![Row::new(row.clone())]);
        let v = model.config.vocab_size;
        for step in [1, 5] {
            let mut prefix: Vec<Segment> = Vec::new();
            let mut stepped = Vec::new();
            for part in row.chunks(step) {
                let next = Row { prefix: prefix.clone(), ids: part.to_vec(), restart: None };
                // Not alone in its batch, so that its tokens are not the first.
                let forward = Forward {
                    rows: vec![Row::new(vec![3, 1, 4]), next],
                    keep_kv: true,
                    ..Forward::default()
                };
                let output = model.forward(&forward).unwrap();
                stepped.extend_from_slice(&model.logits(&output.residual)[3 * v..]);
                prefix.push(Segment { store: output.kv.unwrap(), start: 3, len: part.len() });
            }
            assert_eq!(stepped, whole, "{name}: {step} at a time");
        }

        let mut forward =
            Forward { rows: vec![Row::new(row.clone())], keep_kv: true, ..Forward::default() };
        forward.hooks.capture = captured_residuals(&model);
        let output = model.forward(&forward).unwrap();
        let (store, residuals) = (output.kv.unwrap(), residuals(output.captured));
        let prefix = vec![Segment { store: store.clone(), start: 0, len: 32 }];
        let restart = |layer, start| {
            Some(Restart { entry: Entry::Layer(layer), residuals: residuals.clone(), start })
        };
        let batch = vec![
            Row { prefix: prefix.clone(), ids: row[32..].to_vec(), restart: None },
            Row { prefix: vec![], ids: row.clone(), restart: restart(1, 0) },
            Row { prefix, ids: row[32..].to_vec(), restart: restart(1, 32) },
        ];
        let got = logits(&model, batch);
        let rest = &whole[32 * v..];
        assert_eq!(got, [rest, &whole, rest].concat(), "{name}: from a kept state");

        let nowhere =
            Row { prefix: vec![Segment { store, start: 0, len: 17 }], ids: vec![1], restart: None };
        let error =
            model.forward(&Forward { rows: vec![nowhere], ..Forward::default() }).err().unwrap();
        assert!(error.to_string().contains("no state was kept"), "{name}: {error}");
    }
}
