//! The last phase of a run: EVENTS is put back to a copy of the middle of the run, everything else stays.
//!
//! Processes that relied on the lost part must report it and stop; `weft shard adopt` lets them continue; deliveries sent
//! from then on must keep every promise.

use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};

use crate::{
    collect::Collector,
    events_copy::put_back,
    faults::Injector,
    judge::{self, Rule, Violation},
    mesh::TOKEN,
    plan::Node,
    receiver::Receiver,
    record::{Millis, Records},
    senders::Senders,
    snapshot,
};

/// Longest time until the restored stream is noticed: of a cluster that is believed after 30 s.
const NOTICE_PATIENCE: Duration = Duration::from_secs(90);
/// Traffic before and after the adoption.
const TRAFFIC: Duration = Duration::from_secs(8);
/// Longest time until the new events are delivered.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(90);

/// The parts of the run that the phase uses.
pub struct Phase<'a> {
    /// Processes.
    pub injector: &'a Arc<Injector>,
    /// Senders.
    pub senders: &'a Arc<Senders>,
    /// Receivers, which take everything by now.
    pub receiver: &'a Receiver,
    /// Addresses of the servers.
    pub servers: Vec<String>,
    /// Deliveries a second.
    pub rate: u64,
}

impl Phase<'_> {
    /// Restores, adopts, sends, and judges; violations are those of the time from the restore on.
    pub async fn run(&self, before: &Records) -> anyhow::Result<Vec<Violation>> {
        self.restore().await?;
        let restored_at = self.injector.clock.now();
        println!("EVENTS restored at {restored_at} ms");
        let mut found = self.notice().await;
        self.adopt().await?;
        if let Err(problem) = self.injector.mesh.ready(DELIVERY_PATIENCE).await {
            found.push(Violation::of_process(&format!("not ready after the adoption: {problem:#}")));
            return Ok(found);
        }
        let until = self.injector.clock.now() + crate::clock::millis(TRAFFIC);
        self.senders.send(self.rate, until).await;
        self.senders.finish(DELIVERY_PATIENCE).await;
        found.extend(self.judge(before, restored_at).await?);
        Ok(found)
    }

    /// Replaces EVENTS by the copy of the middle of the run.
    async fn restore(&self) -> anyhow::Result<()> {
        let mesh = &self.injector.mesh;
        if mesh.layout.servers > 1 {
            let snapshots = self.injector.snapshots.lock().await;
            ensure!(!snapshots.is_empty(), "there is no snapshot");
            let client = snapshot::connect(mesh.servers()).await?;
            for snapshot in snapshots.iter() {
                snapshot.restore(&client).await?;
            }
            return Ok(());
        }
        let mut server = mesh.process(Node::Server(0)).lock().await;
        server.terminate().await.ok();
        put_back(&mesh.layout.folder)?;
        server.start()
    }

    /// Waits until a role reports that the log has changed.
    async fn notice(&self) -> Vec<Violation> {
        let deadline = tokio::time::Instant::now() + NOTICE_PATIENCE;
        loop {
            let said = self.injector.mesh.said().await;
            if let Some((role, body)) = said.iter().find(|(_, body)| body.contains("stopped: EVENTS")) {
                println!("noticed by {role}: {}", body.trim().replace('\n', "; "));
                return Vec::new();
            }
            if tokio::time::Instant::now() > deadline {
                return vec![Violation::of_process("no role notices that EVENTS was restored to an earlier state")];
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Adopts every shard by the command.
    async fn adopt(&self) -> anyhow::Result<()> {
        for shard in 0..self.injector.mesh.layout.shards {
            let shard = shard.to_string();
            let dry = self.weft_until_done(&["shard", "adopt", &shard, "--dry-run", "-o", "table"]).await?;
            println!("dry run: {}", dry.lines().filter(|line| !line.starts_with("  ")).collect::<Vec<_>>().join("; "));
            self.weft_until_done(&["shard", "adopt", &shard, "--yes", "--reason", "chaos"]).await?;
        }
        Ok(())
    }

    /// Repeats a command while it exits with the code for "try again", as an operator does, and returns its output.
    async fn weft_until_done(&self, args: &[&str]) -> anyhow::Result<String> {
        const TRY_AGAIN: i32 = 4;
        let deadline = tokio::time::Instant::now() + NOTICE_PATIENCE;
        loop {
            let output = self.weft(args).await?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            let is_transient = output.status.code() == Some(TRY_AGAIN);
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            ensure!(is_transient && tokio::time::Instant::now() < deadline, "weft {}: {said}", args.join(" "));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn weft(&self, args: &[&str]) -> anyhow::Result<std::process::Output> {
        let server = format!("http://{}", self.injector.mesh.network.listeners(Node::Admin).api);
        let command = tokio::process::Command::new(&self.injector.mesh.layout.weft)
            .args(args)
            .args(["--server", &server, "--token", TOKEN])
            .output();
        Ok(tokio::time::timeout(DELIVERY_PATIENCE, command).await.context("weft shard adopt does not end")??)
    }

    /// The log as it is now, with what was sent for it; and every new event must reach the subscription of all events.
    async fn judge(&self, before: &Records, restored_at: Millis) -> anyhow::Result<Vec<Violation>> {
        let layout = &self.injector.mesh.layout;
        let deadline = tokio::time::Instant::now() + DELIVERY_PATIENCE;
        let mut collector = Collector::connect(self.servers.clone(), layout.shards, self.injector.clock).await?;
        let mut submissions = self.senders.take();
        loop {
            collector.read().await?;
            let arrivals = self.receiver.arrivals();
            let taken: HashSet<&str> = arrivals
                .iter()
                .filter(|one| one.at >= restored_at && one.subscription == "main" && one.reply.taken())
                .map(|one| one.event_id.as_str())
                .collect();
            let new = collector.log.iter().filter(|event| event.at >= restored_at);
            let missing: Vec<Violation> = new
                .filter(|event| !taken.contains(event.event_id.as_str()))
                .map(|event| {
                    Violation::after_restore(Rule::NoOutcome, &event.event_id, "never delivered after the restore")
                })
                .collect();
            if missing.is_empty() || tokio::time::Instant::now() > deadline {
                // What was lost with the log is no violation: only what it holds is compared.
                let held: HashSet<&str> = collector.log.iter().map(|event| event.delivery.as_str()).collect();
                let kept = before.submissions.iter().filter(|one| held.contains(one.delivery.as_str()));
                submissions.extend(kept.cloned());
                let faults = self.injector.faults();
                let records = Records { submissions, log: collector.log, faults, ..Records::default() };
                return Ok(judge::judge_log(&records).into_iter().chain(missing).collect());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
