# The names of what there is to do. `just check` is what CI runs, and nothing more is needed.

default: check

check:
    .ci/run

test:
    cargo test --workspace

serve *ARGS:
    cargo run --release -- serve {{ARGS}}

bench *ARGS:
    cargo build --release --workspace
    target/release/taskyard-bench throughput {{ARGS}}

# What the hot path executes, against what is kept in bench/instructions.txt.
instructions:
    bench/instructions

# Slow: a hundred kills, and a build for each seeded bug.
torture:
    tests/kill9
    tests/sim/bite
