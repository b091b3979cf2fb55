//! The deterministic simulator: the real core and log in a world made of one seed. README.md tells what it simulates.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod broker;
mod clients;
#[expect(dead_code, reason = "shared with the tests of the log, which use more of it")]
#[path = "../support/disk.rs"]
mod disk;
mod oracle;
mod scenarios;
mod scenarios_verbs;
mod schedules;
mod script;
mod world;

use oracle::Report;
use world::World;

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs one seed; if it breaks a promise, runs it again to tell the story.
fn run(seed: u64) -> Report {
    struct Seed(u64);
    impl Drop for Seed {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!(
                    "seed {}: again with TASKYARD_SIM_SEED={} cargo test --test sim one_seed",
                    self.0, self.0
                );
            }
        }
    }
    let _seed = Seed(seed);
    let (_, result) = World::new(seed, false).run();
    match result {
        Ok(report) => report,
        Err(violation) => {
            let (oracle, _) = World::new(seed, true).run();
            panic!(
                "seed {seed} broke a promise: {}\n  {}\n  task {:?}, at {:.3} ms\n{}",
                violation.promise,
                violation.what,
                violation.task,
                violation.at as f64 / 1000.0,
                oracle.story(if environment("TASKYARD_SIM_FULL").is_some() { None } else { violation.task })
            );
        }
    }
}

#[test]
fn seeds_1000() {
    let count = environment("TASKYARD_SIM_SEEDS").unwrap_or(1000);
    let mut total = Report::default();
    for seed in 0..count {
        let report = run(seed);
        total.submitted += report.submitted;
        total.confirmed += report.confirmed;
        total.delivered += report.delivered;
        total.redelivered += report.redelivered;
        total.settled += report.settled;
        total.finished += report.finished;
        total.crashes += report.crashes;
        total.inputs += report.inputs;
        total.cancelled += report.cancelled;
        total.duplicates += report.duplicates;
        total.resumed += report.resumed;
        total.kept += report.kept;
        total.redriven += report.redriven;
        total.pulled += report.pulled;
        total.murky += report.murky;
        total.segments = total.segments.max(report.segments);
    }
    eprintln!("{count} seeds: {total:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 7, 42] {
        let hashes = [true, false, true].map(|trace| World::new(seed, trace).run().0.hash());
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "seed {seed}: {hashes:?}");
        let stories = [(), ()].map(|()| World::new(seed, true).run().0.story(None));
        assert_eq!(stories[0], stories[1], "seed {seed}");
    }
}

/// One seed of the reader's choice, told in full.
#[test]
fn one_seed() {
    if let Some(seed) = environment("TASKYARD_SIM_SEED") {
        let report = run(seed);
        let (oracle, _) = World::new(seed, true).run();
        eprintln!("{}\n{report:?}", oracle.story(None));
    }
}
