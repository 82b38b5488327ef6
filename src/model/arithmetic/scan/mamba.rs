//! The selective scans of Mamba and Mamba-2.

use std::ops::Range;

use multiversion::multiversion;

use super::super::kernels::exp;
use super::{Job, View};

/// Number of channels that are computed together: one vector.
pub const CHANNELS: usize = 16;

/// The inputs of [`scan`], as in [`Recurrence::Mamba`](super::Recurrence::Mamba).
pub struct Inputs<'a> {
    pub x: View<'a>,
    pub dt: View<'a>,
    pub b: View<'a>,
    pub c: View<'a>,
    pub a: &'a [f32],
    pub d: &'a [f32],
}

/// Runs up to [`CHANNELS`] channels of one row: `h = exp(A dt) h + dt x B`, `y = h C + D x`. The
/// state is `[channels, state_size]`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn scan(inputs: &Inputs, job: Job) {
    let Job { columns, tokens, state, y, watch } = job;
    let (n, n_channels) = (inputs.b.width, columns.len());
    // One lane for each channel: the sum over the state is then a sum of vectors. Lanes without a
    // channel are idle.
    let by_lane = |from: &[f32]| -> Vec<[f32; CHANNELS]> {
        let lane = |i: usize, channel: usize| {
            if channel < n_channels { from[channel * n + i] } else { 0.0 }
        };
        (0..n).map(|i| std::array::from_fn(|channel| lane(i, channel))).collect()
    };
    let lanes = |view: &View, token: usize| -> [f32; CHANNELS] {
        let mut lanes = [0f32; CHANNELS];
        lanes[..n_channels].copy_from_slice(view.at(token, columns.clone()));
        lanes
    };
    let a = by_lane(&inputs.a[columns.start * n..columns.end * n]);
    let mut h = by_lane(state);
    let mut d = [0f32; CHANNELS];
    d[..n_channels].copy_from_slice(&inputs.d[columns.clone()]);
    for (token, y) in tokens.zip(y.chunks_exact_mut(n_channels)) {
        let (x, dt) = (lanes(&inputs.x, token), lanes(&inputs.dt, token));
        let (b, c) = (inputs.b.at(token, 0..n), inputs.c.at(token, 0..n));
        for ((h, a), b) in h.iter_mut().zip(&a).zip(b) {
            for lane in 0..CHANNELS {
                h[lane] = exp(a[lane] * dt[lane]).mul_add(h[lane], dt[lane] * b * x[lane]);
            }
        }
        if watch.wants(token) {
            for (channel, state) in state.chunks_exact_mut(n).enumerate() {
                state.iter_mut().zip(&h).for_each(|(s, h)| *s = h[channel]);
            }
            watch.look(token, state);
            h = by_lane(state);
        }
        let mut sum = [0f32; CHANNELS];
        for (h, c) in h.iter().zip(c) {
            for lane in 0..CHANNELS {
                sum[lane] = h[lane].mul_add(*c, sum[lane]);
            }
        }
        for lane in 0..CHANNELS {
            sum[lane] = d[lane].mul_add(x[lane], sum[lane]);
        }
        y.copy_from_slice(&sum[..n_channels]);
    }
}

/// The inputs of [`scan_head`], as in [`Recurrence::Mamba2`](super::Recurrence::Mamba2).
pub struct Head<'a> {
    pub x: View<'a>,
    pub dt: View<'a>,
    pub b: View<'a>,
    pub c: View<'a>,
    pub a: f32,
    pub d: f32,
    pub head: usize,
    /// Columns of `b` and `c` that the head reads.
    pub group: Range<usize>,
}

/// Runs one head of one row: `S = exp(A dt) S + dt B x`, `y = C S + D x`. The state is
/// `[state_size, head_dim]`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn scan_head(head: &Head, job: Job) {
    let Job { columns, tokens, state, y, watch } = job;
    let width = columns.len();
    for (token, y) in tokens.zip(y.chunks_exact_mut(width)) {
        let x = head.x.at(token, columns.clone());
        let dt = head.dt.at(token, head.head..head.head + 1)[0];
        let decay = exp(head.a * dt);
        for (state, b) in state.chunks_exact_mut(width).zip(head.b.at(token, head.group.clone())) {
            let scaled = dt * b;
            state.iter_mut().zip(x).for_each(|(s, x)| *s = decay.mul_add(*s, scaled * x));
        }
        if watch.wants(token) {
            watch.look(token, state);
        }
        y.iter_mut().zip(x).for_each(|(y, x)| *y = head.d * x);
        for (state, c) in state.chunks_exact(width).zip(head.c.at(token, head.group.clone())) {
            y.iter_mut().zip(state).for_each(|(y, s)| *y = c.mul_add(*s, *y));
        }
    }
}
