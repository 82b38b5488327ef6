//! Parses, runs, exits; nothing else.

use std::process::ExitCode;

// Forward passes allocate and free large buffers all the time; the system allocator gives them back
// to the kernel and pays for fresh zeroed pages on each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    glitch::cli::main()
}
