//! The log against a disk that fails in every way we could think of, and against real files.
//!
//! `model` knows the promises and judges what a log recovers; the other files make trouble.

#[path = "../support/disk.rs"]
mod disk;

mod bypass;
mod crash;
mod damage;
mod fetch;
mod files;
mod full;
mod model;
mod repair;
mod thread;
