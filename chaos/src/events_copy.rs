//! Copies and snapshots of EVENTS, taken in the middle of a run and put back at its end.

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;

use crate::{
    mesh::{Mesh, store},
    snapshot::{self, Snapshot},
};

/// Folder of the copy in the run's folder.
const COPY: &str = "events-of-the-middle";
/// Folder of the streams in a store.
const STREAMS: &str = "jetstream/$G/streams";
/// Longest time until a snapshot is taken: longer than any fault.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(60);

/// Copies the EVENTS streams of a server that does not run.
pub fn copy_events(folder: &Path) -> anyhow::Result<()> {
    let (streams, copy) = (store(folder, 0).join(STREAMS), folder.join(COPY));
    fs::create_dir_all(&copy)?;
    for name in events_streams(&streams)? {
        copy_folder(&streams.join(&name), &copy.join(&name))?;
    }
    Ok(())
}

/// Takes snapshots of the EVENTS streams, once the servers let it.
pub async fn take_snapshots(mesh: &Mesh, snapshots: &tokio::sync::Mutex<Vec<Snapshot>>) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + SNAPSHOT_PATIENCE;
    loop {
        let taken = async {
            let client = snapshot::connect(mesh.servers()).await?;
            let mut taken = Vec::new();
            for stream in mesh.events_streams() {
                taken.push(Snapshot::take(&client, &stream).await?);
            }
            Ok::<_, anyhow::Error>(taken)
        };
        match taken.await {
            Ok(taken) => {
                *snapshots.lock().await = taken;
                return Ok(());
            }
            Err(problem) if tokio::time::Instant::now() > deadline => return Err(problem.context("snapshot")),
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Replaces the EVENTS streams of a server that does not run by the copy.
pub fn put_back(folder: &Path) -> anyhow::Result<()> {
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
