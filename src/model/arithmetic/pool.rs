//! A pool of buffers for each thread.
//!
//! A layer of a large batch allocates and frees tens of megabytes. Allocators return such blocks to
//! the kernel, which clears every page before it hands them out again; that took a tenth of the
//! time of a forward. So a thread keeps its last few buffers.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Number of buffers that a thread keeps.
const BUFFERS: usize = 12;
/// Number of values that these may hold together (256 MB).
const VALUES: usize = 64 << 20;
/// Number of values below which a buffer is left to the allocator.
const SMALLEST: usize = 1 << 14;

thread_local! {
    static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that returns to the pool of the dropping thread.
#[derive(Debug, Default)]
pub struct Pooled {
    /// Often longer than `len`.
    values: Vec<f32>,
    len: usize,
}

impl Pooled {
    /// Returns a buffer of `len` arbitrary values, all of which the caller must write.
    pub fn take(len: usize) -> Self {
        let kept = KEPT.with_borrow_mut(|kept| {
            let fits = |b: &Vec<f32>| b.len() >= len && b.len() / 8 <= len;
            let at = kept
                .iter()
                .enumerate()
                .filter(|(_, b)| fits(b))
                .min_by_key(|(_, b)| b.len())
                .map(|(i, _)| i);
            at.map(|i| kept.remove(i))
        });
        // Batches grow from layer to layer as rows join them; pages that are not touched cost
        // nothing.
        let room = if len < SMALLEST { len } else { len.next_power_of_two() };
        Self { values: kept.unwrap_or_else(|| vec![0f32; room]), len }
    }

    /// Appends values.
    pub fn extend(&mut self, more: &[f32]) {
        let (before, len) = (self.len, self.len + more.len());
        if len > self.values.len() {
            let mut longer = Self::take(len);
            longer[..before].copy_from_slice(self);
            *self = longer;
        }
        self.values[before..len].copy_from_slice(more);
        self.len = len;
    }
}

impl From<Vec<f32>> for Pooled {
    fn from(values: Vec<f32>) -> Self {
        Self { len: values.len(), values }
    }
}

impl Deref for Pooled {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

impl Clone for Pooled {
    fn clone(&self) -> Self {
        let mut copy = Self::take(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if self.values.len() < SMALLEST {
            return;
        }
        let values = std::mem::take(&mut self.values);
        KEPT.with_borrow_mut(|kept| {
            kept.push(values);
            while kept.len() > BUFFERS || kept.iter().map(Vec::len).sum::<usize>() > VALUES {
                kept.remove(0);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_keep_what_they_are_given() {
        let n = SMALLEST + 3;
        let mut a = Pooled::take(n);
        a.fill(1.0);
        let at = a.as_ptr();
        drop(a);
        let mut b = Pooled::take(n + 1);
        assert_eq!((b.as_ptr(), b.len()), (at, n + 1));
        b.fill(2.0);
        let more = vec![3.0; 4 * n];
        b.extend(&more);
        assert_eq!(b.len(), 5 * n + 1);
        assert!(b[..n + 1].iter().all(|x| *x == 2.0) && b[n + 1..].iter().all(|x| *x == 3.0));
        assert_eq!(b.clone()[..], b[..]);
        b.extend(&[]);
        assert_eq!(Pooled::from(vec![5.0, 6.0])[..], [5.0, 6.0]);
    }
}
