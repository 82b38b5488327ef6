//! Operations on each value, column or head by itself, for inference: most of them stand around the
//! matrix products of recurrent layers.

use multiversion::multiversion;
use rayon::prelude::*;

use super::reduce::lanes_sum;
use crate::model::arithmetic::pool::Pooled;
use crate::model::arithmetic::scan::RowStart;

/// Number of values that one thread works on at a time.
const CHUNK: usize = 1 << 13;

/// Returns the number of values in the whole rows that make up about [`CHUNK`] values.
fn whole_rows(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1) * width
}

/// Computes `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(1 << 14)
        .zip(y.par_chunks(1 << 14))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}

/// Computes `x *= y`.
pub fn mul(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(CHUNK)
        .zip(y.par_chunks(CHUNK))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x *= y));
}

/// Computes `x = scale * x + shift`, with one `scale` and `shift` for each column.
pub fn affine(x: &mut [f32], scale: &[f32], shift: Option<&[f32]>) {
    let width = scale.len();
    x.par_chunks_mut(whole_rows(width)).for_each(|x| {
        for x in x.chunks_exact_mut(width) {
            x.iter_mut().zip(scale).for_each(|(x, s)| *x *= s);
            if let Some(shift) = shift {
                x.iter_mut().zip(shift).for_each(|(x, s)| *x += s);
            }
        }
    });
}

/// Returns `x + mix * by`, with one `mix` for each column.
pub fn blend(x: &[f32], by: &[f32], mix: &[f32]) -> Pooled {
    let width = mix.len();
    let mut y = Pooled::take(x.len());
    let step = whole_rows(width);
    let from = x.par_chunks(step).zip(by.par_chunks(step));
    y.par_chunks_mut(step).zip(from).for_each(|(y, (x, by))| {
        for (y, (x, by)) in
            y.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(by.chunks_exact(width)))
        {
            for (((y, x), by), mix) in y.iter_mut().zip(x).zip(by).zip(mix) {
                *y = x + by * mix;
            }
        }
    });
    y
}

/// Computes `x += (y - x) * t`.
pub fn interpolate(x: &mut [f32], y: &[f32], t: &[f32]) {
    let from = y.par_chunks(CHUNK).zip(t.par_chunks(CHUNK));
    x.par_chunks_mut(CHUNK).zip(from).for_each(|(x, (y, t))| {
        for ((x, y), t) in x.iter_mut().zip(y).zip(t) {
            *x += (y - *x) * t;
        }
    });
}

/// Copies some columns of `x`, `[n, width]`.
pub fn columns(x: &[f32], width: usize, columns: std::ops::Range<usize>) -> Pooled {
    let mut y = Pooled::take(x.len() / width * columns.len());
    let step = whole_rows(columns.len()) / columns.len();
    y.par_chunks_mut(step * columns.len()).zip(x.par_chunks(step * width)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(columns.len()).zip(x.chunks_exact(width)) {
            y.copy_from_slice(&x[columns.clone()]);
        }
    });
    y
}

/// Joins the columns of several arrays, each given with its width.
pub fn join(parts: &[(&[f32], usize)]) -> Pooled {
    let width: usize = parts.iter().map(|part| part.1).sum();
    let mut y = Pooled::take(parts.iter().map(|part| part.0.len()).sum());
    y.par_chunks_exact_mut(width).enumerate().for_each(|(row, y)| {
        let mut at = 0;
        for (x, width) in parts {
            y[at..at + width].copy_from_slice(&x[row * width..][..*width]);
            at += width;
        }
    });
    y
}

/// Returns the token shift `x[t - 1] - x[t]` within each row; the input before the first token of a
/// sequence is zero.
pub fn shift(x: &[f32], width: usize, rows: &[RowStart]) -> Pooled {
    let mut y = Pooled::take(x.len());
    let zero = vec![0f32; width];
    for row in rows {
        let mut before = if row.initial.is_empty() { &zero } else { row.initial };
        for t in row.tokens.clone() {
            let now = &x[t * width..][..width];
            y[t * width..][..width]
                .iter_mut()
                .zip(before.iter().zip(now))
                .for_each(|(y, (before, now))| *y = before - now);
            before = now;
        }
    }
    y
}

/// A causal convolution of each column by itself.
pub struct Convolution {
    /// `[kernel, width]`; the last row applies to the token itself.
    pub weight: Vec<f32>,
    /// `[width]`.
    pub bias: Vec<f32>,
}

impl Convolution {
    /// Returns the number of inputs that the convolution spans.
    pub fn kernel(&self) -> usize {
        self.weight.len() / self.bias.len()
    }

    /// Applies the convolution to `x`, `[tokens, width]`; `initial` of a row holds the `kernel - 1`
    /// inputs before it, oldest first.
    pub fn apply(&self, x: &[f32], rows: &[RowStart]) -> Pooled {
        let (width, kernel) = (self.bias.len(), self.kernel());
        let mut y = Pooled::take(x.len());
        let mut parts = Vec::with_capacity(rows.len());
        let mut rest = &mut y[..];
        for row in rows {
            let (part, tail) = rest.split_at_mut(row.tokens.len() * width);
            parts.push((row, part));
            rest = tail;
        }
        parts.into_par_iter().for_each(|(row, y)| {
            let own = &x[row.tokens.start * width..row.tokens.end * width];
            for (t, y) in y.chunks_exact_mut(width).enumerate() {
                y.copy_from_slice(&self.bias);
                for (k, weight) in self.weight.chunks_exact(width).enumerate() {
                    // Input `t + k - (kernel - 1)`: of the row, or of those before it.
                    let x = match (t + k).checked_sub(kernel - 1) {
                        Some(t) => &own[t * width..][..width],
                        None if row.initial.is_empty() => continue,
                        None => &row.initial[(t + k) * width..][..width],
                    };
                    multiply_add(y, weight, x);
                }
            }
        });
        y
    }
}

/// Computes `y += a * b`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn multiply_add(y: &mut [f32], a: &[f32], b: &[f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = a.mul_add(*b, *y);
    }
}

/// Divides each head of `x`, `[n, dim]`, by its Euclidean norm, or by 1e-12 if that is larger.
pub fn unit_heads(x: &mut [f32], dim: usize) {
    x.par_chunks_mut(whole_rows(dim)).for_each(|x| {
        for head in x.chunks_exact_mut(dim) {
            let scale = 1.0 / lanes_sum(head, |v| v * v).sqrt().max(1e-12);
            head.iter_mut().for_each(|v| *v *= scale);
        }
    });
}

/// Returns `v` times the sum of `r * k * weight` over its head of `dim`; `r`, `k` and `v` are `[n,
/// width]`, `weight` `[width]`.
pub fn bonus(r: &[f32], k: &[f32], v: &[f32], weight: &[f32], dim: usize) -> Pooled {
    let mut y = Pooled::take(v.len());
    let heads = weight.len() / dim;
    y.par_chunks_mut(dim).enumerate().for_each(|(i, y)| {
        let (at, weight) = (i * dim, &weight[i % heads * dim..][..dim]);
        let products = r[at..at + dim].iter().zip(&k[at..at + dim]).zip(weight);
        let sum: f32 = products.map(|((r, k), w)| r * k * w).sum();
        y.iter_mut().zip(&v[at..at + dim]).for_each(|(y, v)| *y = sum * v);
    });
    y
}
