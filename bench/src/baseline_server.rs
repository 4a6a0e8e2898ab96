//! The bounds that a gateway is measured against: the same server, bodies, verification and identification, and an answer
//! without a log, or as soon as the event is appended, which nothing is decided about.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use http::StatusCode;
use jiff::Timestamp;
use weft_gateway::{
    http::{body, error::Problem},
    identify,
    sequencer::{NewEvent, SubmitError},
};
use weft_nats::{connect::Connection, options::NatsOptions, subject::Layout};
use weft_proto::{ids::SequenceNumber, v1::Source};
use weft_schemes::Verifier;
use weft_serve::Connections;
use weft_tls::{Listener, TlsOptions};

use super::{
    baseline_client::SECRET_VARIABLE,
    group::{Gather, Group},
};
use weft_services::{config::Config, failure::Failure, mesh::Wiring, signal};

/// Connections at a time: as many as a gateway accepts.
const CONNECTIONS_MAX: usize = 8192;

/// `weft bench answer`: started by `weft bench accept`.
#[derive(Debug, clap::Args)]
pub struct BaselineServerArgs {
    /// The senders' secret
    #[arg(long, env = SECRET_VARIABLE, hide_env_values = true)]
    secret: String,
    /// Append each event before it is answered, to a log of one shard on the server that WEFT_NATS__URL names, in groups
    /// of this number
    #[arg(long, value_name = "CALLERS")]
    append: Option<usize>,
}

struct Shared {
    log: Option<Log>,
    verifier: Verifier,
    rules: identify::Rules,
    bodies: body::Reader,
}

struct Log {
    layout: Layout,
    group: Group,
}

/// Serves until a signal.
///
/// # Errors
///
/// [`Failure`]: no port, or a secret that is none.
pub async fn run(args: BaselineServerArgs) -> Result<(), Failure> {
    let wiring = Wiring { sender_secret: args.secret, ..Wiring::new() };
    let variables = Config::variables().map_err(|error| Failure::of(&error))?;
    let config =
        Config::parse("bench".as_ref(), wiring.config(None), variables, None).map_err(|error| Failure::of(&error))?;
    let source: &Source = config.catalog.sources.first().ok_or_else(|| Failure::Failed("no source".into()))?;
    let verifier = Verifier::compile(source).map_err(|error| Failure::of(&error))?;
    let rules = identify::Rules::compile(source).map_err(Failure::Failed)?;
    let limits = body::Limits { bytes_max: 1 << 20, time: std::time::Duration::from_secs(30), depth_max: 512 };
    let log = match args.append {
        Some(callers) => Some(Log::open(&config.nats, callers).await?),
        None => None,
    };
    let shared = Arc::new(Shared { log, verifier, rules, bodies: body::Reader::new(limits) });
    let router = Router::new().route("/api/v1/webhooks/{source}/{workflow}", post(answer)).with_state(shared);
    let drain = signal::drain_token().map_err(|error| Failure::of(&error))?;
    let listen = ([127, 0, 0, 1], 0).into();
    let listener = Listener::bind(listen, &TlsOptions::default()).await.map_err(|error| Failure::of(&error))?;
    println!("answer http://{}\nready", listener.local_addr);
    let connections = Connections::within_descriptors(CONNECTIONS_MAX, 2);
    weft_serve::serve(listener, router, weft_serve::Options::new("bench", connections), drain).await;
    Ok(())
}

impl Log {
    async fn open(options: &NatsOptions, callers: usize) -> anyhow::Result<Self> {
        let connection = Connection::connect(options, "weft-bench-answer").await?;
        connection.connected().await;
        let layout = Layout::new(1);
        // Should it fail, so does every request from then on.
        let (group, _) = Group::start(connection, layout, callers, Gather::All(callers)).await?;
        Ok(Self { layout, group })
    }

    async fn append(&self, event: NewEvent) -> Result<(), Problem> {
        let message = event.numbered(SequenceNumber(1), None).encode(self.layout);
        self.group.append(message).await.map_err(|_| SubmitError::Unavailable.into())
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Path((_, workflow)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let body = shared.bodies.read(&head, body, None).await?;
    let received_at = Timestamp::now();
    let verified = shared.verifier.verify(&head.headers, &body.bytes, received_at)?;
    let event = shared.rules.identify(&identify::Request {
        path_workflow: Some(&workflow),
        headers: &head.headers,
        body: &body.bytes,
        verified: &verified,
        received_at,
    })?;
    let receipt = serde_json::json!({
        "eventId": event.id,
        "sequenceNumber": 1,
        "workflowId": event.workflow,
        "previousEventId": null,
        "duplicate": false,
    });
    if let Some(log) = &shared.log {
        log.append(event).await?;
    }
    Ok((StatusCode::ACCEPTED, Json(receipt)).into_response())
}
