//! Closed loop: 4 producers with a window of 256 unconfirmed submits, 8 workers with credit 64. Every
//! system gets a server of its own, is warmed up until its rate is known, and is then measured for the
//! same time.

use std::collections::BTreeMap;

use crate::Failed;
use crate::broker::usage;
use crate::compare::cores;
use crate::compare::systems::System;
use crate::compare::{Plan, thousands, values};
use crate::drivers::load::Load;
use crate::record::Records;

/// Tasks of the first warm-up.
const FIRST: u64 = 2_000;
/// A warm-up that took this part of the measurement knows the rate.
const PART: f64 = 0.15;

pub(crate) async fn run(plan: &Plan, records: &mut Records) -> Result<(), Failed> {
    for round in 1..=plan.rounds {
        for system in plan.systems.iter().filter(|system| system.also.throughput) {
            let text = format!("throughput · round {round} · {}, {}", system.name, system.setting);
            plan.next(text.clone());
            let measured = measure(plan, system).await;
            let result = match measured {
                Ok(values) => {
                    let rate = values.get("tasks_per_s").copied().unwrap_or_default();
                    records.add(plan.record("throughput", system, round, values))?;
                    Ok(format!("{} tasks/s", thousands(rate)))
                }
                Err(error) => Err(error),
            };
            plan.done(&text, result);
        }
    }
    Ok(())
}

async fn measure(plan: &Plan, system: &System) -> Result<BTreeMap<String, f64>, Failed> {
    let running = system.start(&plan.found, &plan.place).await?;
    let mut tasks = FIRST;
    let rate = loop {
        let seconds = running.round(Load { tasks, ..plan.load }).await?;
        if seconds >= plan.seconds * PART {
            break tasks as f64 / seconds;
        }
        // Enough for that part and a little more, but not more than tenfold: it speeds up as it warms.
        tasks = ((tasks as f64 * plan.seconds * PART * 1.2 / seconds) as u64).clamp(tasks * 2, tasks * 10);
    };
    let tasks = ((rate * plan.seconds) as u64).max(FIRST);
    let core_to_core = cores::round_trip_ns();
    let (server, own) = (running.server.usage(), usage(std::process::id())?);
    let seconds = running.round(Load { tasks, ..plan.load }).await?;
    let (server_after, own_after) = (running.server.usage(), usage(std::process::id())?);
    let per = 100_000.0 / tasks as f64;
    let mut figures = values([
        ("tasks", tasks as f64),
        ("seconds", seconds),
        ("tasks_per_s", tasks as f64 / seconds),
        ("server_cpu_s", server_after.cpu_s - server.cpu_s),
        ("server_cpu_s_per_100k", (server_after.cpu_s - server.cpu_s) * per),
        ("server_peak_mib", server_after.peak_mib),
        ("generator_cpu_s_per_100k", (own_after.cpu_s - own.cpu_s) * per),
    ]);
    figures.extend(core_to_core.map(|ns| (cores::FIGURE.to_owned(), ns)));
    Ok(figures)
}
