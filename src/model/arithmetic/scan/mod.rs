//! The recurrences of state-space and RWKV layers, for inference.
//!
//! A recurrence is computed position by position, row by row; heads (or groups of channels) are
//! independent of each other and go to different threads. A row that starts from a kept state does
//! the same operations in the same order as the row in one piece, so that both are equal to the
//! bit. The gradient mode has the same steps in candle operations (`composed/scan.rs`), and tests
//! hold one against the other.

mod mamba;
mod wkv;

pub use wkv::EMPTY_EXPONENT;

use std::ops::Range;

use rayon::prelude::*;

use super::pool::Pooled;
use crate::model::hooks::Block;

/// The tokens of a row, and the inputs or the state it starts from.
#[derive(Clone)]
pub struct RowStart<'a> {
    /// Packed token indices.
    pub tokens: Range<usize>,
    /// The part of the kept state that continues here; empty at the start of a sequence.
    pub initial: &'a [f32],
}

/// A recurrence and its inputs, `[tokens, width]` each.
pub enum Recurrence<'a, A> {
    /// Mamba (Gu and Dao 2023, algorithm 2). State `[channels, state_size]`.
    Mamba {
        /// `[tokens, channels]`.
        x: A,
        /// `[tokens, channels]`, positive.
        dt: A,
        /// `[tokens, state_size]`.
        b: A,
        /// `[tokens, state_size]`.
        c: A,
        /// `A`, negative, `[channels, state_size]`.
        a: &'a [f32],
        /// `D`, `[channels]`.
        d: &'a [f32],
    },
    /// Mamba-2 (Dao and Gu 2024, section 6): a decay a head. State `[heads, state_size, head_dim]`.
    Mamba2 {
        /// `[tokens, heads * head_dim]`.
        x: A,
        /// `[tokens, heads]`.
        dt: A,
        /// `[tokens, groups * state_size]`.
        b: A,
        /// `[tokens, groups * state_size]`.
        c: A,
        /// `A`, negative, `[heads]`.
        a: &'a [f32],
        /// `D`, `[heads]`.
        d: &'a [f32],
        /// Groups of heads that share `b` and `c`.
        groups: usize,
        /// Values of the state for each channel.
        state_size: usize,
    },
    /// RWKV-4 (Peng et al. 2023, appendix D). State: numerator and denominator of each channel,
    /// `[channels, 2]`, then the exponent they are scaled by, `[channels]`.
    Wkv4 {
        /// Keys, `[tokens, channels]`.
        k: A,
        /// Values, `[tokens, channels]`.
        v: A,
        /// `-exp(time_decay)`, `[channels]`.
        decay: &'a [f32],
        /// Bonus of the current token, `[channels]`.
        first: &'a [f32],
    },
    /// RWKV-6 (Peng et al. 2024). State `[heads, key, value]`.
    Wkv6 {
        /// Receptance, `[tokens, heads * head_dim]`, as are the other inputs.
        r: A,
        /// Decay.
        w: A,
        /// Keys.
        k: A,
        /// Values.
        v: A,
        /// Bonus `u` of the current token, `[heads * head_dim]`.
        first: &'a [f32],
        /// Width of a head.
        head_dim: usize,
    },
    /// RWKV-7 (Peng et al. 2025): a generalised delta rule. State `[heads, key, value]`.
    Wkv7 {
        /// Receptance, `[tokens, heads * head_dim]`, as are the other inputs.
        r: A,
        /// Decay.
        w: A,
        /// Keys.
        k: A,
        /// Values.
        v: A,
        /// Normalised removal key.
        kk: A,
        /// `kk` times the in-context learning rate.
        b: A,
        /// Width of a head.
        head_dim: usize,
    },
}

/// A borrowed array `[tokens, width]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The values, row-major.
    pub data: &'a [f32],
    /// Number of columns.
    pub width: usize,
}

impl View<'_> {
    /// Returns some columns of one token.
    #[inline(always)]
    fn at(&self, token: usize, columns: Range<usize>) -> &[f32] {
        &self.data[token * self.width..][columns]
    }
}

/// One independent piece of a recurrence: its columns of the output and of the state.
struct Piece {
    output: Range<usize>,
    state: Range<usize>,
}

/// One piece of one row to compute.
struct Job<'a, 'w> {
    /// Columns of the output.
    columns: Range<usize>,
    tokens: Range<usize>,
    /// The piece's state before the first token, and at the end after the last.
    state: &'a mut [f32],
    /// `[tokens, columns]`.
    y: &'a mut [f32],
    watch: &'a mut Watch<'w>,
}

/// The edits of a piece's state after each position, and then its captures.
struct Watch<'a> {
    blocks: Vec<&'a Block>,
    /// Packed tokens, ascending, after which the state is kept.
    keep: &'a [usize],
    /// Columns of the piece in the whole state.
    columns: Range<usize>,
    /// `[keep, columns]`.
    kept: Vec<f32>,
}

impl Watch<'_> {
    /// Returns whether there is an edit or a capture after a token.
    fn wants(&self, token: usize) -> bool {
        self.keep.first() == Some(&token) || self.blocks.iter().any(|b| b.tokens.contains(&token))
    }

    /// Edits and captures the state after a token.
    fn look(&mut self, token: usize, state: &mut [f32]) {
        for block in self.blocks.iter().filter(|b| b.tokens.contains(&token)) {
            block.apply_within(token, self.columns.clone(), state);
        }
        if let Some((_, rest)) = self.keep.split_first().filter(|(next, _)| **next == token) {
            self.kept.extend_from_slice(state);
            self.keep = rest;
        }
    }
}

impl<'a, A> Recurrence<'a, A> {
    /// Converts the inputs to another type.
    pub fn map<B>(&self, f: impl Fn(&A) -> B) -> Recurrence<'a, B> {
        match *self {
            Self::Mamba { ref x, ref dt, ref b, ref c, a, d } => {
                Recurrence::Mamba { x: f(x), dt: f(dt), b: f(b), c: f(c), a, d }
            }
            Self::Mamba2 { ref x, ref dt, ref b, ref c, a, d, groups, state_size } => {
                Recurrence::Mamba2 {
                    x: f(x),
                    dt: f(dt),
                    b: f(b),
                    c: f(c),
                    a,
                    d,
                    groups,
                    state_size,
                }
            }
            Self::Wkv4 { ref k, ref v, decay, first } => {
                Recurrence::Wkv4 { k: f(k), v: f(v), decay, first }
            }
            Self::Wkv6 { ref r, ref w, ref k, ref v, first, head_dim } => {
                Recurrence::Wkv6 { r: f(r), w: f(w), k: f(k), v: f(v), first, head_dim }
            }
            Self::Wkv7 { ref r, ref w, ref k, ref v, ref kk, ref b, head_dim } => {
                Recurrence::Wkv7 {
                    r: f(r),
                    w: f(w),
                    k: f(k),
                    v: f(v),
                    kk: f(kk),
                    b: f(b),
                    head_dim,
                }
            }
        }
    }
}

impl Recurrence<'_, View<'_>> {
    /// Returns the number of columns of the output.
    pub fn width(&self) -> usize {
        match self {
            Self::Mamba { x, .. } | Self::Mamba2 { x, .. } => x.width,
            Self::Wkv4 { v, .. } | Self::Wkv6 { v, .. } | Self::Wkv7 { v, .. } => v.width,
        }
    }

    /// Returns the number of values of the state.
    fn state_width(&self) -> usize {
        match self {
            Self::Mamba { x, b, .. } => x.width * b.width,
            Self::Mamba2 { x, state_size, .. } => x.width * state_size,
            Self::Wkv4 { v, .. } => 3 * v.width,
            Self::Wkv6 { v, head_dim, .. } | Self::Wkv7 { v, head_dim, .. } => v.width * head_dim,
        }
    }

    /// Returns the state before the first token of a sequence.
    fn zero(&self) -> Vec<f32> {
        let mut state = vec![0f32; self.state_width()];
        if let Self::Wkv4 { v, .. } = self {
            state[2 * v.width..].fill(wkv::EMPTY_EXPONENT);
        }
        state
    }

    /// Cuts the recurrence into independent pieces.
    fn pieces(&self) -> Vec<Piece> {
        let width = self.width();
        let (columns, per_column) = match self {
            Self::Mamba { b, .. } => (mamba::CHANNELS.min(width), b.width),
            Self::Mamba2 { a, state_size, .. } => (width / a.len(), *state_size),
            Self::Wkv4 { .. } => (width, 3),
            Self::Wkv6 { head_dim, .. } | Self::Wkv7 { head_dim, .. } => (*head_dim, *head_dim),
        };
        let starts = (0..width).step_by(columns).map(|first| first..(first + columns).min(width));
        starts
            .map(|output| Piece {
                state: output.start * per_column..output.end * per_column,
                output,
            })
            .collect()
    }

    /// Runs one piece over the tokens of one row.
    fn run(&self, job: Job) {
        match *self {
            Self::Mamba { x, dt, b, c, a, d } => {
                mamba::scan(&mamba::Inputs { x, dt, b, c, a, d }, job);
            }
            Self::Mamba2 { x, dt, b, c, a, d, groups, state_size } => {
                let head = job.columns.start / job.columns.len();
                let group = head / (a.len() / groups) * state_size;
                let inputs = mamba::Head {
                    x,
                    dt,
                    b,
                    c,
                    a: a[head],
                    d: d[head],
                    head,
                    group: group..group + state_size,
                };
                mamba::scan_head(&inputs, job);
            }
            Self::Wkv4 { k, v, decay, first } => wkv::scan4(k, v, decay, first, job),
            Self::Wkv6 { r, w, k, v, first, .. } => {
                let inputs = wkv::Inputs { r, w, k, v };
                wkv::scan6(&inputs, &first[job.columns.clone()], job);
            }
            Self::Wkv7 { r, w, k, v, kk, b, .. } => {
                let inputs = wkv::Inputs { r, w, k, v };
                wkv::scan7(&inputs, kk, b, job);
            }
        }
    }

    /// Runs the recurrence over all rows. `blocks` edit the state after a position, before it is
    /// read again. Returns the output, `[tokens, width]`, and the states after the packed tokens
    /// `keep` (ascending), `[keep, state width]`.
    pub fn scan(&self, rows: &[RowStart], blocks: &[Block], keep: &[usize]) -> (Pooled, Vec<f32>) {
        let (width, state_width, pieces, zero) =
            (self.width(), self.state_width(), self.pieces(), self.zero());
        let first = rows.first().map_or(0, |r| r.tokens.start);
        let total: usize = rows.iter().map(|r| r.tokens.len()).sum();
        let kept_range = |row: &RowStart| {
            keep.partition_point(|t| *t < row.tokens.start)
                ..keep.partition_point(|t| *t < row.tokens.end)
        };
        let jobs: Vec<(&RowStart, &Piece)> =
            rows.iter().flat_map(|row| pieces.iter().map(move |piece| (row, piece))).collect();
        let done: Vec<(Vec<f32>, Vec<f32>)> = jobs
            .par_iter()
            .map(|(row, piece)| {
                let initial = if row.initial.is_empty() { &zero } else { row.initial };
                let mut state = initial[piece.state.clone()].to_vec();
                let mut y = vec![0f32; row.tokens.len() * piece.output.len()];
                let mut watch = Watch {
                    blocks: blocks.iter().filter(|b| overlaps(&b.tokens, &row.tokens)).collect(),
                    keep: &keep[kept_range(row)],
                    columns: piece.state.clone(),
                    kept: Vec::new(),
                };
                self.run(Job {
                    columns: piece.output.clone(),
                    tokens: row.tokens.clone(),
                    state: &mut state,
                    y: &mut y,
                    watch: &mut watch,
                });
                (y, watch.kept)
            })
            .collect();
        let mut y = Pooled::take(total * width);
        let mut kept = vec![0f32; keep.len() * state_width];
        for ((row, piece), (part, states)) in jobs.iter().zip(&done) {
            let to = y[(row.tokens.start - first) * width..].chunks_exact_mut(width);
            to.zip(part.chunks_exact(piece.output.len()))
                .for_each(|(y, part)| y[piece.output.clone()].copy_from_slice(part));
            let to = kept[kept_range(row).start * state_width..].chunks_exact_mut(state_width);
            to.zip(states.chunks_exact(piece.state.len()))
                .for_each(|(to, state)| to[piece.state.clone()].copy_from_slice(state));
        }
        (y, kept)
    }
}

/// Returns whether two ranges have an element in common.
fn overlaps(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}
