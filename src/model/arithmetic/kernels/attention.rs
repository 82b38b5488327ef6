//! Causal attention over packed rows and the cached keys and values before them.

use multiversion::multiversion;
use rayon::prelude::*;

use super::functions::exp;
use super::reduce::{lanes_sum, largest};
use crate::model::arithmetic::linear::PackedMatrix;
use crate::model::arithmetic::pool::Pooled;
use crate::model::hooks::Knockout;

/// One row of the attention: its tokens, the cached keys and values before them, its knockouts.
pub struct AttentionRow<'a> {
    /// Packed token indices.
    pub tokens: std::ops::Range<usize>,
    /// Stretches of keys, `[len, kv_heads * head_dim]`, and values, `[len, kv_heads * value_dim]`,
    /// oldest first.
    pub prefix: Vec<(&'a [f32], &'a [f32])>,
    /// Keys that some of the row's queries do not attend to.
    pub knockouts: Vec<&'a Knockout>,
}

impl AttentionRow<'_> {
    /// Returns the positions in the sequence of the keys that a head's query at a packed token does
    /// not attend to.
    pub fn knocked_out(&self, token: usize, head: usize) -> impl Iterator<Item = usize> {
        let cut = move |k: &&&Knockout| k.tokens.contains(&token) && k.heads.contains(&head);
        self.knockouts.iter().filter(cut).map(|knockout| knockout.key)
    }
}

/// The shape and the constants of an attention block.
#[derive(Clone, Copy)]
pub struct AttentionShape {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads, which divides that of the query heads.
    pub kv_heads: usize,
    /// Width of a query or key head.
    pub head_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Positions that a query attends to, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Factor of the dot product of query and key.
    pub scale: f32,
}

/// Query rows (tokens times heads of a group) whose scores exist at one time. Keys beyond the last
/// of them are not multiplied.
const QUERIES: usize = 65;

/// Causal attention (Vaswani et al. 2017) of every row over its prefix and itself. `q` is `[tokens,
/// heads * head_dim]`, `k` `[tokens, kv_heads * head_dim]`, `v` `[tokens, kv_heads * value_dim]`;
/// returns `z`, `[tokens, heads * value_dim]`.
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

/// Computes the query heads of one key/value head over one row: `[len, group * value_dim]`.
///
/// Scores and outputs are products with the packed matrix of the linear layers, whose results do
/// not depend on the number of rows. A masked position adds `0 * v` to a sum, which leaves it
/// unchanged. If `v` holds NaN or infinity, each query is multiplied separately up to its causal
/// limit, because `0 * NaN` would leak.
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
        // Query `i` is that of token `i / group` and head `i % group`.
        let (first, n) = (block * QUERIES, out.len() / v_dim);
        gathered.clear();
        for i in first..first + n {
            let at = (row.tokens.start + i / group) * width + (kv_head * group + i % group) * dim;
            gathered.extend_from_slice(&q[at..at + dim]);
        }
        let scores = &mut scores[..n * total];
        let end = |i: usize| before + (first + i) / group + 1;
        keys.matmul_serial(&gathered, n, scores, end(n - 1), dim);
        if !row.knockouts.is_empty() {
            for (i, scores) in (first..).zip(scores.chunks_exact_mut(total)) {
                let (token, head) = (row.tokens.start + i / group, kv_head * group + i % group);
                row.knocked_out(token, head).for_each(|key| scores[key] = f32::NEG_INFINITY);
            }
        }
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

    /// The attention by its definition, in double precision.
    fn naive(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        len: usize,
        knockouts: &[&Knockout],
        shape: AttentionShape,
    ) -> Vec<f32> {
        let (d, kw, w) =
            (shape.head_dim, shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim);
        let mut z = vec![0f32; len * w];
        for i in 0..len {
            for h in 0..shape.heads {
                let kv = h / (shape.heads / shape.kv_heads);
                let lo = shape.window.map_or(0, |w| (i + 1).saturating_sub(w));
                let cut = |j: usize| {
                    let of = |k: &&Knockout| k.tokens.contains(&i) && k.heads.contains(&h);
                    knockouts.iter().copied().filter(of).any(|k| k.key == j)
                };
                let dot = |j: usize| {
                    (0..d)
                        .map(|x| {
                            f64::from(q[i * w + h * d + x]) * f64::from(k[j * kw + kv * d + x])
                        })
                        .sum::<f64>()
                };
                let score = |j| if cut(j) { f64::NEG_INFINITY } else { dot(j) / (d as f64).sqrt() };
                let e: Vec<f64> = (lo..=i).map(|j| score(j).exp()).collect();
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
            let run = |v: &[f32], knockouts: Vec<&Knockout>| {
                let row = AttentionRow { tokens: 0..len, prefix: vec![], knockouts };
                attention(&q, &k, v, &[row], shape)
            };
            let cut = len / 3;
            let edges = [
                Knockout { tokens: len / 2..len, heads: 0..1, key: 0 },
                Knockout { tokens: len - 1..len, heads: 0..heads, key: len.saturating_sub(2) },
            ];
            let possible = edges.iter().filter(|edge| edge.key < edge.tokens.start);
            for knockouts in [vec![], possible.collect()] {
                let whole = run(&v, knockouts.clone());
                for (a, b) in whole.iter().zip(naive(&q, &k, &v, len, &knockouts, shape)) {
                    assert!((a - b).abs() < 1e-5, "{a} against {b}");
                }
                let moved = |edge: &&Knockout| Knockout {
                    tokens: edge.tokens.start - cut..edge.tokens.end - cut,
                    ..(*edge).clone()
                };
                let moved: Vec<Knockout> = knockouts.iter().map(moved).collect();
                let prefix = vec![(&k[..cut * kw], &v[..cut * kw])];
                let knockouts = moved.iter().collect();
                let rows = [AttentionRow { tokens: 0..len - cut, prefix, knockouts }];
                let cached = attention(&q[cut * w..], &k[cut * kw..], &v[cut * kw..], &rows, shape);
                assert_eq!(
                    cached[..],
                    whole[cut * w..],
                    "a cached prefix changes nothing, not even a bit"
                );
            }

            // A NaN does not leak to queries before it, and reaches those after it.
            let mut broken = v.clone();
            broken[cut * kw] = f32::NAN;
            let (whole, seen) = (run(&v, vec![]), run(&broken, vec![]));
            assert_eq!(seen[..cut * w], whole[..cut * w]);
            assert!(seen[cut * w..][..w].iter().any(|x| x.is_nan()), "it is seen where it is");
        }
    }
}
