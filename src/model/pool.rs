//! Buffers of a forward pass, used again.
//!
//! A layer of a large batch makes and drops tens of megabytes. Allocators give such blocks back to the
//! kernel, which clears every page before it hands them out again: a tenth of a forward's time. A thread
//! keeps its last few instead.

use std::cell::RefCell;

/// Buffers kept, and the most values they may hold together (256 MB).
const BUFFERS: usize = 12;
const VALUES: usize = 64 << 20;
/// Smaller ones are the allocator's business.
const SMALLEST: usize = 1 << 14;

thread_local! {
    static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of `len` values, each of which the caller must write: they are whatever was there.
pub fn take(len: usize) -> Vec<f32> {
    let kept = KEPT.with_borrow_mut(|kept| {
        let fits = |b: &Vec<f32>| b.len() >= len && b.len() <= 2 * len;
        let at = kept.iter().enumerate().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| b.len()).map(|(i, _)| i);
        at.map(|i| kept.swap_remove(i))
    });
    match kept {
        Some(mut buffer) => {
            buffer.truncate(len);
            buffer
        }
        None => vec![0f32; len],
    }
}

/// Keeps a buffer for later.
pub fn give(buffer: Vec<f32>) {
    if buffer.len() < SMALLEST {
        return;
    }
    KEPT.with_borrow_mut(|kept| {
        kept.push(buffer);
        while kept.len() > BUFFERS || kept.iter().map(Vec::len).sum::<usize>() > VALUES {
            kept.remove(0);
        }
    });
}
