//! Model files that are damaged or made to do harm: an error of one line that names the file, no
//! panic, and nothing allocated on a file's word.

use std::path::Path;

use glitch::model::Model;
use serde_json::{Value, json};

use super::parity::fixtures;

/// Loads a folder made of a fixture's files, some of them changed, and expects an error that
/// contains `expect`.
fn check(name: &str, fixture: &str, change: impl FnOnce(&Path), expect: &str) {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let from = fixtures().join(fixture).join(file);
        if from.is_file() {
            std::fs::copy(from, dir.path().join(file)).unwrap();
        }
    }
    change(dir.path());
    refused(name, dir.path(), expect);
}

fn refused(name: &str, path: &Path, expect: &str) {
    keep(name, path);
    let Err(error) = Model::load(path.to_str().unwrap()) else { panic!("{name}: was loaded") };
    assert_eq!(glitch::cli::exit::of(&error), 3, "{name}: {error}");
    let error = error.to_string();
    assert!(!error.contains('\n') && error.len() < 600, "{name}: not one line: {error}");
    assert!(!error.chars().any(char::is_control), "{name}: a control character: {error:?}");
    assert!(error.contains(expect), "{name}: {error:?} does not say {expect:?}");
}

/// For benches/hostile_memory.sh, which measures what the program takes on each of these: a copy.
fn keep(name: &str, path: &Path) {
    let Some(kept) = std::env::var_os("GLITCH_KEEP_HOSTILE") else { return };
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let to = Path::new(&kept).join(name);
    if path.is_file() {
        std::fs::create_dir_all(&to).unwrap();
        std::fs::copy(path, to.join(path.file_name().unwrap())).unwrap();
        return;
    }
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(path).unwrap().flatten().filter(|e| e.path().is_file()) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn configurations() {
    let set = |fixture: &str, field: &str, value: Value, expect: &str| {
        let change = |dir: &Path| {
            let path = dir.join("config.json");
            let mut config: Value = serde_json::from_str(
                &std::fs::read_to_string(&path).unwrap().replace("Infinity", "null"),
            )
            .unwrap();
            match value.is_null() {
                true => drop(config.as_object_mut().unwrap().remove(field)),
                false => config[field] = value.clone(),
            }
            std::fs::write(path, config.to_string()).unwrap();
        };
        check(&format!("{fixture}: {field} = {value}"), fixture, change, expect);
    };
    for fixture in ["mamba", "mamba2", "rwkv4", "rwkv6", "rwkv7"] {
        for field in ["hidden_size", "num_hidden_layers", "vocab_size"] {
            set(fixture, field, Value::Null, field);
            set(fixture, field, json!(0), field);
            set(fixture, field, json!(1u64 << 60), field);
        }
        set(fixture, "hidden_size", json!(64), "");
        set(fixture, "num_hidden_layers", json!(900), "tensor is missing");
    }
    set("mamba", "state_size", json!(1u64 << 40), "state_size");
    set("mamba", "conv_kernel", json!(0), "conv_kernel");
    set("mamba", "conv_kernel", json!(5), "conv1d.weight");
    set("mamba", "time_step_rank", json!("many"), "time_step_rank");
    set("mamba2", "num_heads", json!(3), "num_heads");
    set("mamba2", "n_groups", json!(3), "n_groups");
    set("mamba2", "time_step_limit", json!([1.0]), "time_step_limit");
    set("mamba2", "time_step_limit", json!([1.0, 0.5]), "time_step_limit");
    set("jamba", "attn_layer_offset", json!(9), "attn_layer_offset");
    set("jamba", "expert_layer_period", json!(0), "expert_layer_period");
    set("rwkv4", "rescale_every", json!(-1), "rescale_every");
    for field in [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    ] {
        set("llama", field, Value::Null, field);
        set("llama", field, json!(0), field);
        set("llama", field, json!(1u64 << 60), field);
    }
    set("llama", "hidden_size", json!(-32), "hidden_size");
    set("llama", "hidden_size", json!(31.5), "hidden_size");
    set("llama", "hidden_size", json!("32\u{1b}[31m"), "hidden_size");
    set("llama", "hidden_size", json!(64), "model.embed_tokens.weight");
    set("llama", "num_hidden_layers", json!(1000), "tensor is missing");
    set("llama", "num_key_value_heads", json!(3), "num_key_value_heads");
    set("llama", "head_dim", json!(7), "head_dim");
    set("llama", "rms_norm_eps", json!(-1.0), "rms_norm_eps");
    set("llama", "hidden_act", json!("swosh"), "hidden_act");
    set("llama", "model_type", json!("../../etc/passwd\n"), "known: llama");
    set("llama", "eos_token_id", json!([1, "x"]), "eos_token_id");
    set("llama3-rope", "rope_scaling", json!({ "rope_type": "mystery" }), "rope_scaling.rope_type");
    set(
        "llama3-rope",
        "rope_scaling",
        json!({ "rope_type": "llama3", "factor": 8.0 }),
        "rope_scaling",
    );
    set(
        "phi3-longrope",
        "rope_scaling",
        json!({ "type": "longrope", "short_factor": [1.0, 0.0] }),
        "short_factor",
    );
    set("gemma3", "layer_types", json!(["full_attention"]), "layer_types");
    set("gemma3", "layer_types", json!(["full_attention", 1, 2, 3]), "layer_types");
    set("gemma3", "final_logit_softcapping", json!(30.0), "final_logit_softcapping");
    set("olmoe", "num_experts_per_tok", json!(9), "num_experts_per_tok");
    set("olmoe", "num_experts", json!(1u64 << 40), "num_experts");
    set("olmoe", "num_experts", json!(9), "mlp.gate.weight");
    set("qwen2-moe", "mlp_only_layers", json!("all"), "mlp_only_layers");
    set("qwen2-moe", "decoder_sparse_step", json!(0), "decoder_sparse_step");
    set("gpt2", "n_positions", json!(1 << 20), "wpe");
    let write = |text: &'static str| {
        move |dir: &Path| std::fs::write(dir.join("config.json"), text).unwrap()
    };
    check("no JSON", "llama", write("{"), "config.json");
    check("a list", "llama", write("[]"), "expected a JSON object");
    check(
        "deep",
        "llama",
        |dir| std::fs::write(dir.join("config.json"), "[".repeat(100_000)).unwrap(),
        "config.json",
    );
    check(
        "no config",
        "llama",
        |dir| std::fs::remove_file(dir.join("config.json")).unwrap(),
        "config.json",
    );
}

/// A safetensors file: its header, padded, and `bytes` of data.
fn safetensors(header: &str, bytes: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0u8; bytes]].concat()
}

#[test]
fn safetensors_files() {
    let path = fixtures().join("llama/model.safetensors");
    let whole = std::fs::read(path).unwrap();
    let put = |bytes: Vec<u8>| {
        move |dir: &Path| std::fs::write(dir.join("model.safetensors"), bytes).unwrap()
    };
    for length in [0, 1, 7, 8, 9, 200, whole.len() / 2, whole.len() - 1] {
        check(&format!("cut to {length}"), "llama", put(whole[..length].to_vec()), "safetensors");
    }
    let name = r#""model.embed_tokens.weight""#;
    for (what, header) in [
        ("no JSON", "{".to_owned()),
        (
            "an unknown type",
            format!(r#"{{{name}:{{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}}}}"#),
        ),
        (
            "data beyond the end",
            format!(r#"{{{name}:{{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}}}"#),
        ),
        (
            "data backwards",
            format!(r#"{{{name}:{{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}}}"#),
        ),
        (
            "a shape of another size",
            format!(r#"{{{name}:{{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}}}"#),
        ),
        (
            "a shape beyond counting",
            format!(r#"{{{name}:{{"dtype":"F32","shape":[4294967296,4294967296,4],"#,)
                + r#""data_offsets":[0,8]}}"#,
        ),
        (
            "too small a shape",
            format!(r#"{{{name}:{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#),
        ),
        ("no tensors", "{}".to_owned()),
    ] {
        let bytes = safetensors(&header, if header == "{}" { 0 } else { 8 });
        check(
            what,
            "llama",
            put(bytes),
            if what == "too small a shape" { "expected shape" } else { "" },
        );
    }
    check(
        "a header of 2^60 bytes",
        "llama",
        put([&(1u64 << 60).to_le_bytes()[..], b"{}"].concat()),
        "safetensors",
    );
    for (what, bits) in [("NaN", f32::NAN), ("infinity", f32::INFINITY)] {
        let mut damaged = whole.clone();
        let at = damaged.len() - 8;
        damaged[at..at + 4].copy_from_slice(&bits.to_le_bytes());
        check(what, "llama", put(damaged), "is not finite");
    }
    check(
        "no weights",
        "llama",
        |dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap(),
        "no such file",
    );
    check(
        "no tokenizer",
        "llama-tok",
        |dir| std::fs::write(dir.join("tokenizer.json"), "{}").unwrap(),
        "tokenizer",
    );
}

#[test]
fn indices_of_shards() {
    let index = "model.safetensors.index.json";
    let check = |what: &str, text: &str, expect: &str| {
        let change = |dir: &Path| {
            std::fs::rename(dir.join("model.safetensors"), dir.join("one.safetensors")).unwrap();
            std::fs::write(dir.join(index), text).unwrap();
        };
        check(what, "llama", change, expect);
    };
    check("no JSON", "{", "index");
    check("no map", "{}", "weight_map");
    check("a map of numbers", r#"{"weight_map":{"a":1}}"#, "weight_map");
    check("a way out", r#"{"weight_map":{"a":"../../../etc/passwd"}}"#, "no shard");
    check("from the root", r#"{"weight_map":{"a":"/etc/passwd"}}"#, "no shard");
    check("no such shard", r#"{"weight_map":{"a":"two.safetensors"}}"#, "no shard");
    // A file that is its own shard, and a folder.
    check("a cycle", &format!(r#"{{"weight_map":{{"a":"{index}"}}}}"#), "safetensors");
    check("the folder itself", r#"{"weight_map":{"a":"."}}"#, "no shard");
    check("nothing in it", r#"{"weight_map":{}}"#, "");
}

#[test]
fn gguf_files() {
    let whole = std::fs::read(fixtures().join("gguf/f32.gguf")).unwrap();
    let check = |what: &str, bytes: Vec<u8>, expect: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        refused(what, &path, expect);
    };
    for length in [0, 3, 4, 8, 23, 24, 100, 1000, whole.len() / 2, whole.len() - 4] {
        check(&format!("cut to {length}"), whole[..length].to_vec(), "");
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        damaged
    };
    check("another magic", with(0, b"GGML"), "magic");
    check("version 99", with(4, &99u32.to_le_bytes()), "header");
    check("2^60 tensors", with(8, &(1u64 << 60).to_le_bytes()), "header");
    check("2^60 fields", with(16, &(1u64 << 60).to_le_bytes()), "header");
    check("a key of 2^40 bytes", with(24, &(1u64 << 40).to_le_bytes()), "header");
    let key = b"general.architecture";
    let at = whole.windows(key.len()).position(|w| w == key).unwrap() + key.len();
    check("a field of type 77", with(at, &77u32.to_le_bytes()), "header");
    check("a name of 2^40 bytes", with(at + 4, &(1u64 << 40).to_le_bytes()), "header");
    check("an unknown architecture", with(at + 12, b"lxama"), "known: llama");
    let tensor = b"token_embd.weight";
    let at = whole.windows(tensor.len()).position(|w| w == tensor).unwrap() + tensor.len();
    check("ninety-nine dimensions", with(at, &99u32.to_le_bytes()), "header");
    check("a dimension of 2^62", with(at + 4, &(1u64 << 62).to_le_bytes()), "");
    check("a tensor of type 99", with(at + 20, &99u32.to_le_bytes()), "");
    check(
        "a tensor beyond the end",
        with(at + 24, &(1u64 << 50).to_le_bytes()),
        "token_embd.weight",
    );
    // `general.alignment` = 0: candle divides by it.
    let mut aligned = whole[..24].to_vec();
    let fields = u64::from_le_bytes(whole[16..24].try_into().unwrap());
    aligned[16..24].copy_from_slice(&(fields + 1).to_le_bytes());
    let key = b"general.alignment";
    aligned.extend((key.len() as u64).to_le_bytes());
    aligned.extend(key);
    aligned.extend(4u32.to_le_bytes());
    aligned.extend(0u32.to_le_bytes());
    aligned.extend(&whole[24..]);
    check("alignment 0", aligned, "general.alignment");

    // Experts stacked in one tensor.
    let whole = std::fs::read(fixtures().join("gguf/qwen3moe.gguf")).unwrap();
    let with = |key: &[u8], at: usize, bytes: &[u8]| {
        let at = whole.windows(key.len()).position(|w| w == key).unwrap() + key.len() + at;
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        damaged
    };
    let (tensor, last) = (b"blk.0.ffn_up_exps.weight", b"blk.1.ffn_up_exps.weight");
    check("cut in the experts", whole[..whole.len() / 2].to_vec(), "");
    check("two dimensions of experts", with(tensor, 0, &2u32.to_le_bytes()), "");
    check("experts of 2^62 inputs", with(tensor, 4, &(1u64 << 62).to_le_bytes()), "");
    check("2^62 experts", with(tensor, 20, &(1u64 << 62).to_le_bytes()), "");
    check(
        "experts beyond the end",
        with(last, 32, &(u64::MAX - 64).to_le_bytes()),
        "blk.1.ffn_up_exps.weight",
    );
    check(
        "more experts than there are",
        with(b"qwen3moe.expert_count", 4, &9u32.to_le_bytes()),
        "",
    );
    check(
        "experts of no width",
        with(b"qwen3moe.expert_feed_forward_length", 4, &0u32.to_le_bytes()),
        "moe_intermediate_size",
    );
}

#[test]
fn pth_files() {
    let whole = std::fs::read(fixtures().join("rwkv7/model.pth")).unwrap();
    let check = |what: &str, bytes: Vec<u8>, expect: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.pth");
        std::fs::write(&path, bytes).unwrap();
        refused(what, &path, expect);
    };
    for length in [0, 4, 100, whole.len() / 2, whole.len() - 30] {
        check(&format!("pth cut to {length}"), whole[..length].to_vec(), "archive");
    }
    // The pickle is somewhere in the archive, not compressed: damage at many places of it must not
    // end in a panic.
    let key = b"blocks.0.att.r_k";
    let at = whole.windows(key.len()).position(|w| w == key).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        damaged
    };
    check("another name for a tensor", with(at, b"blocks.0.att.r_q"), "");
    check("no RWKV", with(at, b"blocks.0.xtt.x_x"), "");
    let class = b"Storage";
    let storage = whole.windows(class.len()).position(|w| w == class).unwrap();
    check("storage of another kind", with(storage, b"Storags"), "");
    // Damage byte by byte: much of it is an error, some of it (another number in the memo) changes
    // nothing.
    let mut errors = 0;
    for offset in 0..48 {
        for bytes in [&b"."[..], b"))", b"\x8a\xff"] {
            let damaged = with(at + key.len() + offset, bytes);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("model.pth");
            std::fs::write(&path, damaged).unwrap();
            if Model::load(path.to_str().unwrap()).is_err() {
                refused(&format!("pickle damaged at {offset} by {bytes:?}"), &path, "");
                errors += 1;
            }
        }
    }
    assert!(errors > 48, "{errors}");
}
