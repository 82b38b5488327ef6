//! Buffers of a forward pass, used again.
//!
//! A layer of a large batch makes and drops tens of megabytes. Allocators give such blocks back to
//! the kernel, which clears every page before it hands them out again: a tenth of a forward's time.
//! A thread keeps its last few instead.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Buffers kept, and the most values they may hold together (256 MB).
const BUFFERS: usize = 12;
const VALUES: usize = 64 << 20;
/// Smaller ones are the allocator's business.
const SMALLEST: usize = 1 << 14;

thread_local! {
    static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that goes back to its thread's when it is dropped.
#[derive(Debug, Default)]
pub struct Pooled {
    /// Often longer than `len`: what lies beyond is for the next user.
    values: Vec<f32>,
    len: usize,
}

impl Pooled {
    /// A buffer of `len` values, each of which the caller must write: they are whatever was there.
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

    /// More values at the end.
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
