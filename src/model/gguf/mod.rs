//! A GGUF file: configuration and tokenizer from its metadata, any ggml type dequantised to f32.

mod tokenizer;

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _};
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::Tokenizer as HfTokenizer;

use super::config::{Config, RopeScaling};
use super::safetensors::first_line;
use super::weights::Source;
use crate::error::{Error, Result};

/// An opened GGUF file.
pub struct Gguf {
    path: String,
    reader: BufReader<File>,
    content: Content,
    pub config: Config,
}

impl Gguf {
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
        let content = Content::read(&mut reader).map_err(|e| Error::model(&name, "header", first_line(&e)))?;
        let mut config = config(&name, &content)?;
        let mut gguf = Self { path: name, reader, content, config: config.clone() };
        if gguf.content.tensor_infos.contains_key("rope_freqs.weight") {
            let divisors = gguf.raw("rope_freqs.weight")?;
            if divisors.len() != config.head_dim / 2 || divisors.iter().any(|d| !d.is_finite() || *d <= 0.0) {
                return Err(Error::model(&gguf.path, "rope_freqs.weight", "expected one positive divisor per frequency"));
            }
            let scaling = Some(RopeScaling::Divisors { divisors, attention_factor: 1.0 });
            config.rope.iter_mut().for_each(|rope| rope.scaling.clone_from(&scaling));
        }
        gguf.config = config;
        Ok(gguf)
    }

    fn raw(&mut self, name: &str) -> Result<Vec<f32>> {
        let error = |e| Error::model(&self.path, name, first_line(&e));
        let tensor = self.content.tensor(&mut self.reader, name, &Device::Cpu).map_err(error)?;
        tensor.dequantize(&Device::Cpu).and_then(|t| t.flatten_all()?.to_vec1::<f32>()).map_err(error)
    }

    /// The tokenizer in the metadata; `None` where the file has none.
    pub fn tokenizer(&self) -> Result<Option<HfTokenizer>> {
        tokenizer::read(&self.path, &self.content)
    }
}

/// candle divides by `general.alignment`; a file that says 0 would end the program.
fn refuse_zero_alignment(path: &str, reader: &mut BufReader<File>) -> Result<()> {
    let mut head = Vec::new();
    reader.by_ref().take(64 << 20).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
    let key = b"general.alignment";
    for at in head.windows(key.len()).enumerate().filter(|(_, w)| w == key).map(|(i, _)| i) {
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

/// Metadata of one architecture as the `config.json` it was converted from; checked there.
fn config(path: &str, content: &Content) -> Result<Config> {
    let get = |key: &str| content.metadata.get(key);
    let architecture = get("general.architecture").and_then(|v| v.to_string().ok()).cloned().unwrap_or_default();
    let number = |key: &str| get(&format!("{architecture}.{key}")).and_then(json);
    let rows = |name: &str| content.tensor_infos.get(name).and_then(|t| t.shape.dims().first().copied());
    let mut map = serde_json::Map::new();
    let mut put = |field: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            map.insert(field.to_owned(), value);
        }
    };
    let model_type = if architecture == "gemma3" { "gemma3_text" } else { &architecture };
    put("model_type", Some(model_type.into()));
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
            Some(62) => {
                count("embedding_length").zip(count("attention.head_count")).and_then(|(d, h)| d.checked_div(h)).map(Into::into)
            }
            _ => number("attention.key_length"),
        },
    );
    put("max_position_embeddings", number("context_length"));
    put("rms_norm_eps", number("attention.layer_norm_rms_epsilon"));
    put("rope_theta", number("rope.freq_base"));
    put("sliding_window", number("attention.sliding_window"));
    put("vocab_size", rows("token_embd.weight").map(Into::into));
    put("bos_token_id", get("tokenizer.ggml.bos_token_id").and_then(json));
    put("eos_token_id", get("tokenizer.ggml.eos_token_id").and_then(json));
    put("tie_word_embeddings", Some((!content.tensor_infos.contains_key("output.weight")).into()));
    if get(&format!("{architecture}.rope.scaling.type")).and_then(|v| v.to_string().ok()).is_some_and(|t| t == "linear") {
        put("rope_scaling", number("rope.scaling.factor").map(|f| serde_json::json!({ "rope_type": "linear", "factor": f })));
    }
    Config::from_json(path, &serde_json::Value::Object(map).to_string())
}

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

/// `model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`.
fn ggml_name(name: &str, model_type: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let part = match part {
        "post_attention_layernorm" if model_type == "gemma3_text" => "post_attention_norm",
        "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
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
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.{kind}"))
}

/// Undoes llama.cpp's row order of rotated projections in the llama architecture (pairs side by side)
/// into Hugging Face's (halves): `[heads, d/2, 2, in] -> [heads, 2, d/2, in]`.
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
        Some(self.content.tensor_infos.get(&ggml_name(name, &self.config.model_type)?)?.shape.dims().to_vec())
    }

    fn load(&mut self, name: &str) -> Result<Vec<f32>> {
        let ggml =
            ggml_name(name, &self.config.model_type).ok_or_else(|| Error::model(&self.path, name, "has no name in GGUF"))?;
        let mut values = self.raw(&ggml)?;
        // llama.cpp adds the 1 to Gemma's norms that Hugging Face's files leave to the model.
        if self.config.model_type == "gemma3_text" && name.contains("norm") {
            values.iter_mut().for_each(|v| *v -= 1.0);
        }
        let heads = match () {
            () if self.config.model_type != "llama" => None,
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
