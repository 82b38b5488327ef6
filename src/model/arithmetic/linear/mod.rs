//! Dense linear layers with constant weights: `y[m, out] = x[m, in] * W[out, in]^T`.
//!
//! [`PackedMatrix`] stores a weight once, rearranged for the kernels: the output columns are cut
//! into panels of [`NR`] columns, and a panel holds its `in * NR` values with the columns of one
//! input feature next to each other. A kernel then computes a tile of a few rows of `x` by a few
//! vectors of one panel in registers, reading the panel as one forward stream and the rows of `x`
//! in place: nothing but the weight is ever copied.
//!
//! Every output is the same chain of operations, `acc = x[k] * w[k] + acc` for ascending `k`, begun
//! anew and added to the sum so far every [`STRETCH`](tile::STRETCH) inputs, whichever tile, block
//! or thread computes it. So the result for a row does not depend, to the bit, on the other rows of
//! the batch or on the number of threads. It does depend on whether the CPU has fused multiply-add
//! (`vector.rs`).

use std::ops::Range;

use rayon::prelude::*;

use tile::{MAX_ROWS, Tile};
use transposed::{DOT_INPUTS, DOT_ROWS, Dot};
use vector::Isa;

#[cfg(test)]
mod tests;
mod tile;
mod transposed;
mod vector;

/// Number of columns of a panel.
const NR: usize = 32;
/// Largest number of inputs in one pass over a tile. The rows of a tile are read forward, so they
/// may exceed the first-level cache; the part of a panel must leave room for others in the second.
const KC: usize = 8 * tile::STRETCH;
/// Bytes of weights in one pass (panels times inputs): these stay in the second-level cache, which
/// has at least 512 kB in current CPUs.
const PASS_BYTES: usize = 320 << 10;
/// Bytes of `x` in one block: these are read again for each of its panels, also from the
/// second-level cache.
const ROW_BYTES: usize = 256 << 10;
/// Divisor of the number of outputs that [`PackedMatrix::matmul_gated`] requires.
pub const GATED_MULTIPLE: usize = 2 * NR;
/// Number of multiply-adds below which a product is computed by one thread.
const SERIAL_WORK: usize = 1 << 16;

/// A constant weight matrix `[out, in]`, packed for multiplication from the left.
#[derive(Clone)]
pub struct PackedMatrix {
    /// Number of outputs.
    out: usize,
    /// Number of inputs.
    in_: usize,
    /// The instruction set of its products.
    isa: Isa,
    /// The panels one after the other, `[out / NR, in, NR]`, filled up with zeros.
    panels: Vec<f32>,
    /// Index in `panels` of the first value: the start of a cache line.
    start: usize,
}

impl PackedMatrix {
    /// Packs a row-major `[out, in]` weight.
    ///
    /// # Panics
    /// If `weight` does not hold `out * in_` values.
    pub fn new(weight: &[f32], out: usize, in_: usize) -> Self {
        Self::with_isa(weight, out, in_, Isa::detect())
    }

    /// Packs like [`new`](Self::new), on this thread alone.
    ///
    /// # Panics
    /// If `weight` does not hold `out * in_` values.
    pub fn new_serial(weight: &[f32], out: usize, in_: usize) -> Self {
        assert_eq!(weight.len(), out * in_, "weight is not [{out}, {in_}]");
        let mut matrix = Self::zeros(out, in_, Isa::detect());
        if !weight.is_empty() {
            let rows = weight.chunks(NR * in_);
            matrix
                .panels_mut()
                .chunks_mut(NR * in_)
                .zip(rows)
                .for_each(|(panel, rows)| pack(panel, rows, in_));
        }
        matrix
    }

    fn with_isa(weight: &[f32], out: usize, in_: usize, isa: Isa) -> Self {
        assert_eq!(weight.len(), out * in_, "weight is not [{out}, {in_}]");
        let mut matrix = Self::zeros(out, in_, isa);
        if !weight.is_empty() {
            let rows = weight.par_chunks(NR * in_);
            matrix
                .panels_mut()
                .par_chunks_mut(NR * in_)
                .zip(rows)
                .for_each(|(panel, rows)| pack(panel, rows, in_));
        }
        matrix
    }

    /// Packs the transpose of a row-major `[in, out]` array, on this thread alone.
    ///
    /// # Panics
    /// If `values` does not hold `in_ * out` values.
    pub fn from_columns(values: &[f32], in_: usize, out: usize) -> Self {
        assert_eq!(values.len(), in_ * out, "values are not [{in_}, {out}]");
        let mut matrix = Self::zeros(out, in_, Isa::detect());
        if !values.is_empty() {
            for (p, panel) in matrix.panels_mut().chunks_exact_mut(NR * in_).enumerate() {
                let used = NR.min(out - p * NR);
                for (line, row) in panel.chunks_exact_mut(NR).zip(values.chunks_exact(out)) {
                    line[..used].copy_from_slice(&row[p * NR..][..used]);
                }
            }
        }
        matrix
    }

    /// Returns panels of zeros. Their pages are not touched yet, so that each is allocated by the
    /// thread that fills it.
    fn zeros(out: usize, in_: usize, isa: Isa) -> Self {
        let panels = vec![0f32; out.div_ceil(NR) * NR * in_ + 15];
        let start = panels.as_ptr().align_offset(64).min(15);
        Self { out, in_, isa, panels, start }
    }

    fn panels_mut(&mut self) -> &mut [f32] {
        let len = self.out.div_ceil(NR) * NR * self.in_;
        &mut self.panels[self.start..][..len]
    }

    /// Computes a [`matmul`](Self::matmul) on this thread alone, for many small products in
    /// parallel: at least the first `outputs` columns of `y`, over the first `inputs` inputs. Other
    /// columns of `y` may or may not be written.
    ///
    /// # Panics
    /// If a size does not match.
    pub fn matmul_serial(&self, x: &[f32], m: usize, y: &mut [f32], outputs: usize, inputs: usize) {
        assert!(
            outputs <= self.out && inputs <= self.in_,
            "[{outputs}, {inputs}] of [{}, {}]",
            self.out,
            self.in_
        );
        let Some(y) = self.output(x, m, y, self.out) else { return };
        let (panels, tiles) = (outputs.div_ceil(NR), m.div_ceil(self.isa.tile_rows()));
        // SAFETY: one thread, rows and panels that exist, and `x` and `y` are as long as `output`
        // asserts.
        unsafe { self.block(&Product { x, m, tiles, y }, 0..tiles, 0..panels, inputs) }
    }

    /// Checks the sizes of a product of `x[m, in]` into `y[m, width]`, which the kernels do not.
    /// Returns the destination, or `None` if there is nothing to compute.
    fn output(&self, x: &[f32], m: usize, y: &mut [f32], width: usize) -> Option<Out> {
        assert_eq!(x.len(), m * self.in_, "x is not [{m}, {}]", self.in_);
        assert_eq!(y.len(), m * width, "y is not [{m}, {width}]");
        (!y.is_empty()).then_some(Out { ptr: y.as_mut_ptr(), stride: width })
    }

    /// Returns the number of outputs (rows of the weight).
    pub fn out(&self) -> usize {
        self.out
    }

    /// Returns the number of inputs (columns of the weight).
    pub fn in_(&self) -> usize {
        self.in_
    }

    /// Returns the weight from input `in_` to output `out`.
    ///
    /// # Panics
    /// If there is no such weight.
    pub fn get(&self, out: usize, in_: usize) -> f32 {
        assert!(out < self.out && in_ < self.in_, "no weight at [{out}, {in_}]");
        self.panel(out / NR)[in_ * NR + out % NR]
    }

    /// Copies row `out` of the weight to `dst`, `[in]`.
    ///
    /// # Panics
    /// If there is no such row, or `dst` has another length.
    pub fn row(&self, out: usize, dst: &mut [f32]) {
        assert!(out < self.out, "no row {out}");
        assert_eq!(dst.len(), self.in_);
        for (d, line) in dst.iter_mut().zip(self.panel(out / NR).chunks_exact(NR)) {
            *d = line[out % NR];
        }
    }

    /// Computes `y = x * W^T` for `x[m, in]` and `y[m, out]`.
    ///
    /// # Panics
    /// If a size does not match.
    pub fn matmul(&self, x: &[f32], m: usize, y: &mut [f32]) {
        let Some(y) = self.output(x, m, y, self.out) else { return };
        self.in_blocks(m, self.out.div_ceil(NR), NR, |tiles, rows, panels| {
            // SAFETY: every row and panel is in one block only, so that no two threads write the
            // same place, and `x` and `y` are as long as `output` asserts.
            unsafe { self.block(&Product { x, m, tiles, y }, rows, panels, self.in_) }
        });
    }

    /// Computes `y[m, out / 2] = gate(x * A^T, x * B^T)`, where `A` and `B` are the upper and the
    /// lower half of the weight: the product of a gated MLP, whose halves are combined while they
    /// are in the first-level cache. `gate` gets slices of equal length of `y`, of the first and of
    /// the second product. The sums equal those of [`matmul`](Self::matmul) to the bit.
    ///
    /// # Panics
    /// If `out` is not a multiple of 64.
    pub fn matmul_gated(
        &self,
        x: &[f32],
        m: usize,
        y: &mut [f32],
        gate: impl Fn(&mut [f32], &[f32], &[f32]) + Sync,
    ) {
        assert_eq!(self.out % GATED_MULTIPLE, 0, "halves are not whole panels");
        let half = self.out / 2;
        let Some(y) = self.output(x, m, y, half) else { return };
        self.in_blocks(m, half / NR, 2 * NR, |tiles, rows, panels| {
            let mut sums = [[0f32; MAX_ROWS * NR]; 2];
            for rows in rows.map(|tile| share(m, tiles, tile)) {
                for panel in panels.clone() {
                    for (sums, panel) in sums.iter_mut().zip([panel, panel + half / NR]) {
                        // SAFETY: `sums` has room for the rows of any tile; the panels exist.
                        unsafe {
                            let part = Part { rows: rows.clone(), panel, inputs: 0..self.in_ };
                            self.tile(x, part, Out { ptr: sums.as_mut_ptr(), stride: NR }, false)
                        }
                    }
                    for (i, row) in rows.clone().enumerate() {
                        // SAFETY: every row and panel is in one block only; `y` is `[m, half]`.
                        let y =
                            unsafe { std::slice::from_raw_parts_mut(y.at(row, panel * NR), NR) };
                        gate(y, &sums[0][i * NR..][..NR], &sums[1][i * NR..][..NR]);
                    }
                }
            }
        });
    }

    /// Calls `block(tiles, rows, panels)` for disjoint blocks, in parallel. A block has few panels,
    /// so that they stay in cache for all its tiles, and few tiles, so that there are enough blocks
    /// for all threads. `rows` are tiles out of `tiles`; `width` is the number of columns of the
    /// weight for each panel.
    fn in_blocks(
        &self,
        m: usize,
        panels: usize,
        width: usize,
        block: impl Fn(usize, Range<usize>, Range<usize>) + Sync,
    ) {
        let tiles = m.div_ceil(self.isa.tile_rows());
        let depth = self.in_.clamp(1, KC) * size_of::<f32>();
        let (across, down) = if m * self.out * self.in_ < SERIAL_WORK {
            (1, 1)
        } else {
            let across = panels.div_ceil((PASS_BYTES / (width * depth)).max(1));
            let down = tiles.div_ceil((ROW_BYTES / (self.isa.tile_rows() * depth)).max(1));
            // Few rows: the panels alone must keep the threads busy.
            let wanted = (8 * rayon::current_num_threads()).div_ceil(down);
            (across.max(panels.min(wanted)), down)
        };
        // Row by row of blocks: a thread that goes on to its next block finds the rows in its
        // cache.
        let part = |i: usize| {
            block(tiles, share(tiles, down, i / across), share(panels, across, i % across))
        };
        if across * down == 1 {
            part(0);
        } else {
            (0..across * down).into_par_iter().with_max_len(1).for_each(part);
        }
    }

    /// Computes the gradient of [`matmul`](Self::matmul) to its input: `g[m, in] = d[m, out] * W`.
    ///
    /// # Panics
    /// If a size does not match.
    pub fn matmul_transposed(&self, d: &[f32], m: usize, g: &mut [f32]) {
        assert_eq!(d.len(), m * self.out, "d is not [{m}, {}]", self.out);
        assert_eq!(g.len(), m * self.in_, "g is not [{m}, {}]", self.in_);
        if g.is_empty() {
            return;
        }
        if self.out == 0 {
            return g.fill(0.0);
        }
        // Rows of `d` filled up with zeros to whole panels.
        let wide = self.out.next_multiple_of(NR);
        let padded: Vec<f32>;
        let d = if wide == self.out {
            d
        } else {
            let mut rows = vec![0.0; m * wide];
            for (to, from) in rows.chunks_exact_mut(wide).zip(d.chunks_exact(self.out)) {
                to[..self.out].copy_from_slice(from);
            }
            padded = rows;
            &padded
        };
        let g = Out { ptr: g.as_mut_ptr(), stride: self.in_ };
        let groups = self.in_.div_ceil(DOT_INPUTS);
        let across = groups.min(4 * rayon::current_num_threads());
        (0..across).into_par_iter().with_max_len(1).for_each(|i| {
            for group in share(groups, across, i) {
                let inputs = group * DOT_INPUTS..self.in_.min((group + 1) * DOT_INPUTS);
                // SAFETY: no two threads have the same inputs; `d` has `m` rows of `wide` values
                // and `g` is as long as asserted above.
                unsafe { self.dot_block(d, m, wide, inputs, &g) };
            }
        });
    }

    /// Returns panel `i`: the weights of outputs `i * NR ..`, `[in, NR]`.
    fn panel(&self, i: usize) -> &[f32] {
        let len = NR * self.in_;
        &self.panels[self.start..][i * len..][..len]
    }

    /// Computes one block of `y`: the given tiles of rows times the given panels, over the first
    /// `depth` inputs.
    ///
    /// # Safety
    /// `x` is `[m, in]` and `y` points to `[m, out]` values, of which no one else uses this block.
    unsafe fn block(
        &self,
        product: &Product,
        rows: Range<usize>,
        panels: Range<usize>,
        depth: usize,
    ) {
        let Product { x, m, tiles, y } = *product;
        let passes = depth.div_ceil(KC).max(1);
        for pass in 0..passes {
            let inputs = pass * KC..depth.min((pass + 1) * KC);
            for tile in rows.clone() {
                let rows = share(m, tiles, tile);
                for panel in panels.clone() {
                    // SAFETY: the caller's promise, and that of `share`: all ranges are inside the
                    // matrices.
                    unsafe {
                        let y = Out { ptr: y.at(rows.start, panel * NR), stride: y.stride };
                        let part = Part { rows: rows.clone(), panel, inputs: inputs.clone() };
                        self.tile(x, part, y, pass > 0);
                    }
                }
            }
        }
    }

    /// Computes one tile, or adds to it, where `y` points.
    ///
    /// # Safety
    /// The ranges are inside `x` `[m, in]` and the panels, there are at most [`Isa::tile_rows`]
    /// rows, and `y` has room for them, which no one else uses.
    #[inline]
    unsafe fn tile(&self, x: &[f32], part: Part, y: Out, add: bool) {
        let Part { rows, panel, inputs } = part;
        // SAFETY: the caller's promise; the instruction set was found on this CPU.
        unsafe {
            let mut tile = Tile {
                rows: rows.len(),
                x: x.as_ptr().add(rows.start * self.in_ + inputs.start),
                x_stride: self.in_,
                w: self.panel(panel).as_ptr().add(inputs.start * NR),
                depth: inputs.len(),
                y: y.ptr,
                y_stride: y.stride,
                add,
            };
            match NR.min(self.out - panel * NR) {
                NR => self.isa.run(&tile),
                width => tile.run_narrow(self.isa, width),
            }
        }
    }

    /// Computes some columns of `g`, at most [`DOT_INPUTS`].
    ///
    /// # Safety
    /// `d` is `[m, wide]` and `g` points to `[m, in]` values, of which no one else uses these.
    unsafe fn dot_block(&self, d: &[f32], m: usize, wide: usize, inputs: Range<usize>, g: &Out) {
        for row in (0..m).step_by(DOT_ROWS) {
            let rows = DOT_ROWS.min(m - row);
            // SAFETY: as the caller promised; panels hold `in * NR` values each.
            unsafe {
                let dot = Dot {
                    rows,
                    inputs: inputs.len(),
                    d: d.as_ptr().add(row * wide),
                    d_stride: wide,
                    w: self.panels.as_ptr().add(self.start + inputs.start * NR),
                    w_stride: NR * self.in_,
                    panels: wide / NR,
                    g: g.at(row, inputs.start),
                    g_stride: g.stride,
                };
                self.isa.run(&dot);
            }
        }
    }
}

/// Rearranges up to [`NR`] rows of the weight into a panel.
fn pack(panel: &mut [f32], rows: &[f32], in_: usize) {
    /// Inputs at a time: a cache line of each row.
    const STEP: usize = 16;
    if rows.len() < NR * in_ {
        for (r, row) in rows.chunks_exact(in_).enumerate() {
            for (k, &w) in row.iter().enumerate() {
                panel[k * NR + r] = w;
            }
        }
        return;
    }
    for (i, lines) in panel.chunks_mut(STEP * NR).enumerate() {
        let steps = lines.len() / NR;
        if steps == STEP {
            let from: [&[f32; STEP]; NR] =
                std::array::from_fn(|r| rows[r * in_ + i * STEP..].first_chunk().expect("a row"));
            for (k, line) in lines.chunks_exact_mut(NR).enumerate() {
                for (to, row) in line.iter_mut().zip(&from) {
                    *to = row[k];
                }
            }
        } else {
            for (k, line) in lines.chunks_exact_mut(NR).enumerate() {
                for (r, to) in line.iter_mut().enumerate() {
                    *to = rows[r * in_ + i * STEP + k];
                }
            }
        }
    }
}

/// Returns part `i` of `0..n`, cut into `parts` parts whose lengths differ by at most one.
fn share(n: usize, parts: usize, i: usize) -> Range<usize> {
    n * i / parts..n * (i + 1) / parts
}

/// A product in progress: `x[m, in]`, whose rows are cut into `tiles` tiles, and its destination.
struct Product<'a> {
    x: &'a [f32],
    m: usize,
    tiles: usize,
    y: Out,
}

/// One tile of a product: rows of `x` by one panel, over some of the inputs.
struct Part {
    rows: Range<usize>,
    panel: usize,
    inputs: Range<usize>,
}

/// The destination of a product, of which each thread fills its own part.
#[derive(Clone, Copy)]
struct Out {
    ptr: *mut f32,
    stride: usize,
}

impl Out {
    /// Returns the address of a value.
    ///
    /// # Safety
    /// There is such a row and column.
    unsafe fn at(&self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.ptr.add(row * self.stride + column) }
    }
}

// SAFETY: only the address is shared; the blocks written through it are disjoint.
unsafe impl Sync for Out {}
