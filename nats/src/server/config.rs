//! The configuration of the embedded server: generated again at each start, since it holds the port and the passwords.
//! Its form is JSON, which nats-server's own language includes.

use std::{ffi::OsString, fs, io, path::Path};

use serde_json::{Value, json};

use super::{
    ServerError, ServerOptions, Users,
    accounts::Home,
    folder::{Folder, failed, write_private},
};
use crate::{options::Span, subject::Layout};

/// The account of servers without accounts.
const GLOBAL_ACCOUNT: &str = "$G";
/// Memory streams and consumers: readers' consumers are there, and no stream of ours.
const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// The server's arguments. A process left over is recognised by them.
pub(super) fn arguments(folder: &Folder) -> [OsString; 2] {
    ["--config".into(), folder.config().into()]
}

/// Writes the configuration.
pub(super) fn write(folder: &Folder, options: &ServerOptions, port: u16, users: &Users) -> Result<(), ServerError> {
    let store = folder.store();
    fs::create_dir_all(&store).map_err(|source| failed(&store, source))?;
    let text = |path: std::path::PathBuf| {
        path.into_os_string().into_string().map_err(|path| {
            failed(path.as_ref(), io::Error::new(io::ErrorKind::InvalidFilename, "its name is not UTF-8"))
        })
    };
    move_streams(&store).map_err(|source| failed(&store, source))?;
    let config = render(&Values {
        port,
        pid_file: text(folder.pid())?,
        store_dir: text(store)?,
        store_bytes_max: folder.store_bytes_max()?,
        max_payload: max_payload(folder, options.max_payload),
        sync_interval: sync_interval(&options.log.fsync),
        accounts: users.config(Layout::new(options.log.shards), &options.publish),
    });
    let config = serde_json::to_string_pretty(&config).expect("a JSON value is JSON");
    write_private(&folder.config(), &config)
}

/// Moves the streams of a store that was made when the server had one account to the accounts that hold them now.
fn move_streams(store: &Path) -> io::Result<()> {
    let jetstream = store.join("jetstream");
    let Ok(entries) = fs::read_dir(jetstream.join(GLOBAL_ACCOUNT).join("streams")) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let Some(home) = entry.file_name().to_str().and_then(Home::of) else { continue };
        let streams = jetstream.join(home.account()).join("streams");
        let to = streams.join(entry.file_name());
        if !to.exists() {
            fs::create_dir_all(&streams)?;
            fs::rename(entry.path(), to)?;
        }
    }
    Ok(())
}

/// `max_payload` in bytes: as wanted, and never less than before. A message that was stored under a larger one is published
/// again when it becomes a dead letter's copy.
fn max_payload(folder: &Folder, wanted: u64) -> u64 {
    let before = fs::read(folder.config()).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let before = before.and_then(|config| config.get("max_payload")?.as_u64()).unwrap_or(0);
    if before > wanted {
        tracing::info!(
            max_payload = before,
            wanted,
            "max_payload stays as it was, since messages of that size may be stored"
        );
    }
    before.max(wanted)
}

struct Values {
    port: u16,
    pid_file: String,
    store_dir: String,
    store_bytes_max: u64,
    max_payload: u64,
    sync_interval: String,
    accounts: Value,
}

fn render(values: &Values) -> Value {
    json!({
        "server_name": "weft",
        "host": "127.0.0.1",
        "port": values.port,
        "pid_file": values.pid_file,
        "max_payload": values.max_payload,
        // Our own log has the time of every line.
        "logtime": false,
        "jetstream": {
            "store_dir": values.store_dir,
            "sync_interval": values.sync_interval,
            "max_file_store": values.store_bytes_max,
            "max_memory_store": MEMORY_BYTES_MAX,
        },
        "accounts": values.accounts,
    })
}

/// `[log] fsync` in the server's words: it knows neither days nor spaces.
fn sync_interval(fsync: &str) -> String {
    fsync.parse::<Span>().map_or_else(|_| fsync.to_owned(), |interval| format!("{}ms", interval.0.as_millis().max(1)))
}
