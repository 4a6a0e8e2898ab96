//! The cost of delivering a filled log to a worker, from its outcomes.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Bench, outcomes::Outcomes, pid_of};
use crate::cpu;

/// The rate of a client, and its CPU time for an event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Phase {
    /// Such as `delivered by the worker`.
    pub name: &'static str,
    /// Events.
    pub per_second: f64,
    /// Microseconds.
    pub cpu_us: f64,
}

impl Phase {
    /// A phase in which these events took this time.
    pub fn new(name: &'static str, events: u64, elapsed: Duration, cpu_seconds: f64) -> Self {
        let events = events as f64;
        Self { name, per_second: events / elapsed.as_secs_f64(), cpu_us: cpu_seconds * 1e6 / events }
    }

    /// As a row of a table.
    pub fn cells(&self) -> Vec<String> {
        vec![self.name.to_owned(), format!("{:.0}", self.per_second), format!("{:.1}", self.cpu_us)]
    }
}

/// Runs a worker until each of the log's events has its outcome. The first tenth does not count: the worker starts, connections
/// are made and caches filled.
pub async fn by_worker(bench: &Bench, name: &'static str, events: u64) -> anyhow::Result<Phase> {
    let mut outcomes = Outcomes::follow(&bench.nats, events).await?;
    let mut worker = bench.worker(&["worker"], "worker")?;
    outcomes.until(events / 10).await?;
    let (begun, cpu_before, started) = (outcomes.tally().once, cpu::seconds(pid_of(&worker)?)?, Instant::now());
    outcomes.until(events).await?;
    let (elapsed, used) = (started.elapsed(), cpu::seconds(pid_of(&worker)?)? - cpu_before);
    worker.stop().await?;
    Ok(Phase::new(name, events - begun, elapsed, used))
}
