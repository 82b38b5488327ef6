//! The models that are compiled into the program, so that its first command works from any folder.
//!
//! `build.rs` chooses them: all four from a checkout, `dense` and those whose Cargo feature is on
//! from the published package. They share one tokenizer.

use super::safetensors;
use crate::error::{Error, Result};
use crate::model::{Config, Model, Tokenizer};

/// The built-in models that can be compiled in; each is also a Cargo feature.
const NAMES: [&str; 4] = ["dense", "moe", "mamba", "rwkv"];

/// A model that is compiled in.
struct Builtin {
    name: &'static str,
    config: &'static str,
    weights: &'static [u8],
}

/// Includes a file of `corpus/models`.
macro_rules! include {
    ($include:ident, $($path:literal),+) => {
        $include!(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/models/", $($path),+))
    };
}

macro_rules! builtin {
    ($name:literal) => {
        Builtin {
            name: $name,
            config: include!(include_str, $name, "/config.json"),
            weights: include!(include_bytes, $name, "/model.safetensors"),
        }
    };
}

const COMPILED_IN: &[Builtin] = &[
    #[cfg(builtin = "dense")]
    builtin!("dense"),
    #[cfg(builtin = "moe")]
    builtin!("moe"),
    #[cfg(builtin = "mamba")]
    builtin!("mamba"),
    #[cfg(builtin = "rwkv")]
    builtin!("rwkv"),
];

/// The tokenizer of every built-in model.
const TOKENIZER: &[u8] = include!(include_bytes, "dense/tokenizer.json");

/// Loads the built-in model `name`, with a difference where one is named; `spec` names it in
/// errors.
///
/// # Errors
/// [`Error::Model`] for a name that is unknown, or whose model is not in this build.
pub fn load(spec: &str, name: &str, difference: Option<&str>) -> Result<Model> {
    let Some(builtin) = COMPILED_IN.iter().find(|builtin| builtin.name == name) else {
        return Err(Error::model(spec, "name", missing(name)));
    };
    let config = Config::from_json(spec, builtin.config)?;
    let tokenizer = Tokenizer::from_bytes(spec, TOKENIZER)?;
    let mut weights = safetensors::Buffer::open(spec, builtin.weights)?;
    Model::assemble(spec, config, &mut weights, Some(tokenizer), difference)
}

/// Says why there is no built-in model `name`, and what to do about it.
fn missing(name: &str) -> String {
    if NAMES.contains(&name) {
        return format!(
            "not compiled into this program; build it from a checkout of the repository, or with \
            `--features {name}`"
        );
    }
    let names: Vec<String> =
        COMPILED_IN.iter().map(|builtin| format!("builtin:{}", builtin.name)).collect();
    match names.is_empty() {
        true => format!("no built-in model is compiled in; the features are {}", NAMES.join(", ")),
        false => format!("no such built-in model; there are: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Model fingerprints of the four; stored cases depend on them.
    const FINGERPRINTS: [(&str, &str); 4] = [
        ("dense", "d3db16029dd37d47106b94e86028753c44dedffd4c146cddfd8840f8e3f44e89"),
        ("moe", "43eed66c7a021bc87b8565239dd10339a8deab98b18ff75f113f9976179599fa"),
        ("mamba", "dbe1af7bea14606b81ab73f6c5171d8c9c05cf5e60e49df81e07170a383a594b"),
        ("rwkv", "49fffe64ea2d8ef1a3ad91b008c7f234c131eec257aae1921546655b5872360b"),
    ];

    #[test]
    fn builtin_models_keep_their_fingerprints_and_share_a_tokenizer() {
        for builtin in COMPILED_IN {
            let model = Model::load(&format!("builtin:{}", builtin.name)).unwrap();
            let (_, fingerprint) = FINGERPRINTS.iter().find(|(n, _)| *n == builtin.name).unwrap();
            assert_eq!(model.fingerprint, *fingerprint, "{}", builtin.name);
            assert_eq!(
                model.tokenizer_fingerprint.as_deref(),
                Some("496b6622380adbbf23ac48adf32872eb77ff365ba94eb0d0adee13602b5839bb"),
                "{}",
                builtin.name
            );
        }
    }

    /// The folders are complete Hugging Face folders although the tokenizer is stored once.
    #[test]
    #[cfg_attr(not(unix), ignore = "the tokenizers of three folders are symbolic links")]
    fn builtin_models_are_the_folders_they_were_compiled_from() {
        for builtin in COMPILED_IN {
            let folder = format!("{}/corpus/models/{}", env!("CARGO_MANIFEST_DIR"), builtin.name);
            let from_folder = Model::load(&folder).unwrap();
            let compiled_in = Model::load(&format!("builtin:{}", builtin.name)).unwrap();
            assert_eq!(from_folder.fingerprint, compiled_in.fingerprint, "{folder}");
            assert_eq!(
                from_folder.tokenizer_fingerprint, compiled_in.tokenizer_fingerprint,
                "{folder}"
            );
        }
    }

    #[test]
    fn a_model_that_is_not_compiled_in_is_an_error_that_names_its_feature() {
        for name in NAMES {
            let text = missing(name);
            assert!(
                text.contains(&format!("--features {name}`")) && !text.contains('\n'),
                "{text}"
            );
        }
        let unknown = Model::load("builtin:none").err().unwrap().to_string();
        assert!(unknown.contains("built-in model"), "{unknown}");
        for name in NAMES {
            let compiled_in = COMPILED_IN.iter().any(|builtin| builtin.name == name);
            assert_eq!(Model::load(&format!("builtin:{name}")).is_ok(), compiled_in, "{name}");
        }
    }
}
