//! Frames and bodies in JSON: see `decode`.
#![no_main]

mod decode;
mod meter;

use libfuzzer_sys::fuzz_target;
use taskyard_proto::Encoding;

fuzz_target!(|input: decode::Input<'_>| decode::check(Encoding::Json, &input));
