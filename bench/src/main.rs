//! A load generator over the real protocol. `bench/README.md` says what the figures mean.

mod bare;
mod broker;
mod certificate;
mod compare;
mod descriptors;
mod drivers;
mod fanout;
mod floor;
mod growth;
mod handshakes;
mod hot;
mod idle;
mod latency;
mod peers;
mod record;
mod socket;
mod throughput;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use taskyard_proto::Encoding;

use crate::record::Records;

/// Measures a Taskyard broker. Starts one of its own unless --url names one.
#[derive(Debug, Parser)]
#[command(name = "taskyard-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything beside its peers: scenarios × systems, records, an HTML report and a table
    Compare(compare::Args),
    /// Closed loop: how many tasks a second, from the first submit to the last ack
    Throughput(throughput::Args),
    /// Open loop: how long from the intended submit to the worker, at a fixed rate
    Latency(latency::Args),
    /// Memory: how many KiB an idle, authenticated socket takes, beside a bare server and peers
    Idle(idle::Args),
    /// One says something to thousands: rooms and tasks to all, beside a bare server and peers
    Fanout(fanout::Args),
    /// Upgrades a second, and the server's CPU time for them, beside a bare server
    Handshakes(handshakes::Args),
    /// What the broker does for one task, apart from sockets, threads and the disk: nanoseconds on one core
    Hot(hot::Args),
    /// Growth: whether a task costs the same however many wait, queues, workers and bytes there are
    Growth(growth::Args),
    /// The bare WebSocket server that idle and handshakes are compared with: upgrades and echoes
    #[command(hide = true)]
    BareServer,
    /// The bare server that latency is compared with: appends, syncs, forwards, nothing else
    #[command(hide = true)]
    FloorServer(floor::Args),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wire {
    Json,
    Msgpack,
}

impl Wire {
    fn encoding(self) -> Encoding {
        match self {
            Wire::Json => Encoding::Json,
            Wire::Msgpack => Encoding::MessagePack,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Wire::Json => "json",
            Wire::Msgpack => "msgpack",
        }
    }
}

/// What ends a measurement that cannot be made.
type Failed = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Hot(args) => hot::run(&args),
        Command::BareServer => bare::serve(),
        Command::Idle(args) => on_runtime(alone(async |records| idle::run(args, records).await)),
        Command::Fanout(args) => on_runtime(alone(async |records| fanout::run(args, records).await)),
        Command::Handshakes(args) => on_runtime(alone(async |records| handshakes::run(args, records).await)),
        Command::FloorServer(args) => floor::serve(args),
        Command::Compare(args) => on_runtime(compare::run(args)),
        Command::Throughput(args) => on_runtime(throughput::run(args)),
        Command::Latency(args) => on_runtime(latency::run(args)),
        Command::Growth(args) => on_runtime(alone(async |records| growth::run(args, records).await)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("taskyard-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn on_runtime(run: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build()?.block_on(run)
}

/// A scenario by itself: it prints its table, and its records are not kept.
async fn alone(run: impl AsyncFnOnce(&mut Records) -> Result<(), Failed>) -> Result<(), Failed> {
    run(&mut Records::new(None)).await
}

/// The middle of some figures; of an even number, between the two in the middle.
fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

fn print(line: &str) {
    use std::io::Write as _;
    // A reader that has gone ends the bench when it next fails.
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn a_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(
            (median(&[3.0, 1.0, 2.0]), median(&[1.0, 9.0]), median(&[4.0, 1.0, 9.0, 2.0])),
            (2.0, 5.0, 3.0)
        );
        assert!(median(&[]).is_nan());
    }
}
