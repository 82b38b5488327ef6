//! The Walsh-Hadamard transform.

use std::ops::{Add, Sub};

/// Applies the transform in place, without scaling, in `n log n` steps. The length has to be a
/// power of two; of any other, what is left over stays as it is.
pub fn walsh_hadamard<T: Copy + Add<Output = T> + Sub<Output = T>>(x: &mut [T]) {
    let mut half = 1;
    while half < x.len() {
        for block in x.chunks_exact_mut(2 * half) {
            let (a, b) = block.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let mut x = [1, 2, 3, 5];
        walsh_hadamard(&mut x);
        assert_eq!(x, [11, -3, -5, 1]);
        walsh_hadamard(&mut x);
        assert_eq!(x, [4, 8, 12, 20]);
    }
}
