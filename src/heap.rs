//! How the program's allocator treats large blocks, which it keeps, and small ones, which it merges as they are freed.
//!
//! Left to itself glibc gives the memory of large packets back to the system after each of them, and takes it page by
//! page for the next one. Two pairs that exchange 256 KiB cost 224 to 400 us of processor time a message that way, and 139
//! to 190 us with what is set here, side by side (`cargo bench --bench versus -- '256 KiB'`).
//!
//! The price of that: a table that grows step by step leaves holes of up to a mebibyte behind, so the server makes room for its
//! clients beforehand.
//!
//! Left to itself it also puts small blocks aside as they are freed, and merges all of them when it next has a larger one to
//! give away. Whose session ends leaves some dozens of them: of 100,000 sessions with five messages each that expire, one call
//! took 29 ms, and takes 1.2 ms with what is set here. What an operation takes is the same but for 0.3 %.
//!
//! Deliberately not here: the library. Who embeds the broker decides for its own process.

/// Free memory at the end of the heap that is kept, in bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: i32 = 16 << 20;

/// From this size on a block is taken from the system and given back on its own.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES_MIN: i32 = 1 << 20;

/// Freed blocks up to this size are put aside.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const SET_ASIDE_BYTES_MAX: i32 = 0;

/// To be called once, before anything large is allocated.
pub(crate) fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(
            unsafe_code,
            reason = "there is no safe way, and nothing else cuts a large message's cost in half"
        )]
        // SAFETY: `mallopt` takes two numbers and knows what to do with any. It may be called at any time; no other thread
        // runs yet.
        let results = unsafe {
            [
                libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES),
                libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN),
                libc::mallopt(libc::M_MXFAST, SET_ASIDE_BYTES_MAX),
            ]
        };
        debug_assert_eq!(results, [1; 3], "the allocator takes them");
    }
}
