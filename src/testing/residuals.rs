//! A made-up residual map and logit lens, for the sample of the report.

use crate::localize::{LensRun, LogitLens, MapPosition, ResidualMap};

/// An effect that moves from position 4 to position 9 between the layers 1 and 2.
pub fn residual_map() -> ResidualMap {
    let position = |(position, text): (usize, &str)| MapPosition {
        position,
        id: 7 * position as u32,
        text: text.into(),
    };
    ResidualMap {
        layers: (0..4).collect(),
        hooks: (0..4).map(|layer| format!("blocks.{layer}.hook_resid_pre")).collect(),
        positions: [(4, " great"), (5, "\n"), (7, " repeated"), (9, ":")].map(position).into(),
        necessity: vec![
            vec![1.0, 0.0, 0.0, 0.0],
            vec![0.96, 0.02, 0.05, 0.11],
            vec![0.31, 0.02, 0.04, 0.66],
            vec![0.01, 0.0, 0.0, 0.98],
        ],
    }
}

/// A token that the last layers say with the edits alone.
pub fn logit_lens() -> LogitLens {
    let run = |log_probs: [f64; 4], texts: [&str; 4]| LensRun {
        log_probs: log_probs.into(),
        top: vec![3, 5, 8, 11],
        texts: texts.map(Into::into).into(),
    };
    LogitLens {
        position: 9,
        layers: (0..4).collect(),
        hooks: (0..4).map(|layer| format!("blocks.{layer}.hook_resid_post")).collect(),
        clean: run([-11.2, -12.5, -13.8, -14.5], [":", " great", " great", " great"]),
        corrupted: run([-11.0, -9.1, -3.4, -0.21], [":", " of", " the", " the"]),
        controls: vec![
            run([-11.3, -12.0, -15.1, -16.8], [":", " sea", " sea", " sea"]),
            run([-11.1, -12.9, -14.6, -15.9], [":", " old", " old", " old"]),
        ],
    }
}
