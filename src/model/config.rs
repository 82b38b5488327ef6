//! What a model's files say of its shape.

use serde_json::Value;

use crate::error::{Error, Result};

/// Shape and constants of a decoder-only transformer; the names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    /// Per layer: how many positions a query sees, itself included (`None`: all before it).
    pub sliding_window: Vec<Option<usize>>,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

/// Changes of the rotary frequencies for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, interpolated between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: f64 },
    /// Every position divided by `factor`.
    Linear { factor: f64 },
    /// A divisor per frequency, as GGUF files carry it (`rope_freqs.weight`), `[head_dim / 2]`.
    Divisors(Vec<f32>),
}

/// Families with a decoder here, by `model_type`.
pub const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// Reads one field after another and remembers which file they came from, for the error.
struct Fields<'a> {
    path: &'a str,
    root: &'a serde_json::Map<String, Value>,
}

impl Fields<'_> {
    fn error(&self, field: &str, message: impl ToString) -> Error {
        Error::model(self.path, field, message)
    }

    /// The value of a field that is there and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.root.get(field).filter(|v| !v.is_null())
    }

    /// A count in `1..=limit`; the limits are far beyond real models and keep a hostile file from
    /// asking for more memory than there is.
    fn count(&self, field: &str, limit: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=limit).contains(&n) => Ok(Some(n)),
            _ => Err(self.error(field, format!("expected a whole number from 1 to {limit}, got {}", short(value)))),
        }
    }

    fn required(&self, field: &str, limit: usize) -> Result<usize> {
        self.count(field, limit)?.ok_or_else(|| self.error(field, "is missing"))
    }

    fn positive(&self, field: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(self.error(field, format!("expected a positive number, got {}", short(value)))),
        }
    }

    fn flag(&self, field: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(field, format!("expected true or false, got {}", short(value))))
    }

    fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let bad = |v: &Value| self.error(field, format!("expected a token id or a list of them, got {}", short(v)));
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| bad(v));
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) if list.len() <= 64 => list.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}

/// A value as it may stand in a one-line message.
fn short(value: &Value) -> String {
    crate::text::escape(&value.to_string().chars().take(40).collect::<String>())
}

impl Config {
    /// Parses a Hugging Face `config.json`; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::Model`] naming the field, for one that is missing, out of range or of another type, and
    /// for a `model_type` that has no decoder here (the message lists those that do).
    pub fn from_json(path: &str, text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|e| Error::model(path, "config", e))?;
        let root = value.as_object().ok_or_else(|| Error::model(path, "config", "expected a JSON object"))?;
        let fields = Fields { path, root };
        let model_type = fields.get("model_type").and_then(Value::as_str).unwrap_or("").to_owned();
        if !FAMILIES.contains(&model_type.as_str()) {
            let known = FAMILIES.join(", ");
            let got = short(&Value::String(model_type));
            return Err(fields.error("model_type", format!("{got} is not known here; known: {known}")));
        }
        if let Some(act) = fields.get("hidden_act").filter(|v| *v != "silu") {
            return Err(fields.error("hidden_act", format!("only silu is known, got {}", short(act))));
        }
        let hidden_size = fields.required("hidden_size", 1 << 17)?;
        let num_hidden_layers = fields.required("num_hidden_layers", 1 << 10)?;
        let num_attention_heads = fields.required("num_attention_heads", 1 << 10)?;
        let num_key_value_heads = fields.count("num_key_value_heads", 1 << 10)?.unwrap_or(num_attention_heads);
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(
                fields.error("num_key_value_heads", format!("{num_key_value_heads} does not divide {num_attention_heads} heads"))
            );
        }
        let head_dim = fields.count("head_dim", 1 << 12)?.unwrap_or(hidden_size / num_attention_heads);
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(fields.error("head_dim", format!("{head_dim} cannot be rotated: it must be even")));
        }
        // transformers 5 moved theta and scaling into one object; read whichever is there.
        let rope = ["rope_scaling", "rope_parameters"].into_iter().find_map(|f| fields.get(f)?.as_object().map(|o| (f, o)));
        let nested = rope.map(|(_, root)| Fields { path, root });
        let rope_theta = match fields.positive("rope_theta")? {
            Some(theta) => theta,
            None => nested.as_ref().map_or(Ok(None), |n| n.positive("rope_theta"))?.unwrap_or(10_000.0),
        };
        let config = Self {
            vocab_size: fields.required("vocab_size", 1 << 24)?,
            hidden_size,
            intermediate_size: fields.required("intermediate_size", 1 << 20)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings: fields.count("max_position_embeddings", 1 << 26)?.unwrap_or(2048),
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling: nested.as_ref().map_or(Ok(None), rope_scaling)?,
            sliding_window: sliding_window(&fields, &model_type, num_hidden_layers)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            bos_token_id: fields.ids("bos_token_id")?.first().copied(),
            eos_token_ids: fields.ids("eos_token_id")?,
            model_type,
        };
        Ok(config)
    }

    /// Adds the end tokens that a `generation_config.json` names; what is malformed in it is left out,
    /// since nothing else is read from it.
    pub fn add_generation_ids(&mut self, text: &str) {
        let Ok(Value::Object(root)) = serde_json::from_str(text) else { return };
        for id in (Fields { path: "", root: &root }).ids("eos_token_id").unwrap_or_default() {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
    }

    /// Query heads that share one key/value head.
    pub fn group(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Width of all query heads together, `num_attention_heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Rotary frequencies, radians per position, `[head_dim / 2]`, scaling applied.
    ///
    /// `llama3` after Llama 3.1's reference code: wavelengths beyond `original / low` are divided by
    /// the factor, those below `original / high` kept, those between interpolated.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        let plain = |i: usize| self.rope_theta.powf(-(2.0 * i as f64) / self.head_dim as f64);
        (0..half)
            .map(|i| {
                let f = plain(i);
                let scaled = match &self.rope_scaling {
                    None => f,
                    Some(RopeScaling::Linear { factor }) => f / factor,
                    Some(RopeScaling::Divisors(d)) => f / f64::from(d[i]),
                    Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => {
                        let wavelength = std::f64::consts::TAU / f;
                        let turns = original_max_position_embeddings / wavelength;
                        let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                scaled as f32
            })
            .collect()
    }
}

fn rope_scaling(fields: &Fields) -> Result<Option<RopeScaling>> {
    let kind = fields.get("rope_type").or_else(|| fields.get("type")).and_then(Value::as_str).unwrap_or("default");
    let number =
        |field: &str| fields.positive(field)?.ok_or_else(|| fields.error(&format!("rope_scaling.{field}"), "is missing"));
    match kind {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: number("factor")? })),
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                return Err(fields.error("rope_scaling.high_freq_factor", "must be above low_freq_factor"));
            }
            Ok(Some(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: number("original_max_position_embeddings")?,
            }))
        }
        other => {
            Err(fields
                .error("rope_scaling.rope_type", format!("known: default, linear, llama3; got {}", crate::text::escape(other))))
        }
    }
}

/// Which layers see a window. Mistral: all; Qwen: where `use_sliding_window` says so, from layer
/// `max_window_layers` on; an explicit `layer_types` list wins.
fn sliding_window(fields: &Fields, model_type: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = fields.count("sliding_window", 1 << 26)?;
    let in_use = match model_type {
        "llama" => false,
        "mistral" => true,
        _ => fields.flag("use_sliding_window")?.unwrap_or(false),
    };
    let Some(window) = window.filter(|_| in_use) else { return Ok(vec![None; layers]) };
    if let Some(types) = fields.get("layer_types") {
        let types = types
            .as_array()
            .filter(|t| t.len() == layers)
            .ok_or_else(|| fields.error("layer_types", format!("expected a list of {layers}")))?;
        return types
            .iter()
            .map(|t| match t.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(window)),
                _ => Err(fields.error("layer_types", format!("expected full_attention or sliding_attention, got {}", short(t)))),
            })
            .collect();
    }
    let first = match fields.get("max_window_layers") {
        Some(v) if model_type != "mistral" => {
            v.as_u64().ok_or_else(|| fields.error("max_window_layers", format!("expected a whole number, got {}", short(v))))?
                as usize
        }
        _ => 0,
    };
    Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
}
