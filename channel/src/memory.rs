//! How a program keeps its memory.
#![allow(unsafe_code, reason = "mallopt(3) has no safe wrapper")]

/// Has all threads of the process take memory from one arena. Otherwise glibc gives threads arenas of their own, where what other threads free
/// stays: a gateway of which a tree of 200,000 files is listed again and again grew to three times of what it used. To be
/// called before other threads are started.
pub fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and an allocator that does not know the first ignores both.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
