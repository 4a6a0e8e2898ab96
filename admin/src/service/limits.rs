//! Ages of the log's streams and the size of the history, as metrics: how near they are to their limits.

use std::{path::PathBuf, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use weft_nats::{
    connect::Connection,
    direct,
    streams::{self, Usage},
    subject::Layout,
};

/// Interval of measurements.
const INTERVAL: Duration = Duration::from_secs(15);
const OLDEST: &str = "weft_admin_stream_oldest_age_seconds";
const AGE_MAX: &str = "weft_admin_stream_retention_seconds";
const HISTORY: &str = "weft_admin_history_file_bytes";

/// Says what the metrics mean.
pub(super) fn describe() {
    metrics::describe_gauge!(OLDEST, "age of the oldest message of a stream; 0: it is empty");
    metrics::describe_gauge!(AGE_MAX, "age at which a stream drops a message; 0: never");
    metrics::describe_gauge!(HISTORY, "size of the file of the admin's history");
}

/// Measures until `stop`.
pub(super) async fn watch(connection: Connection, layout: Layout, folder: PathBuf, stop: CancellationToken) {
    describe();
    let streams: Vec<String> = layout.streams().map(|(stream, _)| stream).collect();
    let measuring = async {
        loop {
            for stream in &streams {
                if let Err(problem) = measure(&connection, stream).await {
                    tracing::debug!(stream, problem, "a stream cannot be measured");
                }
            }
            let size = std::fs::metadata(folder.join("history.redb")).map_or(0, |metadata| metadata.len());
            metrics::gauge!(HISTORY).set(size as f64);
            sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        () = measuring => {}
        () = stop.cancelled() => {}
    }
}

async fn measure(connection: &Connection, stream: &str) -> Result<(), String> {
    let usage = streams::usage(connection, stream).await.map_err(|error| error.to_string())?;
    let Usage { first, age_max, .. } = usage;
    let oldest = direct::range(connection, stream, first, ">", 1, 1).await.map_err(|error| error.to_string())?;
    let now = connection.server_clock().now();
    let age = oldest.first().map_or(0.0, |oldest| now.duration_since(oldest.stored_at).as_secs_f64().max(0.0));
    let label = stream.to_owned();
    metrics::gauge!(OLDEST, "stream" => label.clone()).set(age);
    metrics::gauge!(AGE_MAX, "stream" => label).set(age_max.as_secs_f64());
    Ok(())
}
