//! Normalisation of vectors.

use multiversion::multiversion;
use rayon::prelude::*;

use super::reduce::lanes_sum;
use crate::model::arithmetic::pool::Pooled;
use crate::model::config::NormKind;
use crate::model::weights::Norm;

/// Normalises each row of `x`, `[n, width]`.
pub fn norm(x: &[f32], norm: &Norm) -> Pooled {
    let step = norm.weight.len() * 16;
    let mut y = Pooled::take(x.len());
    y.par_chunks_mut(step).zip(x.par_chunks(step)).for_each(|(y, x)| norm_rows(y, x, norm));
    y
}

/// Normalises each row of `x` into `y`, both `[n, width]`, on this thread.
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

/// Layer normalisation (Ba et al. 2016), the variance being the mean square of the differences from
/// the mean.
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
