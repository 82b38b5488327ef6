//! Chooses the built-in models: `cfg(builtin = "NAME")` is set for each that is compiled in.
//!
//! A model is compiled in if its Cargo feature is on, or if the feature `checkout` is on and the
//! source tree holds its weights. Both `dense` and `checkout` are default features, so a checkout
//! of the repository builds all four models, and the published package, which leaves out the
//! largest of them, builds `dense` unless it is asked for more.

use std::path::{Path, PathBuf};

/// Every built-in model: its Cargo feature, its folder in `corpus/models`, and its `builtin:NAME`.
const NAMES: [&str; 4] = ["dense", "moe", "mamba", "rwkv"];

fn main() {
    let values = NAMES.map(|name| format!("{name:?}")).join(", ");
    println!("cargo::rustc-check-cfg=cfg(builtin, values({values}))");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=corpus/models");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by Cargo"));
    // Only a checkout has the recipe; the published package may hold models nobody asked for.
    let checkout = feature("checkout") && root.join("corpus/models/recipe").is_dir();
    for name in NAMES {
        let weights = Path::new("corpus/models").join(name).join("model.safetensors");
        let found = root.join(&weights).is_file();
        if feature(name) && !found {
            println!(
                "cargo::error=feature `{name}` needs {}, which is not in this package: build from \
                a checkout of the repository",
                weights.display()
            );
        }
        if found && (checkout || feature(name)) {
            println!("cargo::rustc-cfg=builtin={name:?}");
        }
    }
}

fn feature(name: &str) -> bool {
    std::env::var_os(format!("CARGO_FEATURE_{}", name.to_uppercase())).is_some()
}
