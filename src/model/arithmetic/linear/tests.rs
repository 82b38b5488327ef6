use super::tile::MAX_ROWS;
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
    let mut sizes = vec![(0, 5, 5), (3, 0, 5), (3, 5, 0), (1, 1, 1), (40, KC + 7, 33)];
    sizes.extend((1..=2 * MAX_ROWS + 1).map(|m| (m, 9, 2 * NR - 1)));
    sizes.extend([31, 32, 33, 64, 65].map(|out| (15, 17, out)));
    sizes.extend([KC - 1, KC, KC + 1].map(|in_| (5, in_, 40)));
    sizes.push((200, 70, 300));
    sizes
        .extend((0..40).map(|_| (1 + noise.below(70), 1 + noise.below(200), 1 + noise.below(150))));
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
        let mut want = vec![0f64; m * out];
        for r in 0..m {
            for o in 0..out {
                want[r * out + o] =
                    (0..in_).map(|k| f64::from(x[r * in_ + k]) * f64::from(w[o * in_ + k])).sum();
            }
        }
        for isa in isas() {
            let packed = PackedMatrix::with_isa(&w, out, in_, isa);
            let mut y = vec![f32::NAN; m * out];
            packed.matmul(&x, m, &mut y);
            assert_close(&y, &want, (isa, m, in_, out));
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
                want[r * in_ + k] =
                    (0..out).map(|o| f64::from(d[r * out + o]) * f64::from(w[o * in_ + k])).sum();
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
            packed.matmul(&x, m, &mut y);
            packed.matmul_transposed(&d, m, &mut g);
            for r in 0..m {
                let (mut y1, mut g1) = (vec![0.0; out], vec![0.0; in_]);
                packed.matmul(&x[r * in_..][..in_], 1, &mut y1);
                packed.matmul_transposed(&d[r * out..][..out], 1, &mut g1);
                assert_eq!(bits(&y1), bits(&y[r * out..][..out]), "{isa:?} {m} {in_} {out}");
                assert_eq!(bits(&g1), bits(&g[r * in_..][..in_]), "{isa:?} {m} {in_} {out}");
            }
        }
    }
}

#[test]
fn gated_is_the_gate_of_the_product_to_the_bit() {
    let mut noise = Noise(5);
    for (m, in_, half) in [(1, 9, 32), (15, 70, 64), (40, KC + 7, 32), (90, 64, 96), (0, 5, 32)] {
        let (x, w) = (noise.floats(m * in_), noise.floats(2 * half * in_));
        for isa in isas() {
            let packed = PackedMatrix::with_isa(&w, 2 * half, in_, isa);
            let mut both = vec![f32::NAN; m * 2 * half];
            packed.matmul(&x, m, &mut both);
            let want: Vec<f32> = both
                .chunks_exact(2 * half)
                .flat_map(|row| (0..half).map(|i| row[i] * 3.0 - row[half + i]))
                .collect();
            let mut got = vec![f32::NAN; m * half];
            packed.matmul_gated(&x, m, &mut got, |y, a, b| {
                y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a * 3.0 - b);
            });
            assert_eq!(bits(&got), bits(&want), "{isa:?} {m} {in_} {half}");
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
                packed.matmul(&x, m, &mut y);
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

/// Sums positive terms, where nothing cancels: one chain of 16,384 is off by 4.7e-6.
#[test]
fn long_sums_stay_exact() {
    let mut noise = Noise(0x0123_4567_89ab_cdef);
    let depth = 16_384;
    let (x, w): (Vec<f32>, Vec<f32>) = (noise.floats(depth), noise.floats(depth * NR));
    let (x, w): (Vec<f32>, Vec<f32>) =
        (x.iter().map(|v| v.abs()).collect(), w.iter().map(|v| v.abs()).collect());
    for isa in isas() {
        let mut y = vec![0f32; NR];
        PackedMatrix::with_isa(&w, NR, depth, isa).matmul(&x, 1, &mut y);
        let worst = y.iter().zip(w.chunks_exact(depth)).map(|(y, w)| {
            let want: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            (f64::from(*y) - want).abs() / want
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 1.5e-6, "{isa:?}: off by {worst:e}");
    }
}
