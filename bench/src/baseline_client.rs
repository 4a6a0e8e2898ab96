//! The bare client that deliveries are measured against: posts one body, with a signature for each, as fast as the
//! receiver answers.

use anyhow::Context as _;
use jiff::Timestamp;
use reqwest::Client;
use tokio::task::JoinSet;
use weft_nats::envelope;
use weft_worker::destination::signature::Signer;

use super::{append::body, preload::Preload};
use weft_services::failure::Failure;

/// Environment variable of the secret.
pub const SECRET_VARIABLE: &str = "WEFT_BENCH_SECRET";

/// `weft bench post`: started by `weft bench worker http`.
#[derive(Debug, clap::Args)]
pub struct BaselineClientArgs {
    /// Where to
    #[arg(long)]
    url: String,
    /// Requests in flight
    #[arg(long)]
    connections: usize,
    /// Bytes of the event's body in its envelope
    #[arg(long)]
    payload: usize,
    /// The receiver's secret
    #[arg(long, env = SECRET_VARIABLE, hide_env_values = true)]
    secret: String,
}

/// Posts until it is killed.
///
/// # Errors
///
/// [`Failure`]: a request that was not taken.
pub async fn run(args: BaselineClientArgs) -> Result<(), Failure> {
    let signer = Signer::new(&[args.secret], weft_proto::v1::HttpSignature::V1).map_err(|error| Failure::of(&error))?;
    let event = Preload { workflows: 1, payload: args.payload }.event(1, &body(args.payload))?;
    let (id, body) = (event.id.to_string(), envelope::to_json(&event));
    let client = Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .pool_max_idle_per_host(args.connections)
        .build()
        .map_err(|error| Failure::of(&error))?;
    let url: reqwest::Url = args.url.parse().context("--url")?;
    let mut posts = JoinSet::new();
    for _ in 0..args.connections {
        let (client, url, signer, id, body) = (client.clone(), url.clone(), signer.clone(), id.clone(), body.clone());
        posts.spawn(async move {
            loop {
                let timestamp = Timestamp::now().as_second();
                let request = client
                    .post(url.clone())
                    .header("content-type", "application/json")
                    .header("webhook-id", &id)
                    .header("webhook-timestamp", timestamp)
                    .header("webhook-signature", signer.sign(&id, timestamp, &body).unwrap_or_default())
                    .body(body.clone());
                let answer = request.send().await?.error_for_status()?;
                answer.bytes().await?;
            }
        });
    }
    let ended: Option<Result<Result<(), reqwest::Error>, _>> = posts.join_next().await;
    match ended {
        Some(Ok(Err(error))) => Err(Failure::of(&error)),
        _ => Err(Failure::Failed("it has stopped posting".into())),
    }
}
