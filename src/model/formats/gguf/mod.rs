//! GGUF files: configuration and tokenizer from the metadata, tensors of any ggml type dequantised
//! to f32.

mod tokenizer;

use std::fs::File;
use std::io::{BufReader, Cursor, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use rayon::prelude::*;
use tokenizers::Tokenizer as HfTokenizer;

use super::{Source, StoredFloat, first_line};
use crate::error::{Error, Result};
use crate::model::config::{Config, RopeScaling};
use crate::model::families::{self, Family, GgufLayout};

/// The number of values that are dequantised at a time: whole blocks of every type.
const VALUES_AT_ONCE: usize = 1 << 18;

/// An opened GGUF file.
pub struct Gguf {
    path: String,
    reader: BufReader<File>,
    content: Content,
    family: &'static Family,
    layout: &'static GgufLayout,
    /// The configuration that the metadata gives.
    pub config: Config,
}

impl Gguf {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`Error::Model`] for a file that is malformed or of an architecture that is not known here.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let mut reader = BufReader::new(file);
        let mut magic = [0u8; 4];
        if reader.read_exact(&mut magic).is_err() || &magic != b"GGUF" {
            return Err(Error::model(name, "magic", "not a GGUF file"));
        }
        refuse_zero_alignment(&name, &mut reader)?;
        reader.rewind().map_err(|e| Error::io(path, e))?;
        let content = Content::read(&mut reader)
            .map_err(|e| Error::model(&name, "header", first_line(&e)))?;
        let (family, layout) = family(&name, &content)?;
        let mut config = config(&name, &content, family, layout)?;
        let mut gguf = Self { path: name, reader, content, family, layout, config: config.clone() };
        let divisors = gguf.content.tensor_infos.get("rope_freqs.weight");
        let divisors = divisors.map(|i| TensorInfo {
            ggml_dtype: i.ggml_dtype,
            shape: i.shape.clone(),
            offset: i.offset,
        });
        if let Some(info) = divisors {
            let divisors = gguf.read("rope_freqs.weight", &info)?;
            if divisors.len() != config.head_dim / 2
                || divisors.iter().any(|d| !d.is_finite() || *d <= 0.0)
            {
                return Err(Error::model(
                    &gguf.path,
                    "rope_freqs.weight",
                    "expected one positive divisor per frequency",
                ));
            }
            let scaling = Some(RopeScaling::Divisors { divisors, attention_factor: 1.0 });
            config.rope.iter_mut().for_each(|rope| rope.scaling.clone_from(&scaling));
        }
        gguf.config = config;
        Ok(gguf)
    }

    /// Reads and dequantises one tensor, in parts on all threads.
    fn read(&mut self, name: &str, info: &TensorInfo) -> Result<Vec<f32>> {
        let failed = |e: &dyn std::fmt::Display| Error::model(&self.path, name, first_line(e));
        let (kind, count) = (info.ggml_dtype, info.shape.elem_count());
        let bytes_of = |values: usize| values / kind.block_size() * kind.type_size();
        if !count.is_multiple_of(kind.block_size()) {
            let why = format!("{count} values are no whole number of blocks of {kind:?}");
            return Err(failed(&why));
        }
        let start = self.content.tensor_data_offset.saturating_add(info.offset);
        let mut bytes = Vec::new();
        self.reader.seek(SeekFrom::Start(start)).map_err(|e| failed(&e))?;
        let needed = bytes_of(count);
        (&mut self.reader).take(needed as u64).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
        if bytes.len() < needed {
            return Err(failed(&format!("the file ends after {} of {needed} bytes", bytes.len())));
        }
        let mut values = vec![0f32; count];
        (values.par_chunks_mut(VALUES_AT_ONCE).zip(bytes.par_chunks(bytes_of(VALUES_AT_ONCE))))
            .try_for_each(|(values, bytes)| {
                let part = TensorInfo { ggml_dtype: kind, shape: values.len().into(), offset: 0 };
                let part = part.read(&mut Cursor::new(bytes), 0, &Device::Cpu)?;
                values.copy_from_slice(&part.dequantize(&Device::Cpu)?.to_vec1::<f32>()?);
                candle_core::Result::Ok(())
            })
            .map_err(|e| failed(&e))?;
        Ok(values)
    }

    /// Finds a tensor by its Hugging Face name: returns its name in this file and where it lies.
    /// The experts of a layer are stacked in one tensor, of which an expert is a part; in older
    /// files each has a tensor of its own.
    fn find(&self, name: &str) -> Option<(String, TensorInfo)> {
        let (stacked, expert) = ggml_name(name, self.layout)?;
        let copy = |info: &TensorInfo, dims: &[usize], offset| {
            Some(TensorInfo { ggml_dtype: info.ggml_dtype, shape: dims.to_vec().into(), offset })
        };
        let Some(expert) = expert else {
            let info = self.content.tensor_infos.get(&stacked)?;
            let dims = info.shape.dims();
            let info = if stacked.contains(SHARED_GATE) && dims.len() == 1 {
                copy(info, &[1, dims[0]], info.offset)?
            } else {
                copy(info, dims, info.offset)?
            };
            return Some((stacked, info));
        };
        if let Some(info) = self.content.tensor_infos.get(&stacked) {
            let &[experts, out, input] = info.shape.dims() else { return None };
            let values = out
                .checked_mul(input)
                .filter(|n| n.is_multiple_of(info.ggml_dtype.block_size()))?;
            let bytes =
                (values / info.ggml_dtype.block_size()).checked_mul(info.ggml_dtype.type_size())?;
            let offset = info.offset.checked_add((bytes as u64).checked_mul(expert as u64)?)?;
            let count = self.config.experts.as_ref().map_or(0, |e| e.num_experts);
            return if expert < experts && experts == count {
                Some((stacked, copy(info, &[out, input], offset)?))
            } else {
                None
            };
        }
        let single = stacked.replace("_exps.", &format!(".{expert}."));
        let info = self.content.tensor_infos.get(&single)?;
        Some((single, copy(info, info.shape.dims(), info.offset)?))
    }

    /// Returns the tokenizer in the metadata; `None` if the file has none.
    ///
    /// # Errors
    /// [`Error::Model`] for a tokenizer that is malformed.
    pub fn tokenizer(&self) -> Result<Option<HfTokenizer>> {
        tokenizer::read(&self.path, &self.content)
    }
}

/// Refuses a `general.alignment` of 0: candle divides by it and would panic.
fn refuse_zero_alignment(path: &str, reader: &mut BufReader<File>) -> Result<()> {
    let mut head = Vec::new();
    reader.by_ref().take(64 << 20).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
    let key = b"general.alignment";
    for at in memchr::memmem::find_iter(&head, key) {
        let after = &head[at + key.len()..];
        let Some((kind, value)) = after.split_at_checked(4) else { break };
        let width = match u32::from_le_bytes([kind[0], kind[1], kind[2], kind[3]]) {
            0 | 1 => 1,
            2 | 3 => 2,
            4 | 5 => 4,
            _ => continue,
        };
        if value.len() >= width && value[..width].iter().all(|b| *b == 0) {
            return Err(Error::model(path, "general.alignment", "is 0"));
        }
    }
    Ok(())
}

/// Returns the family of a file by its architecture; families that share one differ in having
/// experts.
fn family(path: &str, content: &Content) -> Result<(&'static Family, &'static GgufLayout)> {
    let architecture = content.metadata.get("general.architecture");
    let architecture = architecture.and_then(|v| v.to_string().ok()).map_or("", String::as_str);
    let experts = content.metadata.get(&format!("{architecture}.expert_count")).and_then(json);
    let has_experts = experts.is_some_and(|n| n.as_u64() != Some(0));
    let mut named = families::with_gguf().filter(|(_, layout)| layout.architecture == architecture);
    let exact = named.clone().find(|(_, layout)| layout.has_experts == has_experts);
    exact.or_else(|| named.next()).ok_or_else(|| {
        let mut known: Vec<&str> =
            families::with_gguf().map(|(_, layout)| layout.architecture).collect();
        known.dedup();
        let got = crate::text::escape(&architecture.chars().take(40).collect::<String>());
        let message = format!("\"{got}\" is not known here; known: {}", known.join(", "));
        Error::model(path, "general.architecture", message)
    })
}

/// Translates the metadata back into the `config.json` it was converted from, which is then read
/// and checked like any other.
fn config(path: &str, content: &Content, family: &Family, layout: &GgufLayout) -> Result<Config> {
    let get = |key: &str| content.metadata.get(key);
    let architecture = layout.architecture;
    let number = |key: &str| get(&format!("{architecture}.{key}")).and_then(json);
    let rows =
        |name: &str| content.tensor_infos.get(name).and_then(|t| t.shape.dims().first().copied());
    let mut map = serde_json::Map::new();
    let mut put = |field: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            map.insert(field.to_owned(), value);
        }
    };
    let experts = number("expert_count").filter(|n| n.as_u64() != Some(0));
    put("model_type", Some(family.model_type.into()));
    put("hidden_size", number("embedding_length"));
    put("intermediate_size", number("feed_forward_length"));
    put("num_hidden_layers", number("block_count"));
    put("num_attention_heads", number("attention.head_count"));
    put("num_key_value_heads", number("attention.head_count_kv"));
    put("head_dim", number("attention.key_length").or_else(|| number("rope.dimension_count")));
    // As llama.cpp scales: by the width of a head, but in the largest Gemma 3, which has 62 layers.
    let count = |key: &str| number(key).and_then(|v| v.as_u64());
    put(
        "query_pre_attn_scalar",
        match count("block_count") {
            Some(62) => count("embedding_length")
                .zip(count("attention.head_count"))
                .and_then(|(d, h)| d.checked_div(h))
                .map(Into::into),
            _ => number("attention.key_length"),
        },
    );
    put("num_experts", experts);
    put("num_experts_per_tok", number("expert_used_count"));
    put("moe_intermediate_size", number("expert_feed_forward_length"));
    put("shared_expert_intermediate_size", number("expert_shared_feed_forward_length"));
    put("norm_topk_prob", layout.norm_topk_prob.then(|| true.into()));
    put("max_position_embeddings", number("context_length"));
    put("rms_norm_eps", number("attention.layer_norm_rms_epsilon"));
    put("rope_theta", number("rope.freq_base"));
    put("sliding_window", number("attention.sliding_window"));
    put("vocab_size", rows("token_embd.weight").map(Into::into));
    put("bos_token_id", get("tokenizer.ggml.bos_token_id").and_then(json));
    put("eos_token_id", get("tokenizer.ggml.eos_token_id").and_then(json));
    put("tie_word_embeddings", Some((!content.tensor_infos.contains_key("output.weight")).into()));
    if get(&format!("{architecture}.rope.scaling.type"))
        .and_then(|v| v.to_string().ok())
        .is_some_and(|t| t == "linear")
    {
        put(
            "rope_scaling",
            number("rope.scaling.factor")
                .map(|f| serde_json::json!({ "rope_type": "linear", "factor": f })),
        );
    }
    Config::from_json(path, &serde_json::Value::Object(map).to_string())
}

/// Converts a value of the metadata; arrays are left out.
fn json(value: &Value) -> Option<serde_json::Value> {
    Some(match *value {
        Value::U8(v) => v.into(),
        Value::I8(v) => v.into(),
        Value::U16(v) => v.into(),
        Value::I16(v) => v.into(),
        Value::U32(v) => v.into(),
        Value::I32(v) => v.into(),
        Value::U64(v) => v.into(),
        Value::I64(v) => v.into(),
        // Through the shortest decimal: 1e-5 as f32 is meant to be 1e-5.
        Value::F32(v) => v.to_string().parse::<f64>().ok()?.into(),
        Value::F64(v) => v.into(),
        Value::Bool(v) => v.into(),
        Value::String(ref s) => s.as_str().into(),
        Value::Array(_) => return None,
    })
}

/// Translates a Hugging Face name: `model.layers.3.self_attn.q_proj.weight` is
/// `blk.3.attn_q.weight`. An expert is a part of a stacked tensor and has an index besides:
/// `model.layers.3.mlp.experts.5.up_proj.weight` is expert 5 of `blk.3.ffn_up_exps.weight`.
fn ggml_name(name: &str, layout: &GgufLayout) -> Option<(String, Option<usize>)> {
    match name {
        "model.embed_tokens.weight" => return Some(("token_embd.weight".into(), None)),
        "model.norm.weight" => return Some(("output_norm.weight".into(), None)),
        "lm_head.weight" => return Some(("output.weight".into(), None)),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    if let Some((_, expert)) = part.split_once(".experts.") {
        let (expert, matrix) = expert.split_once('.')?;
        let part = match matrix {
            "gate_proj" | "w1" => "ffn_gate_exps",
            "up_proj" | "w3" => "ffn_up_exps",
            "down_proj" | "w2" => "ffn_down_exps",
            _ => return None,
        };
        return Some((format!("blk.{layer}.{part}.{kind}"), Some(expert.parse().ok()?)));
    }
    if let Some((_, part)) = layout.parts.iter().find(|(name, _)| *name == part) {
        return Some((format!("blk.{layer}.{part}.{kind}"), None));
    }
    let part = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.gate" | "block_sparse_moe.gate" => "ffn_gate_inp",
        "mlp.shared_expert.gate_proj" => "ffn_gate_shexp",
        "mlp.shared_expert.up_proj" => "ffn_up_shexp",
        "mlp.shared_expert.down_proj" => "ffn_down_shexp",
        "mlp.shared_expert_gate" => SHARED_GATE,
        _ => return None,
    };
    Some((format!("blk.{layer}.{part}.{kind}"), None))
}

/// The gate of a shared expert: a matrix of one row, which llama.cpp writes as a vector.
const SHARED_GATE: &str = "ffn_gate_inp_shexp";

/// Restores Hugging Face's row order of a rotated projection (halves) from that of llama.cpp in the
/// llama architecture (pairs side by side): `[heads, d/2, 2, in] -> [heads, 2, d/2, in]`.
fn unpermute(rows: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let width = rows.len() / (heads * head_dim); // columns of a weight, 1 for a bias
    let half = head_dim / 2;
    let mut out = vec![0f32; rows.len()];
    for (i, row) in out.chunks_exact_mut(width).enumerate() {
        let (head, r) = (i / head_dim, i % head_dim);
        let from = head * head_dim + 2 * (r % half) + r / half;
        row.copy_from_slice(&rows[from * width..][..width]);
    }
    out
}

impl Source for Gguf {
    fn path(&self) -> &str {
        &self.path
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.find(name)?.1.shape.dims().to_vec())
    }

    fn stored(&self, name: &str) -> Option<StoredFloat> {
        match self.find(name)?.1.ggml_dtype {
            GgmlDType::F32 => Some(StoredFloat::F32),
            GgmlDType::F16 => Some(StoredFloat::F16),
            GgmlDType::BF16 => Some(StoredFloat::Bf16),
            _ => None,
        }
    }

    fn load(&mut self, name: &str) -> Result<Vec<f32>> {
        let (ggml, info) = self
            .find(name)
            .ok_or_else(|| Error::model(&self.path, name, "there is no such tensor"))?;
        let mut values = self.read(&ggml, &info)?;
        // llama.cpp adds the 1 to Gemma's norms that Hugging Face's files leave to the model.
        let offset = self.family.names.norm_offset;
        if offset != 0.0 && name.contains("norm") {
            values.iter_mut().for_each(|v| *v -= offset);
        }
        let heads = match () {
            () if !self.layout.interleaved => None,
            () if name.contains(".q_proj.") => Some(self.config.num_attention_heads),
            () if name.contains(".k_proj.") => Some(self.config.num_key_value_heads),
            () => None,
        };
        Ok(match heads {
            Some(heads) => unpermute(&values, heads, self.config.head_dim),
            None => values,
        })
    }
}
