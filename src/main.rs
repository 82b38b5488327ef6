//! Parses, runs, exits; nothing else.

use std::process::ExitCode;

// Forward passes allocate and free large buffers all the time; the system allocator gives them back
// to the kernel and pays for fresh zeroed pages on each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keep_freed_memory();
    glitch::cli::main()
}

/// Has the allocator keep what is freed, unless `MIMALLOC_PURGE_DELAY` is set. After 10 ms it would
/// give it back as well, which took a third of the time of campaigns on recurrent models.
fn keep_freed_memory() {
    // `mi_option_purge_delay` of mimalloc.h, which the crate has no name for.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const NEVER: std::ffi::c_long = -1;
    // SAFETY: the function sets a number, and no other thread runs yet.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, NEVER) };
}
