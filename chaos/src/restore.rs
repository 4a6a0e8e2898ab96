//! The last phase of a run on one node: EVENTS is put back to a copy of the middle of the run, everything else stays.
//!
//! What relied on the lost part must say so instead of going on; `weft shard adopt` makes it go on; then what is sent from
//! there on must keep every promise.

use std::{collections::HashSet, fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};

use crate::{
    collect::Collector,
    faults::Injector,
    judge::{self, Rule, Violation},
    mesh::{TOKEN, store},
    plan::Node,
    receiver::Receiver,
    record::{Millis, Records},
    senders::Senders,
};

/// Folder of the copy in the run's folder.
const COPY: &str = "events-of-the-middle";
/// Folder of the streams in a store.
const STREAMS: &str = "jetstream/$G/streams";
/// Longest time until the restored stream is noticed.
const NOTICE_PATIENCE: Duration = Duration::from_secs(60);
/// Traffic before and after the adoption.
const TRAFFIC: Duration = Duration::from_secs(8);
/// Longest time until the new events are delivered.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(90);

/// Copies the EVENTS streams of a server that does not run.
pub fn copy_events(folder: &Path) -> anyhow::Result<()> {
    let (streams, copy) = (store(folder, 0).join(STREAMS), folder.join(COPY));
    fs::create_dir_all(&copy)?;
    for name in events_streams(&streams)? {
        copy_folder(&streams.join(&name), &copy.join(&name))?;
    }
    Ok(())
}

/// Replaces the EVENTS streams of a server that does not run by the copy.
fn put_back(folder: &Path) -> anyhow::Result<()> {
    let (streams, copy) = (store(folder, 0).join(STREAMS), folder.join(COPY));
    for name in events_streams(&copy)? {
        fs::remove_dir_all(streams.join(&name))?;
        copy_folder(&copy.join(&name), &streams.join(&name))?;
    }
    Ok(())
}

fn events_streams(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<anyhow::Result<_>>()?;
    Ok(names.into_iter().filter(|name| name.starts_with("EVENTS")).collect())
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// What the phase needs of the run.
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
        let folder = self.injector.mesh.layout.folder.clone();
        if !folder.join(COPY).exists() {
            println!("no restore: the run was too short for a copy of its middle");
            return Ok(Vec::new());
        }
        let mut server = self.injector.mesh.process(Node::Server(0)).lock().await;
        server.terminate().await.ok();
        put_back(&folder)?;
        server.start()?;
        drop(server);
        let restored_at = self.injector.clock.now();
        println!("EVENTS restored at {restored_at} ms");
        let mut found = self.notice().await;
        if !self.adopt().await? {
            return Ok(found);
        }
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

    /// Waits until a role says that the log is another.
    async fn notice(&self) -> Vec<Violation> {
        let deadline = tokio::time::Instant::now() + NOTICE_PATIENCE;
        loop {
            let said = self.injector.mesh.said().await;
            if let Some((role, body)) = said.iter().find(|(_, body)| body.contains("EVENTS") || body.contains("adopt"))
            {
                println!("noticed by {role}: {}", body.trim().replace('\n', "; "));
                return Vec::new();
            }
            if tokio::time::Instant::now() > deadline {
                return vec![Violation::of_process("no role notices that EVENTS was restored to an earlier state")];
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Adopts every shard by the command; `false` where this version has none.
    async fn adopt(&self) -> anyhow::Result<bool> {
        for shard in 0..self.injector.mesh.layout.shards {
            let shard = shard.to_string();
            let dry: std::process::Output =
                self.weft(&["shard", "adopt", &shard, "--dry-run", "--reason", "chaos"]).await?;
            if dry.status.code() == Some(2) {
                println!("no adoption: this version has no `weft shard adopt`");
                return Ok(false);
            }
            println!("dry run: {}", String::from_utf8_lossy(&dry.stdout).trim().replace('\n', "; "));
            let adopted = self.weft(&["shard", "adopt", &shard, "--yes", "--reason", "chaos"]).await?;
            let said = String::from_utf8_lossy(&adopted.stderr).trim().to_owned();
            ensure!(adopted.status.success(), "weft shard adopt {shard}: {said}");
        }
        Ok(true)
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
