//! The kernel of the product: a tile of a few rows by one panel.

use super::NR;
use super::vector::{Isa, Kernel, Vector};

/// A tile to compute: `rows` rows of `x` by one panel, over `depth` inputs.
pub(super) struct Tile {
    pub rows: usize,
    pub x: *const f32,
    pub x_stride: usize,
    pub w: *const f32,
    pub depth: usize,
    pub y: *mut f32,
    pub y_stride: usize,
    pub add: bool,
}

impl Tile {
    /// Computes the first `width` columns of a tile, in a buffer as wide as the panel.
    ///
    /// # Safety
    /// As for [`Kernel::run`], `y` having room for `width` columns only.
    pub unsafe fn run_narrow(&mut self, isa: Isa, width: usize) {
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
            isa.run(self);
            for (y, at) in rows {
                y.copy_from_nonoverlapping(buffer[at..at + width].as_ptr(), width);
            }
        }
    }

    /// Multiplies `R` rows by two vectors at a time, with all sums in registers.
    #[allow(clippy::needless_range_loop)] // constant bounds, to be unrolled into registers
    #[inline(always)]
    unsafe fn kernel<V: Vector, const R: usize>(&self) {
        // SAFETY: the caller's promise: `R` rows and `NR` columns, of which `2 * V::LANES`
        // divides the latter, and `depth` values of each row of `x`.
        unsafe {
            for column in (0..NR).step_by(2 * V::LANES) {
                let y: [*mut f32; R] =
                    std::array::from_fn(|r| self.y.add(r * self.y_stride + column));
                let w = self.w.add(column);
                let (mut k, mut add) = (0, self.add);
                loop {
                    let mut sums = [[V::zero(); 2]; R];
                    let end = self.depth.min(k + STRETCH);
                    while k < end {
                        // Unrolled where there is enough left: counting then costs little beside
                        // the arithmetic.
                        let steps = if end - k >= UNROLLED { UNROLLED } else { 1 };
                        macro_rules! step {
                            ($k:expr) => {
                                let w = w.add($k * NR);
                                // A line holds 16 values.
                                V::prefetch(w.wrapping_add(PREFETCH));
                                if 2 * V::LANES > 16 {
                                    V::prefetch(w.wrapping_add(PREFETCH + 16));
                                }
                                let w = [V::load(w), V::load(w.add(V::LANES))];
                                for r in 0..R {
                                    let x = V::splat(*self.x.add(r * self.x_stride + $k));
                                    sums[r][0] = V::mul_add(x, w[0], sums[r][0]);
                                    sums[r][1] = V::mul_add(x, w[1], sums[r][1]);
                                }
                            };
                        }
                        if steps == UNROLLED {
                            for u in 0..UNROLLED {
                                step!(k + u);
                            }
                        } else {
                            step!(k);
                        }
                        k += steps;
                    }
                    for r in 0..R {
                        for (half, sum) in sums[r].into_iter().enumerate() {
                            let y = y[r].add(half * V::LANES);
                            V::store(
                                if add { V::mul_add(V::load(y), V::splat(1.0), sum) } else { sum },
                                y,
                            );
                        }
                    }
                    add = true;
                    if k == self.depth {
                        break;
                    }
                }
            }
        }
    }
}

impl Kernel for Tile {
    /// Picks the kernel for the number of rows.
    ///
    /// # Safety
    /// The pointers are good for the sizes given, `rows` is at most [`Isa::tile_rows`], and this
    /// CPU has the instruction set.
    #[inline(always)]
    unsafe fn run<V: Vector>(&self) {
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
                rows => unreachable!("a tile of {rows} rows"),
            }
        }
    }
}

/// Number of inputs that are summed before they are added to the sum so far. Rounding errors grow
/// with the number of terms of a sum, and this keeps both sums short. `KC` is a multiple of it.
pub(super) const STRETCH: usize = 256;
/// Distance of the prefetched values in the panel.
const PREFETCH: usize = 32 * NR;
/// Largest number of rows in a tile of any instruction set.
pub(super) const MAX_ROWS: usize = 13;
/// Number of inputs in one iteration: so that counting and addresses cost little.
const UNROLLED: usize = 4;
