//! Dense linear layers with constant weights: `y[m, out] = x[m, in] * W[out, in]^T`.
//!
//! [`PackedMatrix`] stores a weight once, rearranged for the kernels: the output columns are cut
//! into panels of [`NR`] columns, and a panel holds its `in * NR` values with the columns of one
//! input feature next to each other. A kernel then computes a tile of a few rows of `x` by a few
//! vectors of one panel in registers, reading the panel as one forward stream and the rows of `x`
//! where they lie (nothing but the weight is ever copied).
//!
//! Every output is the same chain of operations, `acc = x[k] * w[k] + acc` for `k` ascending,
//! whichever tile, block or thread computes it. So a row's result does not depend, to the bit, on
//! the other rows of the batch, on their number, or on the number of threads. It does depend on
//! whether the CPU has fused multiply-add (`Isa`).

use std::ops::Range;

use rayon::prelude::*;

/// Columns of a panel.
const NR: usize = 32;
/// Input features of one pass over a tile: a tile's rows of `x` stay in the first-level cache.
const KC: usize = 640;
/// Bytes of weights of one pass (panels times features): these stay in the second-level cache.
const PASS_BYTES: usize = 768 << 10;
/// Multiply-adds below which a product is not worth sharing between threads.
const SERIAL_WORK: usize = 1 << 16;

/// Instruction sets with a kernel of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Fma,
    Portable,
}

impl Isa {
    /// The best one that this CPU has.
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                return Self::Fma;
            }
        }
        Self::Portable
    }

    /// The most rows in a tile: as many as the registers hold sums for.
    fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Fma => Fma::ROWS,
            Self::Portable => Portable::ROWS,
        }
    }
}

/// A constant weight matrix `[out, in]`, packed for multiplication from the left.
#[derive(Clone)]
pub struct PackedMatrix {
    out: usize,
    in_: usize,
    isa: Isa,
    panels: Vec<f32>,
    /// Where in `panels` the first panel begins: at the start of a cache line.
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

    /// [`new`](Self::new) on this thread alone.
    pub fn new_serial(weight: &[f32], out: usize, in_: usize) -> Self {
        assert_eq!(weight.len(), out * in_, "weight is not [{out}, {in_}]");
        let mut matrix = Self::zeros(out, in_, Isa::detect());
        if !weight.is_empty() {
            let rows = weight.chunks(NR * in_);
            matrix.panels_mut().chunks_mut(NR * in_).zip(rows).for_each(|(panel, rows)| pack(panel, rows, in_));
        }
        matrix
    }

    fn with_isa(weight: &[f32], out: usize, in_: usize, isa: Isa) -> Self {
        assert_eq!(weight.len(), out * in_, "weight is not [{out}, {in_}]");
        let mut matrix = Self::zeros(out, in_, isa);
        if !weight.is_empty() {
            let rows = weight.par_chunks(NR * in_);
            matrix.panels_mut().par_chunks_mut(NR * in_).zip(rows).for_each(|(panel, rows)| pack(panel, rows, in_));
        }
        matrix
    }

    /// Packs the transpose of a row-major `[in, out]` array: a matrix whose columns lie in memory.
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

    /// Panels of zeros, not touched yet: each page belongs to the thread that fills it.
    fn zeros(out: usize, in_: usize, isa: Isa) -> Self {
        let panels = vec![0f32; out.div_ceil(NR) * NR * in_ + 15];
        let start = panels.as_ptr().align_offset(64).min(15);
        Self { out, in_, isa, panels, start }
    }

    fn panels_mut(&mut self) -> &mut [f32] {
        let len = self.out.div_ceil(NR) * NR * self.in_;
        &mut self.panels[self.start..][..len]
    }

    /// [`matmul`](Self::matmul) on this thread alone: for many small products side by side.
    pub fn matmul_serial(&self, x: &[f32], m: usize, y: &mut [f32]) {
        assert_eq!(x.len(), m * self.in_, "x is not [{m}, {}]", self.in_);
        assert_eq!(y.len(), m * self.out, "y is not [{m}, {}]", self.out);
        if y.is_empty() {
            return;
        }
        let out = Out { ptr: y.as_mut_ptr(), stride: self.out };
        let (panels, tiles) = (self.out.div_ceil(NR), m.div_ceil(self.isa.tile_rows()));
        // SAFETY: one thread, all rows and panels, and `x` and `y` are as long as asserted above.
        unsafe { self.block(x, m, tiles, 0..tiles, 0..panels, &out, false) }
    }

    /// Number of outputs (rows of the weight).
    pub fn out(&self) -> usize {
        self.out
    }

    /// Number of inputs (columns of the weight).
    pub fn in_(&self) -> usize {
        self.in_
    }

    /// The weight from input `in_` to output `out`.
    pub fn get(&self, out: usize, in_: usize) -> f32 {
        assert!(out < self.out && in_ < self.in_, "no weight at [{out}, {in_}]");
        self.panel(out / NR)[in_ * NR + out % NR]
    }

    /// Copies row `out` of the weight, all the weights of that output, to `dst`.
    pub fn row(&self, out: usize, dst: &mut [f32]) {
        assert!(out < self.out, "no row {out}");
        assert_eq!(dst.len(), self.in_);
        for (d, line) in dst.iter_mut().zip(self.panel(out / NR).chunks_exact(NR)) {
            *d = line[out % NR];
        }
    }

    /// `y = x * W^T`, or `y += x * W^T` when `accumulate`, for `x[m, in]` and `y[m, out]`.
    pub fn matmul(&self, x: &[f32], m: usize, y: &mut [f32], accumulate: bool) {
        assert_eq!(x.len(), m * self.in_, "x is not [{m}, {}]", self.in_);
        assert_eq!(y.len(), m * self.out, "y is not [{m}, {}]", self.out);
        if y.is_empty() {
            return;
        }
        let y = Out { ptr: y.as_mut_ptr(), stride: self.out };
        let panels = self.out.div_ceil(NR);
        let tiles = m.div_ceil(self.isa.tile_rows());
        // Blocks that no two threads share: few panels, so that they stay in cache while the
        // tiles go by, and few tiles, so that there are blocks enough to keep the threads busy.
        let pass = NR * self.in_.clamp(1, KC) * size_of::<f32>();
        let across = panels.div_ceil((PASS_BYTES / pass).max(1));
        let (across, down) = if m * self.out * self.in_ < SERIAL_WORK {
            (1, 1)
        } else {
            let wanted = 8 * rayon::current_num_threads();
            let across = across.max(panels.min(if tiles < wanted { wanted } else { 1 }));
            (across, tiles.min(wanted.div_ceil(across)))
        };
        let block = |i: usize| {
            let columns = share(panels, across, i / down);
            let rows = share(tiles, down, i % down);
            // SAFETY: every row and panel is in one block only, so that no two threads write the
            // same place, and `x` and `y` are as long as asserted above.
            unsafe { self.block(x, m, tiles, rows, columns, &y, accumulate) }
        };
        if across * down == 1 {
            block(0);
        } else {
            (0..across * down).into_par_iter().with_max_len(1).for_each(block);
        }
    }

    /// The gradient of [`matmul`](Self::matmul) to its input: `g[m, in] = d[m, out] * W`.
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

    /// Panel `i`: the weights of outputs `i * NR ..`, input by input.
    fn panel(&self, i: usize) -> &[f32] {
        let len = NR * self.in_;
        &self.panels[self.start..][i * len..][..len]
    }

    /// Computes one block of `y`: the given tiles of rows, out of `tiles`, times the given panels.
    ///
    /// # Safety
    /// `x` is `[m, in]` and `y` points to `[m, out]` values, of which no one else uses this block.
    #[allow(clippy::too_many_arguments)]
    unsafe fn block(
        &self,
        x: &[f32],
        m: usize,
        tiles: usize,
        rows: Range<usize>,
        columns: Range<usize>,
        y: &Out,
        accumulate: bool,
    ) {
        let passes = self.in_.div_ceil(KC).max(1);
        for pass in 0..passes {
            let inputs = share(self.in_, passes, pass);
            for tile in rows.clone() {
                let rows = share(m, tiles, tile);
                for panel in columns.clone() {
                    let width = NR.min(self.out - panel * NR);
                    let add = accumulate || pass > 0;
                    // SAFETY: the caller's promise, and that of `share`: all ranges are inside
                    // the matrices. The instruction set was found on this CPU.
                    unsafe {
                        let mut tile = Tile {
                            rows: rows.len(),
                            x: x.as_ptr().add(rows.start * self.in_ + inputs.start),
                            x_stride: self.in_,
                            w: self.panel(panel).as_ptr().add(inputs.start * NR),
                            depth: inputs.len(),
                            y: y.ptr.add(rows.start * y.stride + panel * NR),
                            y_stride: y.stride,
                            add,
                        };
                        if width == NR {
                            tile.run(self.isa);
                        } else {
                            tile.run_narrow(self.isa, width);
                        }
                    }
                }
            }
        }
    }

    /// Computes the given columns of `g`, at most [`DOT_INPUTS`].
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
                    g: g.ptr.add(row * g.stride + inputs.start),
                    g_stride: g.stride,
                };
                dot.run(self.isa);
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
            let from: [&[f32; STEP]; NR] = std::array::from_fn(|r| rows[r * in_ + i * STEP..].first_chunk().expect("a row"));
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

/// Part `i` of `0..n` cut into `parts` parts as even as can be.
fn share(n: usize, parts: usize, i: usize) -> Range<usize> {
    n * i / parts..n * (i + 1) / parts
}

/// A result that several threads fill, each its own part.
struct Out {
    ptr: *mut f32,
    stride: usize,
}

// SAFETY: only the address is shared; the blocks written through it are disjoint.
unsafe impl Sync for Out {}

/// A tile to compute: `rows` rows of `x` by one panel, over `depth` inputs.
struct Tile {
    rows: usize,
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    depth: usize,
    y: *mut f32,
    y_stride: usize,
    add: bool,
}

impl Tile {
    /// Computes the tile.
    ///
    /// # Safety
    /// The pointers are good for the sizes given, `rows` is at most [`Isa::tile_rows`], and this
    /// CPU has `isa`.
    unsafe fn run(&self, isa: Isa) {
        // SAFETY: the same conditions.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => self.run_avx512(),
                #[cfg(target_arch = "x86_64")]
                Isa::Fma => self.run_fma(),
                Isa::Portable => self.run_portable(),
            }
        }
    }

    /// Computes the first `width` columns of a tile, by way of a buffer as wide as the panel.
    ///
    /// # Safety
    /// As for [`run`](Self::run), `y` having room for `width` columns only.
    unsafe fn run_narrow(&mut self, isa: Isa, width: usize) {
        let mut buffer = [0f32; MAX_ROWS * NR];
        let (y, stride) = (self.y, self.y_stride);
        // SAFETY: `y` has `width` columns in each row, and the buffer `NR` in `MAX_ROWS` rows.
        unsafe {
            let rows = (0..self.rows).map(|r| (y.add(r * stride), r * NR));
            if self.add {
                for (y, at) in rows.clone() {
                    y.copy_to_nonoverlapping(buffer[at..at + width].as_mut_ptr(), width);
                }
            }
            (self.y, self.y_stride) = (buffer.as_mut_ptr(), NR);
            self.run(isa);
            for (y, at) in rows {
                y.copy_from_nonoverlapping(buffer[at..at + width].as_ptr(), width);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn run_avx512(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with::<Avx512>() }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run_fma(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with::<Fma>() }
    }

    unsafe fn run_portable(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with::<Portable>() }
    }

    /// Picks the kernel for the number of rows.
    #[inline(always)]
    unsafe fn run_with<V: Vector>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.rows {
                1 => self.kernel::<V, 1>(),
                2 => self.kernel::<V, 2>(),
                3 => self.kernel::<V, 3>(),
                4 => self.kernel::<V, 4>(),
                5 if V::ROWS >= 5 => self.kernel::<V, 5>(),
                6 if V::ROWS >= 6 => self.kernel::<V, 6>(),
                7 if V::ROWS >= 7 => self.kernel::<V, 7>(),
                8 if V::ROWS >= 8 => self.kernel::<V, 8>(),
                9 if V::ROWS >= 9 => self.kernel::<V, 9>(),
                10 if V::ROWS >= 10 => self.kernel::<V, 10>(),
                11 if V::ROWS >= 11 => self.kernel::<V, 11>(),
                12 if V::ROWS >= 12 => self.kernel::<V, 12>(),
                13 if V::ROWS >= 13 => self.kernel::<V, 13>(),
                14 if V::ROWS >= 14 => self.kernel::<V, 14>(),
                rows => unreachable!("a tile of {rows} rows"),
            }
        }
    }

    /// The product itself: `R` rows by two vectors at a time, all sums in registers.
    #[allow(clippy::needless_range_loop)] // constant bounds, to be unrolled into registers
    #[inline(always)]
    unsafe fn kernel<V: Vector, const R: usize>(&self) {
        // SAFETY: the caller's promise: `R` rows and `NR` columns, of which `2 * V::LANES`
        // divides the latter, and `depth` values of each row of `x`.
        unsafe {
            for column in (0..NR).step_by(2 * V::LANES) {
                let y: [*mut f32; R] = std::array::from_fn(|r| self.y.add(r * self.y_stride + column));
                let mut sums = [[V::zero(); 2]; R];
                for r in 0..R {
                    if self.add {
                        sums[r] = [V::load(y[r]), V::load(y[r].add(V::LANES))];
                    }
                }
                let w = self.w.add(column);
                for k in 0..self.depth {
                    let w = w.add(k * NR);
                    V::prefetch(w.wrapping_add(PREFETCH));
                    V::prefetch(w.wrapping_add(PREFETCH + V::LANES));
                    let w = [V::load(w), V::load(w.add(V::LANES))];
                    for r in 0..R {
                        let x = V::splat(*self.x.add(r * self.x_stride + k));
                        sums[r][0] = V::mul_add(x, w[0], sums[r][0]);
                        sums[r][1] = V::mul_add(x, w[1], sums[r][1]);
                    }
                }
                for r in 0..R {
                    V::store(sums[r][0], y[r]);
                    V::store(sums[r][1], y[r].add(V::LANES));
                }
            }
        }
    }
}

/// How many values ahead in the panel to prefetch.
const PREFETCH: usize = 32 * NR;
/// The most rows in a tile of any instruction set.
const MAX_ROWS: usize = 14;
/// Rows and inputs at a time in the transposed product.
const DOT_ROWS: usize = 4;
const DOT_INPUTS: usize = 4;

/// A tile of the transposed product: `rows` rows of `d` by `inputs` inputs, over all panels.
struct Dot {
    rows: usize,
    inputs: usize,
    d: *const f32,
    d_stride: usize,
    w: *const f32,
    w_stride: usize,
    panels: usize,
    g: *mut f32,
    g_stride: usize,
}

impl Dot {
    /// Computes the tile.
    ///
    /// # Safety
    /// The pointers are good for the sizes given, `rows` is at most [`DOT_ROWS`] and `inputs` at
    /// most [`DOT_INPUTS`], and this CPU has `isa`.
    unsafe fn run(&self, isa: Isa) {
        // SAFETY: the same conditions.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => self.run_avx512(),
                #[cfg(target_arch = "x86_64")]
                Isa::Fma => self.run_fma(),
                Isa::Portable => self.run_portable(),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn run_avx512(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with::<Avx512>() }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run_fma(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with::<Fma>() }
    }

    unsafe fn run_portable(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with::<Portable>() }
    }

    #[inline(always)]
    unsafe fn run_with<V: Vector>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.rows, self.inputs) {
                (DOT_ROWS, DOT_INPUTS) => self.kernel::<V, DOT_ROWS, DOT_INPUTS>(0, 0),
                (rows, DOT_INPUTS) => {
                    (0..rows).for_each(|r| self.kernel::<V, 1, DOT_INPUTS>(r, 0));
                }
                (rows, inputs) => {
                    for k in 0..inputs {
                        (0..rows).for_each(|r| self.kernel::<V, 1, 1>(r, k));
                    }
                }
            }
        }
    }

    /// Dot products of `R` rows of `d` and `K` inputs' weights, from row `r` and input `k` on:
    /// lane by lane over the panels, and then the lanes together.
    #[allow(clippy::needless_range_loop)] // constant bounds, to be unrolled into registers
    #[inline(always)]
    unsafe fn kernel<V: Vector, const R: usize, const K: usize>(&self, r: usize, k: usize) {
        let mut sums = [[V::zero(); K]; R];
        // SAFETY: the caller's promise; panels are `NR` wide, a multiple of `V::LANES`.
        unsafe {
            let d = self.d.add(r * self.d_stride);
            for panel in 0..self.panels {
                let w = self.w.add(panel * self.w_stride + k * NR);
                for lane in (0..NR).step_by(V::LANES) {
                    let w: [V; K] = std::array::from_fn(|k| V::load(w.add(k * NR + lane)));
                    for r in 0..R {
                        let d = V::load(d.add(r * self.d_stride + panel * NR + lane));
                        for k in 0..K {
                            sums[r][k] = V::mul_add(d, w[k], sums[r][k]);
                        }
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, &sum) in sums.iter().enumerate() {
                    let mut lanes = [0f32; NR];
                    V::store(sum, lanes.as_mut_ptr());
                    *self.g.add((r + i) * self.g_stride + k + j) = lanes.iter().sum();
                }
            }
        }
    }
}

/// A vector of floats, as the kernels use it. The methods are to be inlined into functions that
/// enable the instruction set.
///
/// # Safety
/// The methods may be called only on a CPU that has the instruction set; `load` and `store` read
/// and write `LANES` values, at any alignment.
unsafe trait Vector: Copy {
    /// Values in a vector; [`NR`] is a multiple of twice this.
    const LANES: usize;
    /// The most rows for which the sums of a tile stay in registers, from 4 to [`MAX_ROWS`].
    const ROWS: usize;
    fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self * by + add`.
    unsafe fn mul_add(self, by: Self, add: Self) -> Self;
    /// Fetches the cache line at an address, which need not be a good one.
    unsafe fn prefetch(from: *const f32);
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;

/// Implements [`Vector`] for an x86 vector type.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($name:ident: $type:ident, $lanes:literal lanes, $rows:literal rows,
     $zero:ident, $splat:ident, $load:ident, $store:ident, $mul_add:ident) => {
        #[derive(Clone, Copy)]
        struct $name(x86::$type);

        // SAFETY: `splat` to `mul_add` forward to one instruction each, which the caller knows
        // this CPU to have; `zero` is all bits zero; a prefetch never faults.
        unsafe impl Vector for $name {
            const LANES: usize = $lanes;
            const ROWS: usize = $rows;
            #[inline(always)]
            fn zero() -> Self {
                // SAFETY: floats of all bits zero are zeros.
                Self(unsafe { std::mem::zeroed() })
            }
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                // SAFETY: the caller's promise.
                Self(unsafe { x86::$splat(value) })
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: the caller's promise.
                Self(unsafe { x86::$load(from) })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { x86::$store(to, self.0) }
            }
            #[inline(always)]
            unsafe fn mul_add(self, by: Self, add: Self) -> Self {
                // SAFETY: the caller's promise.
                Self(unsafe { x86::$mul_add(self.0, by.0, add.0) })
            }
            #[inline(always)]
            unsafe fn prefetch(from: *const f32) {
                // SAFETY: the caller's promise.
                unsafe { x86::_mm_prefetch::<{ x86::_MM_HINT_T0 }>(from.cast()) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_vector!(Avx512: __m512, 16 lanes, 14 rows,
    _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
x86_vector!(Fma: __m256, 8 lanes, 6 rows,
    _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps);

/// [`Vector`] in plain Rust, which the compiler turns into what vectors every CPU has.
#[derive(Clone, Copy)]
struct Portable([f32; 4]);

// SAFETY: plain Rust; `load` and `store` move four values.
unsafe impl Vector for Portable {
    const LANES: usize = 4;
    const ROWS: usize = 4;
    #[inline(always)]
    fn zero() -> Self {
        Self([0.0; 4])
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, by: Self, add: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * by.0[i] + add.0[i]))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in -0.5..0.5 and sizes to test with, the same every time.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 >> 32
        }

        fn below(&mut self, n: usize) -> usize {
            self.next() as usize % n
        }

        fn floats(&mut self, n: usize) -> Vec<f32> {
            (0..n).map(|_| self.next() as f32 / 2f32.powi(32) - 0.5).collect()
        }
    }

    /// All instruction sets of this CPU.
    fn isas() -> Vec<Isa> {
        let mut isas = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        if Isa::detect() != Isa::Portable {
            isas.push(Isa::Fma);
        }
        if !isas.contains(&Isa::detect()) {
            isas.push(Isa::detect());
        }
        isas
    }

    /// Sizes `(m, in, out)`: around all the edges of tiles and passes, and at random.
    fn sizes(noise: &mut Noise) -> Vec<(usize, usize, usize)> {
        let mut sizes = vec![(0, 5, 5), (3, 0, 5), (3, 5, 0), (1, 1, 1), (40, 2 * KC + 7, 33)];
        sizes.extend((1..=2 * MAX_ROWS + 1).map(|m| (m, 9, 2 * NR - 1)));
        sizes.extend([31, 32, 33, 64, 65].map(|out| (15, 17, out)));
        sizes.extend([KC - 1, KC, KC + 1].map(|in_| (5, in_, 40)));
        sizes.push((200, 70, 300));
        sizes.extend((0..40).map(|_| (1 + noise.below(70), 1 + noise.below(200), 1 + noise.below(150))));
        sizes
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    #[track_caller]
    fn assert_close(got: &[f32], want: &[f64], what: impl std::fmt::Debug) {
        assert_eq!(got.len(), want.len());
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(got) - want).abs() < 2e-5, "{what:?} at {i}: {got}, not {want}");
        }
    }

    #[test]
    fn multiplies_as_three_loops_do() {
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        for (m, in_, out) in sizes(&mut noise) {
            let (x, w) = (noise.floats(m * in_), noise.floats(out * in_));
            let before = noise.floats(m * out);
            let mut want = vec![0f64; m * out];
            for r in 0..m {
                for o in 0..out {
                    want[r * out + o] = (0..in_).map(|k| f64::from(x[r * in_ + k]) * f64::from(w[o * in_ + k])).sum();
                }
            }
            for isa in isas() {
                let packed = PackedMatrix::with_isa(&w, out, in_, isa);
                let mut y = vec![f32::NAN; m * out];
                packed.matmul(&x, m, &mut y, false);
                assert_close(&y, &want, (isa, m, in_, out));
                let mut y = before.clone();
                packed.matmul(&x, m, &mut y, true);
                let more: Vec<f64> = want.iter().zip(&before).map(|(w, &b)| w + f64::from(b)).collect();
                assert_close(&y, &more, (isa, m, in_, out, "accumulate"));
            }
        }
    }

    #[test]
    fn transposed_multiplies_as_three_loops_do() {
        let mut noise = Noise(0x2545_f491_4f6c_dd1d);
        for (m, in_, out) in sizes(&mut noise) {
            let (d, w) = (noise.floats(m * out), noise.floats(out * in_));
            let mut want = vec![0f64; m * in_];
            for r in 0..m {
                for k in 0..in_ {
                    want[r * in_ + k] = (0..out).map(|o| f64::from(d[r * out + o]) * f64::from(w[o * in_ + k])).sum();
                }
            }
            for isa in isas() {
                let packed = PackedMatrix::with_isa(&w, out, in_, isa);
                let mut g = vec![f32::NAN; m * in_];
                packed.matmul_transposed(&d, m, &mut g);
                assert_close(&g, &want, (isa, m, in_, out));
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        let mut noise = Noise(7);
        for (m, in_, out) in sizes(&mut noise) {
            let (x, w) = (noise.floats(m * in_), noise.floats(out * in_));
            let d = noise.floats(m * out);
            for isa in isas() {
                let packed = PackedMatrix::with_isa(&w, out, in_, isa);
                let (mut y, mut g) = (vec![0.0; m * out], vec![0.0; m * in_]);
                packed.matmul(&x, m, &mut y, false);
                packed.matmul_transposed(&d, m, &mut g);
                for r in 0..m {
                    let (mut y1, mut g1) = (vec![0.0; out], vec![0.0; in_]);
                    packed.matmul(&x[r * in_..][..in_], 1, &mut y1, false);
                    packed.matmul_transposed(&d[r * out..][..out], 1, &mut g1);
                    assert_eq!(bits(&y1), bits(&y[r * out..][..out]), "{isa:?} {m} {in_} {out}");
                    assert_eq!(bits(&g1), bits(&g[r * in_..][..in_]), "{isa:?} {m} {in_} {out}");
                }
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_threads() {
        let mut noise = Noise(11);
        for (m, in_, out) in [(1, 576, 960), (16, 700, 1000), (90, 576, 320), (300, 64, 1500)] {
            let (x, w) = (noise.floats(m * in_), noise.floats(out * in_));
            let packed = PackedMatrix::new(&w, out, in_);
            let results = [1, 2, 3, 7].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (mut y, mut g) = (vec![0.0; m * out], vec![0.0; m * in_]);
                pool.install(|| {
                    packed.matmul(&x, m, &mut y, false);
                    packed.matmul_transposed(&y, m, &mut g);
                });
                (bits(&y), bits(&g))
            });
            assert!(results.iter().all(|r| *r == results[0]));
        }
    }

    #[test]
    fn gives_the_weights_back() {
        let mut noise = Noise(3);
        for (_, in_, out) in sizes(&mut noise) {
            let w = noise.floats(out * in_);
            let packed = PackedMatrix::new(&w, out, in_).clone();
            assert_eq!((packed.out(), packed.in_()), (out, in_));
            let mut row = vec![0.0; in_];
            for o in 0..out {
                packed.row(o, &mut row);
                assert_eq!(row, w[o * in_..][..in_]);
                for k in 0..in_ {
                    assert_eq!(packed.get(o, k), w[o * in_ + k]);
                }
            }
        }
    }
}
