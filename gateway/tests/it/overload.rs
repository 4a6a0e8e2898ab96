//! More than the log takes: the rest is refused at once, all senders are answered in time, and the overload is transient.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::{
    http::{Answer, send, webhook},
    mesh::{Mesh, PATIENCE},
};

/// Bytes of each body: 64 MiB may wait in a shard, so a fraction of [`REQUESTS`] fills it.
const BODY_BYTES: usize = 512 * 1024;
const REQUESTS: usize = 200;
/// How long a submission waits for the log: one without a place is refused before.
const DEADLINE: Duration = Duration::from_secs(5);

/// While the log is paused, submissions with a place wait for their deadline and the rest is refused at once, so memory is
/// bounded; when the log resumes, so does everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_stands_still_is_answered_in_time() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let to = gateway.address;
    mesh.server.pause();
    let filler = "x".repeat(BODY_BYTES);
    let mut requests = JoinSet::new();
    for n in 0..REQUESTS {
        let body = format!(r#"{{"type":"t","workflow":"w{n}","filler":"{filler}"}}"#);
        requests.spawn(async move {
            let request = webhook("shop", &format!("evt_{n}"), &body);
            let asked = Instant::now();
            (send(to, &request).await.unwrap(), asked.elapsed())
        });
    }
    let answers: Vec<(Answer, Duration)> = requests.join_all().await;
    let of = |code: &str| answers.iter().filter(|(answer, _)| answer.code() == code).collect::<Vec<_>>();
    let (overloaded, unavailable) = (of("overloaded"), of("log_unavailable"));
    assert_eq!(overloaded.len() + unavailable.len(), REQUESTS);
    assert!(!overloaded.is_empty() && !unavailable.is_empty());
    // All of them were sent at once: on a busy machine the last are read late, and the first are not.
    assert!(overloaded.iter().any(|(_, took)| *took < DEADLINE), "refused at once");
    assert!(answers.iter().all(|(answer, took)| answer.headers.contains_key("retry-after") && *took < 6 * DEADLINE));
    mesh.server.resume();
    let healed = weft_testkit::eventually(PATIENCE, async || {
        let answer = send(to, &webhook("shop", "after", r#"{"type":"t","workflow":"after"}"#)).await.unwrap();
        matches!(answer.status, 200 | 202)
    });
    assert!(healed.await);
    gateway.drained().await;
}
