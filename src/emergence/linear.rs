//! Symmetric linear systems by Cholesky's decomposition, for fits of a few thousand unknowns.

/// A lower triangular factor `L` of a positive definite matrix, `A = L L'`.
pub struct Cholesky {
    size: usize,
    /// `[size, size]`, row-major; only the lower triangle is used.
    rows: Vec<f64>,
}

impl Cholesky {
    /// Factorizes a matrix `[size, size]`, of which the lower triangle is read. `None` if it is not
    /// positive definite.
    pub fn new(mut rows: Vec<f64>, size: usize) -> Option<Self> {
        for i in 0..size {
            let (above, row) = rows.split_at_mut(i * size);
            for j in 0..i {
                let other = &above[j * size..][..=j];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let square = row[i] - dot(&row[..i], &row[..i]);
            if !square.is_finite() || square <= 0.0 {
                return None;
            }
            row[i] = square.sqrt();
        }
        Some(Self { size, rows })
    }

    /// Returns the solution `x` of `A x = b`.
    pub fn solve(&self, b: &[f64]) -> Vec<f64> {
        let mut x = b.to_vec();
        for i in 0..self.size {
            let row = &self.rows[i * self.size..][..=i];
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
        for i in (0..self.size).rev() {
            let row = &self.rows[i * self.size..][..=i];
            x[i] /= row[i];
            let value = x[i];
            x[..i].iter_mut().zip(row).for_each(|(x, l)| *x -= value * l);
        }
        x
    }
}

/// Returns the sum of products, in a fixed order.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut lanes = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_by_hand() {
        // [[4, 2], [2, 3]] x = [10, 8] has the solution [7/4, 3/2].
        let factor = Cholesky::new(vec![4.0, f64::NAN, 2.0, 3.0], 2).unwrap();
        let x = factor.solve(&[10.0, 8.0]);
        assert!((x[0] - 1.75).abs() < 1e-12 && (x[1] - 1.5).abs() < 1e-12, "{x:?}");
        assert!(Cholesky::new(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
    }

    #[test]
    fn solutions_of_random_systems_fit() {
        use rand::Rng as _;
        let mut rng = crate::rng::stream(1, "cholesky");
        let n = 37;
        let b: Vec<Vec<f64>> =
            (0..n).map(|_| (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()).collect();
        let a = |i: usize, j: usize| dot(&b[i], &b[j]) + if i == j { 0.1 } else { 0.0 };
        let rows = (0..n * n).map(|at| a(at / n, at % n)).collect();
        let rhs: Vec<f64> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
        let x = Cholesky::new(rows, n).unwrap().solve(&rhs);
        for (i, rhs) in rhs.iter().enumerate() {
            let got: f64 = (0..n).map(|j| a(i, j) * x[j]).sum();
            assert!((got - rhs).abs() < 1e-9);
        }
    }
}
