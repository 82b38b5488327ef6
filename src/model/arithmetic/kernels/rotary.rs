//! Rotary position embedding (Su et al. 2021).

use multiversion::multiversion;

use crate::model::config::Rotary;

/// A table of cosines and sines by position.
pub struct Rope {
    /// Half the number of rotated dimensions of a head.
    pub half: usize,
    /// `[positions, half]`.
    pub cos: Vec<f32>,
    /// `[positions, half]`.
    pub sin: Vec<f32>,
}

impl Rope {
    /// Tabulates a rotary embedding for the first `positions` positions.
    pub fn new(rotary: &Rotary, positions: usize) -> Self {
        let (frequencies, factor) = (rotary.frequencies(), rotary.attention_factor() as f32);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|a| (a.cos() * factor, a.sin() * factor)).unzip();
        Self { half: frequencies.len(), cos, sin }
    }

    /// Returns the cosines and the sines of a position, `[half]` each.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        (
            &self.cos[position * self.half..][..self.half],
            &self.sin[position * self.half..][..self.half],
        )
    }
}

/// Rotates the heads of one token, `[heads * head_dim]`, in place, by the cosines and sines of its
/// position, `[half]` each: of every head the first `2 * half` dimensions.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub fn rotate_heads(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    heads.chunks_exact_mut(head_dim).for_each(|head| rotate(&mut head[..2 * cos.len()], cos, sin));
}

/// Rotates the dimensions `[2 * half]` of one head in place, by cosines and sines `[half]`.
/// Dimension `i` rotates with `i + half`, which is Hugging Face's convention.
#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        let (x, y) = (*a, *b);
        *a = x * c - y * s;
        *b = y * c + x * s;
    }
}
