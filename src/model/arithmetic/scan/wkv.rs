//! The recurrences of RWKV: the exponential average of version 4, the matrix states of 6 and 7.

use multiversion::multiversion;

use super::super::kernels::exp;
use super::{Job, View};

/// Exponent of the sums before the first token of a sequence.
pub const EMPTY_EXPONENT: f32 = -1e38;

/// Runs all channels of one row of RWKV-4: an average of values by weights `exp(k)` that decay with
/// distance. Numerator and denominator are scaled by `exp(-m)`, `m` being the largest exponent so
/// far. The state is `[channels, 2]` and then `m`, `[channels]`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn scan4(k: View, v: View, decay: &[f32], first: &[f32], job: Job) {
    let Job { tokens, state, y, watch, .. } = job;
    let width = k.width;
    for (token, y) in tokens.zip(y.chunks_exact_mut(width)) {
        let (sums, largest) = state.split_at_mut(2 * width);
        let sums = sums.as_chunks_mut::<2>().0;
        let inputs =
            k.at(token, 0..width).iter().zip(v.at(token, 0..width)).zip(decay.iter().zip(first));
        let state_of = sums.iter_mut().zip(largest);
        for (y, ((sums, m), ((k, v), (w, u)))) in y.iter_mut().zip(state_of.zip(inputs)) {
            let top = m.max(k + u);
            let (past, now) = (exp(*m - top), exp(k + u - top));
            *y = (past * sums[0] + now * v) / (past * sums[1] + now);
            let top = (*m + w).max(*k);
            let (past, now) = (exp(*m + w - top), exp(k - top));
            *sums = [past * sums[0] + now * v, past * sums[1] + now];
            *m = top;
        }
        if watch.wants(token) {
            watch.look(token, state);
        }
    }
}

/// The inputs that versions 6 and 7 have in common.
pub struct Inputs<'a> {
    pub r: View<'a>,
    pub w: View<'a>,
    pub k: View<'a>,
    pub v: View<'a>,
}

/// Runs one head of one row of RWKV-6: `o = r (u k v + S)`, then `S = w S + k v`, by key channel.
/// The state is `[key, value]`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn scan6(inputs: &Inputs, first: &[f32], job: Job) {
    let Job { columns: head, tokens, state, y, watch } = job;
    let dim = head.len();
    for (token, y) in tokens.zip(y.chunks_exact_mut(dim)) {
        let [r, w, k, v] = [inputs.r, inputs.w, inputs.k, inputs.v]
            .map(|x| &x.data[token * x.width..][head.clone()]);
        y.fill(0.0);
        for (i, state) in state.chunks_exact_mut(dim).enumerate() {
            let (r, w, k, now) = (r[i], w[i], k[i], r[i] * first[i] * k[i]);
            for ((y, s), v) in y.iter_mut().zip(state).zip(v) {
                *y = r.mul_add(*s, now.mul_add(*v, *y));
                *s = w.mul_add(*s, k * v);
            }
        }
        if watch.wants(token) {
            watch.look(token, state);
        }
    }
}

/// Runs one head of one row of RWKV-7: `S = S diag(w) - (S kk) b + v k`, `o = S r`. The state is
/// kept as `[key, value]`, so that every sum runs over rows.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn scan7(inputs: &Inputs, kk: View, b: View, job: Job) {
    let Job { columns: head, tokens, state, y, watch } = job;
    let dim = head.len();
    let mut removed = vec![0f32; dim];
    for (token, y) in tokens.zip(y.chunks_exact_mut(dim)) {
        let [r, w, k, v, kk, b] = [inputs.r, inputs.w, inputs.k, inputs.v, kk, b]
            .map(|x| &x.data[token * x.width..][head.clone()]);
        removed.fill(0.0);
        for (state, kk) in state.chunks_exact(dim).zip(kk) {
            removed.iter_mut().zip(state).for_each(|(a, s)| *a = kk.mul_add(*s, *a));
        }
        for (i, state) in state.chunks_exact_mut(dim).enumerate() {
            let (w, b, k) = (w[i], b[i], k[i]);
            for ((s, a), v) in state.iter_mut().zip(&removed).zip(v) {
                *s = w.mul_add(*s, k.mul_add(*v, -b * a));
            }
        }
        if watch.wants(token) {
            watch.look(token, state);
        }
        y.fill(0.0);
        for (state, r) in state.chunks_exact(dim).zip(r) {
            y.iter_mut().zip(state).for_each(|(y, s)| *y = r.mul_add(*s, *y));
        }
    }
}
