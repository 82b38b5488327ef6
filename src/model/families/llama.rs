//! Llama (Touvron et al. 2023) and Mistral (Jiang et al. 2023), which is a Llama with a sliding
//! window.

use super::rotary::Window;
use super::transformer::{self, Transformer};
use super::{Family, GgufLayout, PLAIN_GGUF, names};

pub(super) const LLAMA: Family = Family {
    model_type: "llama",
    config: |fields| transformer::read(fields, &transformer::LLAMA),
    names: names::LLAMA,
    gguf: Some(GgufLayout { architecture: "llama", interleaved: true, ..PLAIN_GGUF }),
    pth: None,
};

pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    config: |fields| {
        transformer::read(fields, &Transformer { window: Window::Always, ..transformer::LLAMA })
    },
    names: names::LLAMA,
    // llama.cpp calls these llama.
    gguf: None,
    pth: None,
};
