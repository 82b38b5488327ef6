//! The kernel of the transposed product (the gradient to the input): dot products along panels.

use super::NR;
use super::vector::{Kernel, Vector};

/// Number of rows in one tile of the transposed product.
pub(super) const DOT_ROWS: usize = 4;
/// Number of inputs in one tile of the transposed product.
pub(super) const DOT_INPUTS: usize = 4;

/// A tile of the transposed product: `rows` rows of `d` by `inputs` inputs, over all panels.
pub(super) struct Dot {
    pub rows: usize,
    pub inputs: usize,
    pub d: *const f32,
    pub d_stride: usize,
    pub w: *const f32,
    pub w_stride: usize,
    pub panels: usize,
    pub g: *mut f32,
    pub g_stride: usize,
}

impl Dot {
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

impl Kernel for Dot {
    /// # Safety
    /// The pointers are good for the sizes given, `rows` is at most [`DOT_ROWS`] and `inputs` at
    /// most [`DOT_INPUTS`], and this CPU has the instruction set.
    #[inline(always)]
    unsafe fn run<V: Vector>(&self) {
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
}
