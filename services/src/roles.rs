//! Roles as tasks of one process: started one by one, watched together, drained in the order in which they were started.

use std::{collections::HashMap, future::Future, io, net::SocketAddr, time::Duration};

use tokio::{
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use weft_nats::error_chain::in_one_line;
use weft_tls::BindError;

use crate::{
    failure::Failure,
    health_http::Readiness,
    ready_output::{self, Line},
    traces::Exporter,
};

/// How long one role may drain: longer than a request may wait for the log, or an attempt for its receiver by default.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// The roles of this process.
#[derive(Debug, Default)]
pub struct Roles {
    tasks: JoinSet<Result<(), String>>,
    names: HashMap<Id, &'static str>,
    /// How long each may drain.
    patience: HashMap<Id, Duration>,
    /// In the order in which they drain.
    running: Vec<(Id, CancellationToken)>,
}

impl Roles {
    /// Starts a role; `run` gets its drain token. An end before that is a failure of the process.
    pub fn start<F, E>(&mut self, name: &'static str, run: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + 'static,
    {
        self.start_with_delay(name, Duration::ZERO, run);
    }

    /// As [`start`](Self::start), for a role that continues for `delay` before it drains.
    pub fn start_with_delay<F, E>(
        &mut self,
        name: &'static str,
        delay: Duration,
        run: impl FnOnce(CancellationToken) -> F,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + 'static,
    {
        let drain = CancellationToken::new();
        let role = run(drain.clone());
        let task = self.tasks.spawn(async move { role.await.map_err(|error| in_one_line(&error)) });
        self.names.insert(task.id(), name);
        self.patience.insert(task.id(), DRAIN_MAX + delay);
        self.running.push((task.id(), drain));
    }

    /// Prints `lines` once everything is ready. Waits for `drain`, or until a role ends unexpectedly; then drains the roles one
    /// after the other.
    ///
    /// # Errors
    ///
    /// The first failure: a role that ended unexpectedly, or one that did not drain in time.
    pub async fn serve(self, drain: &CancellationToken, readiness: &Readiness, lines: &[Line]) -> Result<(), Failure> {
        let result = tokio::select! {
            result = self.run(drain) => result,
            () = ready_output::when_ready(readiness, lines) => Ok(()),
        };
        if result.is_ok() {
            tracing::info!("drained; everything that was accepted is on disk");
        }
        result
    }

    async fn run(mut self, drain: &CancellationToken) -> Result<(), Failure> {
        let mut failure = None;
        tokio::select! {
            () = drain.cancelled() => {}
            Some(ended) = self.tasks.join_next_with_id() => {
                let (id, problem) = self.ended(ended);
                self.running.retain(|(running, _)| *running != id);
                failure = Some(problem.unwrap_or_else(|| format!("{} ended unexpectedly", self.names[&id])));
            }
        }
        for (id, token) in std::mem::take(&mut self.running) {
            token.cancel();
            let problem = self.drained(id).await;
            failure = failure.or(problem);
        }
        failure.map_or(Ok(()), |problem| Err(Failure::Failed(problem)))
    }

    /// Waits for one role's end; what went wrong with it.
    async fn drained(&mut self, wanted: Id) -> Option<String> {
        let name = self.names[&wanted];
        let patience = self.patience.get(&wanted).copied().unwrap_or(DRAIN_MAX);
        let end = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                let (id, problem) = self.ended(ended);
                if id == wanted {
                    return problem;
                }
            }
            None
        };
        match timeout(patience, end).await {
            Ok(problem) => problem,
            Err(_) => Some(format!("{name} did not drain within {} s; what was accepted is kept", patience.as_secs())),
        }
    }

    fn ended(&self, ended: Result<(Id, Result<(), String>), JoinError>) -> (Id, Option<String>) {
        match ended {
            Ok((id, result)) => (id, result.err().map(|problem| format!("{}: {problem}", self.names[&id]))),
            Err(error) => (error.id(), Some(format!("{} broke off: {error}", self.names[&error.id()]))),
        }
    }
}

/// The failure of a port that cannot be bound, or not with its certificate: what to do about it.
pub fn bind_failure(role: &str, listen: SocketAddr, error: &BindError) -> Failure {
    let error = match error {
        BindError::Listen(error) => error,
        BindError::Tls(error) => return Failure::Failed(format!("[{role}] {error}")),
    };

    let choose = format!("choose another with [{role}] listen or WEFT_{}__LISTEN", role.to_ascii_uppercase());
    Failure::Failed(match error.kind() {
        io::ErrorKind::AddrInUse => format!("address in use: {listen}; {choose}"),
        _ => format!("cannot listen on {listen}: {error}; {choose}"),
    })
}

/// Ends what outlives the roles, after the signal to stop: nothing of the ops endpoints matters any more.
pub async fn finish(ops: JoinHandle<()>, exporter: Option<Exporter>) {
    let _ = ops.await;
    if let Some(exporter) = exporter {
        exporter.stop().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn roles_drain_in_order() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut roles = Roles::default();
        for name in ["gateway", "worker", "admin"] {
            let order = order.clone();
            roles.start(name, move |drain| async move {
                drain.cancelled().await;
                order.lock().unwrap().push(name);
                Ok::<(), io::Error>(())
            });
        }
        let drain = CancellationToken::new();
        drain.cancel();
        roles.run(&drain).await.unwrap();
        assert_eq!(*order.lock().unwrap(), ["gateway", "worker", "admin"]);
    }

    /// A role that gives up takes the process with it, and the others still drain.
    #[tokio::test]
    async fn a_role_that_ends_ends_the_process() {
        let drained = CancellationToken::new();
        let mut roles = Roles::default();
        let flag = drained.clone();
        roles.start("gateway", move |drain| async move {
            drain.cancelled().await;
            flag.cancel();
            Ok::<(), io::Error>(())
        });
        roles.start("worker", |_| async { Err(io::Error::other("2 shards here, 1 in the log")) });
        let failure = roles.run(&CancellationToken::new()).await.unwrap_err();
        assert_eq!(failure.to_string(), "worker: 2 shards here, 1 in the log");
        assert!(drained.is_cancelled());
    }

    #[test]
    fn a_taken_port_says_how_to_choose_another() {
        let error = io::Error::from(io::ErrorKind::AddrInUse).into();
        let failure = bind_failure("gateway", "127.0.0.1:8080".parse().unwrap(), &error);
        assert_eq!(
            failure.to_string(),
            "address in use: 127.0.0.1:8080; choose another with [gateway] listen or WEFT_GATEWAY__LISTEN"
        );
    }
}
