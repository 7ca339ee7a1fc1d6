//! Settings of the C library's memory allocator. By default it makes an arena for each thread that allocates, which the
//! plugin doesn't need, and never returns the memory that a storm of starts has needed.
//!
//! Source of the facts: mallopt(3), malloc_trim(3).

#![expect(unsafe_code, reason = "two calls of the C library that no crate offers")]

use nix::libc::{self, M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, c_int};

/// Allocation size from which memory is mapped separately, and free memory at the heap's end from which it is returned,
/// in bytes. Both are the C library's initial values; unless they are set, it raises them as memory is freed.
const THRESHOLD_BYTES: c_int = 128 << 10;

/// Makes all threads share one arena, and has free memory at its end returned to the kernel. Must be called before the
/// first thread starts.
pub(crate) fn configure() {
    for (option, value) in
        [(M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, THRESHOLD_BYTES), (M_TRIM_THRESHOLD, THRESHOLD_BYTES)]
    {
        // SAFETY: takes two numbers, and may be called at any time.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Returns unused pages anywhere in the heap to the kernel. Takes about a millisecond for ten megabytes.
pub(crate) fn trim() {
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
    fn free_memory_is_returned_to_the_kernel() {
        configure();
        let mut blocks: Vec<Box<[u8]>> = (0..32 << 10).map(|_| vec![1; 1 << 10].into()).collect();
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 64 == 0
        });
        let before = resident_pages();
        trim();
        let after = resident_pages();
        // 32 MiB are 8192 pages of 4 KiB. Half of them suffices, since other threads allocate meanwhile.
        assert!(before - after > 4 << 10, "{before} {after}");
        drop(blocks);
    }
}
