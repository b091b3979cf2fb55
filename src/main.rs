//! The `taskyard` program: all it does is in the library's `cli`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: taskyard_allocator::MiMalloc = taskyard_allocator::MiMalloc;

fn main() -> ExitCode {
    taskyard::cli::main()
}
