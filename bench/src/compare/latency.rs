//! Open loop: how long from the moment a submit was meant to be sent to the worker having it.

use std::collections::BTreeMap;

use crate::Failed;
use crate::broker::usage;
use crate::compare::cores;
use crate::compare::systems::System;
use crate::compare::{Plan, thousands, values};
use crate::drivers::Place;
use crate::latency::{self, CREDIT, Outcome};
use crate::record::{Record, Records};

/// Points of the curves: quantile, and the name of the figure.
pub(crate) const QUANTILES: &[(f64, &str)] = &[
    (0.5, "p50_us"),
    (0.75, "p75_us"),
    (0.9, "p90_us"),
    (0.95, "p95_us"),
    (0.99, "p99_us"),
    (0.999, "p99_9_us"),
    (0.9999, "p99_99_us"),
];

pub(crate) async fn run(plan: &Plan, records: &mut Records) -> Result<(), Failed> {
    for round in 1..=plan.rounds {
        for system in plan.systems.iter().filter(|system| system.also.latency) {
            let text = format!("latency · round {round} · {}, {}", system.name, system.setting);
            plan.next(text.clone());
            plan.done(&text, measure(plan, system, round, records).await);
        }
    }
    Ok(())
}

async fn measure(plan: &Plan, system: &System, round: u32, records: &mut Records) -> Result<String, Failed> {
    let place = Place { credit: CREDIT, workers: 1, acks_answered: false, ..plan.place.clone() };
    let mut texts = Vec::new();
    for rate in &plan.rates {
        // A server of its own for each rate: one that fell behind would begin the next with a backlog.
        let running = system.start(&plan.found, &place).await?;
        let seconds = (plan.seconds.ceil() as u64).max(1);
        let asked = latency::Plan { rate: *rate, seconds, payload_bytes: plan.load.payload_bytes };
        let core_to_core = cores::round_trip_ns();
        let (before, own) = (running.server.usage().cpu_s, usage(std::process::id())?.cpu_s);
        let outcome = latency::of_peer(&running, asked).await?;
        let used = running.server.usage();
        let mut figures: BTreeMap<String, f64> = values([
            ("server_cpu_s", used.cpu_s - before),
            ("server_peak_mib", used.peak_mib),
            ("generator_cpu_s", usage(std::process::id())?.cpu_s - own),
        ]);
        figures.extend(core_to_core.map(|ns| (cores::FIGURE.to_owned(), ns)));
        match outcome {
            Outcome::Behind { achieved_per_s } => {
                texts.push(format!("cannot keep {rate}/s ({} achieved)", thousands(achieved_per_s)));
                figures.insert("kept".to_owned(), 0.0);
                figures.insert("achieved_per_s".to_owned(), achieved_per_s);
            }
            Outcome::Kept(histogram) => {
                let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
                texts.push(format!("{rate}/s p50 {:.0} p99 {:.0} µs", at(0.5), at(0.99)));
                figures.insert("kept".to_owned(), 1.0);
                figures.insert("achieved_per_s".to_owned(), *rate as f64);
                figures.extend(QUANTILES.iter().map(|(quantile, name)| ((*name).to_owned(), at(*quantile))));
                figures.insert("max_us".to_owned(), histogram.max() as f64 / 1000.0);
            }
        }
        let load = format!("{}/s", thousands(*rate as f64));
        records.add(Record { load, ..plan.record("latency", system, round, figures) })?;
    }
    Ok(texts.join(", "))
}
