//! Many tasks and nobody who works: what they cost while they come, how soon the server has all of them
//! again after it was killed, and how fast they leave.

use std::time::{Duration, Instant};

use crate::Failed;
use crate::compare::systems::System;
use crate::compare::{Plan, thousands, values};
use crate::drivers::load::{Load, Peer};
use crate::record::{Record, Records};

/// Points of the growth curve.
const PARTS: u64 = 10;
/// A server that answers with the same number for so long has no more.
const SETTLED: Duration = Duration::from_secs(5);
/// How long a server may take to come back.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) async fn run(plan: &Plan, records: &mut Records) -> Result<(), Failed> {
    for round in 1..=plan.rounds {
        for system in plan.systems.iter().filter(|system| system.also.backlog) {
            let text = format!("backlog · round {round} · {}, {}", system.name, system.setting);
            plan.next(text.clone());
            plan.done(&text, measure(plan, system, round, records).await);
        }
    }
    Ok(())
}

async fn measure(plan: &Plan, system: &System, round: u32, records: &mut Records) -> Result<String, Failed> {
    let mut running = system.start(&plan.found, &plan.place).await?;
    let part = (plan.backlog / PARTS).max(1);
    let began = Instant::now();
    for nth in 1..=PARTS {
        let (before, since) = (running.server.usage(), Instant::now());
        running.fill(Load { tasks: part, ..plan.load }).await?;
        let seconds = since.elapsed().as_secs_f64();
        let cpu_s = running.server.usage().cpu_s - before.cpu_s;
        let figures = values([
            ("queued", (nth * part) as f64),
            ("submits_per_s", part as f64 / seconds),
            ("server_cpu_s_per_100k", cpu_s * 100_000.0 / part as f64),
            ("rss_mib", running.server.resident_mib()),
        ]);
        let load = format!("{} queued", thousands((nth * part) as f64));
        records.add(Record { load, ..plan.record("growth", system, round, figures) })?;
    }
    let tasks = part * PARTS;
    let filled_per_s = tasks as f64 / began.elapsed().as_secs_f64();
    let full_mib = running.server.resident_mib();

    running.server.kill();
    let killed = Instant::now();
    running.server.restart()?;
    let (has, restart_s) = returned(&mut running, tasks, killed).await?;
    let restart_mib = running.server.resident_mib();
    let drain_s = running.drain(plan.load.workers, has).await?;
    let figures = values([
        ("tasks", tasks as f64),
        ("filled_per_s", filled_per_s),
        ("full_rss_mib", full_mib),
        ("restart_s", restart_s),
        ("restart_rss_mib", restart_mib),
        ("lost", tasks.saturating_sub(has) as f64),
        ("drained_per_s", has as f64 / drain_s),
        ("server_peak_mib", running.server.usage().peak_mib),
    ]);
    let load = format!("{} tasks", thousands(tasks as f64));
    records.add(Record { load, ..plan.record("backlog", system, round, figures) })?;
    let lost =
        if has < tasks { format!(", LOST {}", thousands((tasks - has) as f64)) } else { String::new() };
    Ok(format!(
        "{} MiB full, back after {restart_s:.2} s with {restart_mib:.0} MiB, drained at {}/s{lost}",
        thousands(full_mib),
        thousands(has as f64 / drain_s)
    ))
}

/// Waits until all tasks are there again, or no more come; how many, and after how many seconds.
async fn returned(running: &mut Peer, tasks: u64, since: Instant) -> Result<(u64, f64), Failed> {
    let mut last: Option<(u64, Instant)> = None;
    loop {
        running.server.check()?;
        if let Some(depth) = running.depth().await {
            let now = Instant::now();
            let first = match last {
                Some((before, first)) if before == depth => first,
                _ => now,
            };
            last = Some((depth, first));
            if depth >= tasks || now - first > SETTLED {
                return Ok((depth, (first - since).as_secs_f64()));
            }
        }
        if since.elapsed() > PATIENCE {
            return Err(format!("after {PATIENCE:?} it does not answer").into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
