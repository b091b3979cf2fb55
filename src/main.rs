//! The `taskyard` program: all it does is in the library's `cli`.

use std::process::ExitCode;

/// Many small allocations cross threads here, which this allocator is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    taskyard::cli::main()
}
