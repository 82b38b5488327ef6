//! The fused CPU kernels of inference: normalisation, rotation, attention, gate.
//!
//! Each output value is computed by the same sequence of operations whatever else is in the batch
//! and however much of the row came from a cache: sums run in a fixed order over positions counted
//! from the start of the *row*. So a row in a batch equals the row alone bit for bit, and the noise
//! floor that `evaluate` measures is nil on CPU.

use multiversion::multiversion;
use rayon::prelude::*;

use super::config::{Activation, NormKind};
use super::linear::PackedMatrix;
use super::pool::Pooled;
use super::weights::Norm;

/// `e^x` to 2 ulp for finite `x`; below -87.3 it is 0, above 88.3 infinite. A polynomial after
/// Cephes, in a form that vectorises (libm's does not; nor, without a dozen instructions for the
/// numbers that do not fit, does Rust's cast to an integer, so the integer is read off the bits of
/// a rounded sum).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOW: f32 = -87.3;
    const HIGH: f32 = 88.3;
    /// Adding 1.5 * 2^23 leaves no bits for a fraction.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(LOW, HIGH);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, c);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    let y = p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    let y = if x < LOW { 0.0 } else { y };
    let y = if x > HIGH { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// `ln(x)` to a few ulp for positive normal `x`; 0 and denormals give about -87.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let e = ((bits >> 23) as i32 - 126) as f32;
    let m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000); // [0.5, 1)
    let low = m < std::f32::consts::FRAC_1_SQRT_2;
    let (e, m) = (if low { e - 1.0 } else { e }, if low { m + m } else { m } - 1.0);
    let z = m * m;
    let mut p = 7.037_683_6e-2f32;
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = p.mul_add(m, c);
    }
    let y = (p * m * z) + e.mul_add(-2.121_944_4e-4, -0.5 * z);
    e.mul_add(0.693_359_4, m + y)
}

/// Normalises each row of `x` `[n, width]`.
pub fn norm(x: &[f32], norm: &Norm) -> Pooled {
    let step = norm.weight.len() * 16;
    let mut y = Pooled::take(x.len());
    y.par_chunks_mut(step).zip(x.par_chunks(step)).for_each(|(y, x)| norm_rows(y, x, norm));
    y
}

/// [`norm`] on this thread, `y` and `x` `[n, width]`.
pub fn norm_rows(y: &mut [f32], x: &[f32], norm: &Norm) {
    match norm.kind {
        NormKind::Rms => rms_norm_rows(y, x, &norm.weight, norm.eps as f32),
        NormKind::Layer => layer_norm_rows(y, x, &norm.weight, &norm.bias, norm.eps as f32),
    }
}

/// Root-mean-square normalisation (Zhang and Sennrich 2019).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn rms_norm_rows(y: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let width = weight.len();
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let scale = 1.0 / (lanes_sum(x, |v| v * v) / width as f32 + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * w;
        }
    }
}

/// Layer normalisation (Ba et al. 2016): the variance is the mean square of what is left of the
/// mean.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn layer_norm_rows(y: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let width = weight.len();
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let mean = lanes_sum(x, |v| v) / width as f32;
        let variance = lanes_sum(x, |v| (v - mean) * (v - mean)) / width as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (x - mean) * scale * w + b;
        }
    }
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(1 << 14)
        .zip(y.par_chunks(1 << 14))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}

/// Lanes of a sum: as many as one or two vectors hold, folded in a fixed order at the end. Loops
/// over `[f32; LANES]` are of constant length, which is what makes them vectors.
pub const LANES: usize = 16;

/// Sum of `f(x)`, lane by lane.
#[inline(always)]
pub fn lanes_sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f(*v);
    }
    lanes.iter().sum()
}

/// The largest value; `-inf` of none.
#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = if *v > *lane { *v } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b))
}

/// `activation(gate) * up` of `x` `[n, 2 * width]`, gate first; `[n, width]`.
pub fn gate(x: &[f32], width: usize, activation: Activation) -> Pooled {
    let mut y = Pooled::take(x.len() / 2);
    let rows = y.par_chunks_mut(width).zip(x.par_chunks(2 * width));
    rows.for_each(|(y, x)| gate_row(y, &x[..width], &x[width..], activation));
    y
}

/// `activation(gate) * up`.
pub fn gate_row(y: &mut [f32], gate: &[f32], up: &[f32], activation: Activation) {
    match activation {
        Activation::Silu => silu_gate(y, gate, up),
        Activation::Gelu => gelu_gate(y, gate, up),
        Activation::GeluTanh => gelu_tanh_gate(y, gate, up),
        Activation::ReluSquared => relu_squared_gate(y, gate, up),
        Activation::Sigmoid => sigmoid_gate(y, gate, up),
        Activation::Tanh => tanh_gate(y, gate, up),
        Activation::Softplus => softplus_gate(y, gate, up),
        Activation::Decay6 => decay6_gate(y, gate, up),
        Activation::Decay7 => decay7_gate(y, gate, up),
    }
}

/// `x = activation(x)`.
pub fn activate(x: &mut [f32], activation: Activation) {
    x.par_chunks_mut(1 << 12).for_each(|x| match activation {
        Activation::Silu => silu_all(x),
        Activation::Gelu => gelu_all(x),
        Activation::GeluTanh => gelu_tanh_all(x),
        Activation::ReluSquared => relu_squared_all(x),
        Activation::Sigmoid => sigmoid_all(x),
        Activation::Tanh => tanh_all(x),
        Activation::Softplus => softplus_all(x),
        Activation::Decay6 => decay6_all(x),
        Activation::Decay7 => decay7_all(x),
    });
}

/// An activation over slices: with a gate, and in place.
macro_rules! activations {
    ($($function:ident, $gated:ident, $all:ident;)*) => {$(
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
        fn $gated(y: &mut [f32], gate: &[f32], up: &[f32]) {
            for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                *y = $function(*g) * u;
            }
        }

        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
        fn $all(x: &mut [f32]) {
            x.iter_mut().for_each(|x| *x = $function(*x));
        }
    )*};
}

activations! {
    silu, silu_gate, silu_all;
    gelu, gelu_gate, gelu_all;
    gelu_tanh, gelu_tanh_gate, gelu_tanh_all;
    relu_squared, relu_squared_gate, relu_squared_all;
    sigmoid, sigmoid_gate, sigmoid_all;
    tanh, tanh_gate, tanh_all;
    softplus, softplus_gate, softplus_all;
    decay6, decay6_gate, decay6_all;
    decay7, decay7_gate, decay7_all;
}

#[inline(always)]
fn relu_squared(x: f32) -> f32 {
    // Not `max`, which would make 0 of a NaN.
    if x < 0.0 { 0.0 } else { x * x }
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    let t = exp(-2.0 * x.abs());
    ((1.0 - t) / (1.0 + t)).copysign(x)
}

/// `ln(1 + e^x)` without overflow on one side or cancellation on the other: the logarithm of `1 +
/// t` times what of `t` the sum has lost (Kahan).
#[inline(always)]
fn softplus(x: f32) -> f32 {
    let t = exp(-x.abs());
    let sum = 1.0 + t;
    let log = if sum == 1.0 { t } else { ln(sum) * (t / (sum - 1.0)) };
    (if x < 0.0 { 0.0 } else { x }) + log
}

#[inline(always)]
fn decay6(x: f32) -> f32 {
    exp(-exp(x))
}

#[inline(always)]
fn decay7(x: f32) -> f32 {
    exp(-0.606_531 * sigmoid(x))
}

#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `x * P(Z < x)`, the error function after Abramowitz and Stegun 7.1.26 (absolute error below
/// 1.5e-7).
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut p = 1.061_405_4f32;
    for c in [-1.453_152_1, 1.421_413_7, -0.284_496_72, 0.254_829_6] {
        p = p.mul_add(t, c);
    }
    // The tail, which is `1 - erf`: nothing cancels on the side where little is left.
    let tail = 0.5 * p * t * exp(-z * z);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// `x / 2 * (1 + tanh(u))`, `u = sqrt(2 / pi) * (x + 0.044715 x^3)`, which is `x * sigmoid(2 u)`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    let u = 0.797_884_6 * (0.044_715 * x * x).mul_add(x, x);
    x / (1.0 + exp(-2.0 * u))
}

/// Rotates the leading dimensions of the heads of one token in place, `[heads * head_dim]`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn rotate_heads(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    heads.chunks_exact_mut(head_dim).for_each(|head| rotate(&mut head[..2 * cos.len()], cos, sin));
}

/// Rotates a head in place; `cos`, `sin` are `[positions, head_dim / 2]`, halves rotated as pairs
/// (the Hugging Face convention: dimension `i` with `i + head_dim / 2`).
#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        let (x, y) = (*a, *b);
        *a = x * c - y * s;
        *b = y * c + x * s;
    }
}

/// One row of the attention: its tokens in the packed batch and the cached keys and values before
/// them.
pub struct AttentionRow<'a> {
    pub tokens: std::ops::Range<usize>,
    /// `(keys, values)` stretches `[len, kv_width]`, oldest first.
    pub prefix: Vec<(&'a [f32], &'a [f32])>,
}

/// Shape of an attention block.
#[derive(Clone, Copy)]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    /// Of queries and keys.
    pub head_dim: usize,
    pub value_dim: usize,
    pub window: Option<usize>,
    /// What the product of query and key is multiplied with.
    pub scale: f32,
}

/// Query rows (tokens times heads of a group) whose scores exist at one time: the keys beyond the
/// last of them are left out.
const QUERIES: usize = 65;

/// Causal attention of every row over its prefix and itself. `q` `[tokens, heads * head_dim]`, `k`
/// and `v` `[tokens, kv_heads * value_dim]`; returns `z` `[tokens, heads * value_dim]`.
pub fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    rows: &[AttentionRow],
    shape: AttentionShape,
) -> Pooled {
    let (width, kv_width) = (shape.heads * shape.value_dim, shape.kv_heads * shape.head_dim);
    let v_width = shape.kv_heads * shape.value_dim;
    let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
    let mut z = Pooled::take(tokens * width);
    let mut parts = Vec::with_capacity(rows.len());
    let mut rest = &mut z[..];
    for row in rows {
        let (part, tail) = rest.split_at_mut(row.tokens.len() * width);
        parts.push((row, part));
        rest = tail;
    }
    parts.into_par_iter().for_each(|(row, z)| {
        let heads: Vec<Vec<f32>> = (0..shape.kv_heads)
            .into_par_iter()
            .map(|kv_head| {
                head_group(
                    q,
                    &k[row.tokens.start * kv_width..],
                    &v[row.tokens.start * v_width..],
                    row,
                    shape,
                    kv_head,
                )
            })
            .collect();
        let span = width / shape.kv_heads;
        for (kv_head, part) in heads.iter().enumerate() {
            for (z, part) in z.chunks_exact_mut(width).zip(part.chunks_exact(span)) {
                z[kv_head * span..][..span].copy_from_slice(part);
            }
        }
    });
    z
}

/// The query heads of one key/value head over one row: `[len, group * value_dim]`.
///
/// Two products with the packed matrix of the linear layers, whose outputs do not depend on how
/// many rows go through together; a masked position adds `0 * v` to a sum, which leaves it as it
/// was. Unless `v` is no number: then every query has a product of its own, that ends where it may
/// look.
fn head_group(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    row: &AttentionRow,
    shape: AttentionShape,
    kv_head: usize,
) -> Vec<f32> {
    let (dim, kv_width, width) =
        (shape.head_dim, shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim);
    let (v_dim, v_width) = (shape.value_dim, shape.kv_heads * shape.value_dim);
    let group = shape.heads / shape.kv_heads;
    let before: usize = row.prefix.iter().map(|(k, _)| k.len() / kv_width).sum();
    let (len, total) = (row.tokens.len(), before + row.tokens.len());
    let own = (&k[..len * kv_width], &v[..len * v_width]);
    let (mut keys, mut values) =
        (Vec::with_capacity(total * dim), Vec::with_capacity(total * v_dim));
    for (k, v) in row.prefix.iter().copied().chain([own]) {
        k.chunks_exact(kv_width).for_each(|k| keys.extend_from_slice(&k[kv_head * dim..][..dim]));
        v.chunks_exact(v_width)
            .for_each(|v| values.extend_from_slice(&v[kv_head * v_dim..][..v_dim]));
    }
    let finite = lanes_sum(&values, |v| v * 0.0) == 0.0;
    let keys = PackedMatrix::new_serial(&keys, total, dim);
    let values = PackedMatrix::from_columns(&values, total, v_dim);
    let scale = shape.scale;
    let mut out = vec![0f32; len * group * v_dim];
    let mut gathered = Vec::with_capacity(QUERIES * dim);
    let mut scores = Pooled::take(QUERIES.min(len * group) * total);
    for (block, out) in out.chunks_mut(QUERIES * v_dim).enumerate() {
        let (first, n) = (block * QUERIES, out.len() / v_dim); // query i is token i / group, head i % group
        gathered.clear();
        for i in first..first + n {
            let at = (row.tokens.start + i / group) * width + (kv_head * group + i % group) * dim;
            gathered.extend_from_slice(&q[at..at + dim]);
        }
        let scores = &mut scores[..n * total];
        let end = |i: usize| before + (first + i) / group + 1;
        keys.matmul_serial(&gathered, n, scores, end(n - 1), dim);
        for (i, scores) in scores.chunks_exact_mut(total).enumerate() {
            let lo = shape.window.map_or(0, |w| end(i).saturating_sub(w));
            softmax(scores, lo, end(i), scale);
        }
        if finite {
            values.matmul_serial(scores, n, out, v_dim, end(n - 1));
        } else {
            let rows = scores.chunks_exact(total).zip(out.chunks_exact_mut(v_dim));
            rows.enumerate()
                .for_each(|(i, (scores, out))| values.matmul_serial(scores, 1, out, v_dim, end(i)));
        }
    }
    out
}

/// Softmax of `scale * scores` over `first..end`, zero elsewhere.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn softmax(scores: &mut [f32], first: usize, end: usize, scale: f32) {
    let visible = first..end;
    scores[..visible.start].fill(0.0);
    scores[visible.end..].fill(0.0);
    let scores = &mut scores[visible];
    let max = largest(scores) * scale;
    scores.iter_mut().for_each(|s| *s = exp(s.mul_add(scale, -max)));
    let sum = lanes_sum(scores, |s| s);
    let inverse = 1.0 / sum;
    scores.iter_mut().for_each(|s| *s *= inverse);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_ln_agree_with_the_standard_library() {
        for i in -8700..8700 {
            let x = i as f32 / 100.0;
            let (got, want) = (exp(x), x.exp());
            assert!(((got - want) / want).abs() < 5e-7, "exp({x}) = {got}, not {want}");
        }
        assert_eq!((exp(-200.0), exp(200.0), exp(f32::NEG_INFINITY)), (0.0, f32::INFINITY, 0.0));
        assert!(exp(f32::NAN).is_nan());
        for i in 1..20_000 {
            let x = i as f32 / 997.0;
            let (got, want) = (ln(x), x.ln());
            assert!((got - want).abs() < 3e-7 * want.abs().max(1.0), "ln({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn activations_agree_with_their_definitions() {
        // The distribution function by Simpson's rule, from far out.
        let normal = |x: f64| {
            let density = |t: f64| (-0.5 * t * t).exp() / std::f64::consts::TAU.sqrt();
            let (n, from) = (4000, -9.0);
            let h = (x - from) / f64::from(n);
            let inner: f64 = (1..n)
                .map(|i| if i % 2 == 0 { 2.0 } else { 4.0 } * density(from + f64::from(i) * h))
                .sum();
            h / 3.0 * (density(from) + inner + density(x))
        };
        for i in -80..80 {
            let x = f64::from(i) / 10.0;
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let close = |got: f32, want: f64| {
                assert!((f64::from(got) - want).abs() < 2e-6, "{x}: {got}, not {want}")
            };
            close(silu(x as f32), x / (1.0 + (-x).exp()));
            close(gelu(x as f32), x * normal(x));
            close(gelu_tanh(x as f32), 0.5 * x * (1.0 + u.tanh()));
            close(sigmoid(x as f32), 1.0 / (1.0 + (-x).exp()));
            close(tanh(x as f32), x.tanh());
            close(decay6(x as f32), (-x.exp()).exp());
            close(decay7(x as f32), (-0.606_531 / (1.0 + (-x).exp())).exp());
            let close_relatively = |got: f32, want: f64| {
                assert!((f64::from(got) / want - 1.0).abs() < 1e-6, "{x}: {got}, not {want}")
            };
            close_relatively(softplus(2.0 * x as f32), (2.0 * x).exp().ln_1p());
        }
    }

    /// The same attention written for reading.
    fn naive(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        len: usize,
        before: usize,
        shape: AttentionShape,
    ) -> Vec<f32> {
        let (d, kw, w) =
            (shape.head_dim, shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim);
        let mut z = vec![0f32; len * w];
        for i in 0..len {
            for h in 0..shape.heads {
                let kv = h / (shape.heads / shape.kv_heads);
                let position = before + i;
                let lo = shape.window.map_or(0, |w| (position + 1).saturating_sub(w));
                let dot = |j: usize| {
                    (0..d)
                        .map(|x| {
                            f64::from(q[i * w + h * d + x]) * f64::from(k[j * kw + kv * d + x])
                        })
                        .sum::<f64>()
                };
                let e: Vec<f64> =
                    (lo..=position).map(|j| (dot(j) / (d as f64).sqrt()).exp()).collect();
                let sum: f64 = e.iter().sum();
                for x in 0..d {
                    let y: f64 = e
                        .iter()
                        .enumerate()
                        .map(|(n, p)| p / sum * f64::from(v[(lo + n) * kw + kv * d + x]))
                        .sum();
                    z[i * w + h * d + x] = y as f32;
                }
            }
        }
        z
    }

    #[test]
    fn attention_agrees_with_the_naive_form_and_with_itself_across_caches() {
        use rand::Rng as _;
        let mut rng = crate::rng::stream(1, "attention");
        for (len, heads, kv_heads, head_dim, window) in
            [(1, 2, 1, 6, None), (37, 4, 2, 8, None), (70, 9, 3, 64, Some(6)), (33, 3, 3, 40, None)]
        {
            let shape = AttentionShape {
                heads,
                kv_heads,
                head_dim,
                value_dim: head_dim,
                window,
                scale: (head_dim as f32).sqrt().recip(),
            };
            let mut random =
                |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (w, kw) = (heads * head_dim, kv_heads * head_dim);
            let (q, k, v) = (random(len * w), random(len * kw), random(len * kw));
            let whole =
                attention(&q, &k, &v, &[AttentionRow { tokens: 0..len, prefix: vec![] }], shape);
            for (a, b) in whole.iter().zip(naive(&q, &k, &v, len, 0, shape)) {
                assert!((a - b).abs() < 1e-5, "{a} against {b}");
            }
            let cut = len / 3;
            let prefix = vec![(&k[..cut * kw], &v[..cut * kw])];
            let rows = [AttentionRow { tokens: 0..len - cut, prefix }];
            let cached = attention(&q[cut * w..], &k[cut * kw..], &v[cut * kw..], &rows, shape);
            assert_eq!(
                cached[..],
                whole[cut * w..],
                "a cached prefix changes nothing, not even a bit"
            );

            // Nothing looks ahead, not even at what is no number; and a window looks back only so
            // far.
            let mut broken = v.clone();
            broken[cut * kw] = f32::NAN;
            let seen = attention(
                &q,
                &k,
                &broken,
                &[AttentionRow { tokens: 0..len, prefix: vec![] }],
                shape,
            );
            assert_eq!(seen[..cut * w], whole[..cut * w]);
            assert!(seen[cut * w..][..w].iter().any(|x| x.is_nan()), "it is seen where it is");
        }
    }
}
