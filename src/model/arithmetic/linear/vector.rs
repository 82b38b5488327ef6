//! Vectors of floats in each instruction set, and the choice between the sets.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;

/// An instruction set with a kernel of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Fma,
    Portable,
}

impl Isa {
    /// Returns the best one that this CPU has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("fma")
            {
                return Self::Fma;
            }
        }
        Self::Portable
    }

    /// Returns the largest number of rows in a tile: as many as the registers hold sums for.
    pub fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Fma => Fma::ROWS,
            Self::Portable => Portable::ROWS,
        }
    }

    /// Runs a kernel compiled for this set.
    ///
    /// # Safety
    /// This CPU has the set, and the kernel's own conditions hold.
    pub unsafe fn run(self, kernel: &impl Kernel) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Fma => fma(kernel),
                Self::Portable => kernel.run::<Portable>(),
            }
        }
    }
}

/// A computation that is generic over the vectors of an instruction set.
pub(super) trait Kernel {
    /// Computes with vectors `V`. Must be inlined into a function that enables their instruction
    /// set.
    ///
    /// # Safety
    /// This CPU has the instruction set of `V`, and the kernel's own conditions hold.
    unsafe fn run<V: Vector>(&self);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(kernel: &impl Kernel) {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn fma(kernel: &impl Kernel) {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Fma>() }
}

/// A vector of floats. The methods must be inlined into functions that enable its instruction set.
///
/// # Safety
/// The methods may be called only on a CPU that has the instruction set; `load` and `store` read
/// and write `LANES` values, at any alignment.
pub(super) unsafe trait Vector: Copy {
    /// Number of values in a vector; [`NR`](super::NR) is a multiple of twice this.
    const LANES: usize;
    /// Largest number of rows for which the sums of a tile stay in registers, from 4 to
    /// [`MAX_ROWS`](super::tile::MAX_ROWS).
    const ROWS: usize;
    fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Returns `self * by + add`.
    unsafe fn mul_add(self, by: Self, add: Self) -> Self;
    /// Prefetches the cache line at an address, which need not be valid.
    unsafe fn prefetch(from: *const f32);
}

/// Implements [`Vector`] for an x86 vector type.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_vector {
    ($name:ident: $type:ident, $lanes:literal lanes, $rows:literal rows,
     $zero:ident, $splat:ident, $load:ident, $store:ident, $mul_add:ident) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name(x86::$type);

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

// 13 rows and not the 14 for which 32 registers would do: with 14 the compiler has none left, and
// spills (measured on Zen 4: 88 GFLOP/s a core against 112, of 115 that the core can do).
#[cfg(target_arch = "x86_64")]
x86_vector!(Avx512: __m512, 16 lanes, 13 rows,
    _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
x86_vector!(Fma: __m256, 8 lanes, 6 rows,
    _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps);

/// A [`Vector`] in plain Rust, which the compiler maps to the vectors that every CPU has.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 4]);

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
