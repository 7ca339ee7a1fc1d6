//! How the C library shares out memory. Left alone it is generous to threads that allocate all the time, of which the plugin
//! has none, and keeps what a storm of starts has needed for ever.
//!
//! Source of the facts: mallopt(3), malloc_trim(3).

#![expect(unsafe_code, reason = "two calls of the C library that no crate offers")]

use nix::libc::{self, M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, c_int};

/// What the C library begins with, too. Unless it is told, it lets both grow with what is given back.
const THRESHOLD_BYTES: c_int = 128 << 10;

/// Has all threads share one pool, and what is free at its end given back to the kernel. Before the first thread.
pub(crate) fn settle() {
    for (option, value) in
        [(M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, THRESHOLD_BYTES), (M_TRIM_THRESHOLD, THRESHOLD_BYTES)]
    {
        // SAFETY: takes two numbers, and may be called at any time.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Gives the kernel the pages between what is in use. Takes about a millisecond for ten megabytes.
pub(crate) fn give_back() {
    // SAFETY: takes a number, and may be called at any time.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_pages() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_lies_between_is_given_back() {
        settle();
        let mut blocks: Vec<Box<[u8]>> = (0..32 << 10).map(|_| vec![1; 1 << 10].into()).collect();
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 64 == 0
        });
        let before = resident_pages();
        give_back();
        let after = resident_pages();
        // Of 32 MiB in pages of 4 KiB; others allocate meanwhile.
        assert!(before - after > 4 << 10, "{before} {after}");
        drop(blocks);
    }
}
