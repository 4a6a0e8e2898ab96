//! The admin as an operator's client sees it. Calls are repeated with the same request id until they are answered.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use weft_proto::{
    v1::{self, catalog_service_client::CatalogServiceClient},
    words::{Word as _, word},
};

use crate::{
    mesh::TOKEN,
    record::{Counts, DeadLetter, Shown},
};

/// Longest time for one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest time for one call with its repeats: longer than any fault.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before a repeat.
const PAUSE: Duration = Duration::from_millis(300);
/// Longest step of a clock.
const STEPS_MAX: Duration = Duration::from_secs(2 * 86_400);
/// Items of a page.
const PAGE: u32 = 1000;
/// Largest answer.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A client.
#[derive(Debug, Clone)]
pub struct Admin {
    channel: Channel,
    authorization: MetadataValue<Ascii>,
}

impl Admin {
    /// A client of the admin at an address; connects when it is used.
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(Duration::from_secs(2));
        Ok(Self { channel: endpoint.connect_lazy(), authorization: format!("Bearer {TOKEN}").parse()? })
    }

    /// The catalog.
    pub fn catalog(&self) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(self.channel.clone())
    }

    /// Calls until there is an answer other than that the admin cannot answer now.
    pub async fn call<T, R, F>(
        &self,
        what: &str,
        message: &T,
        mut call: impl FnMut(Request<T>) -> F,
    ) -> anyhow::Result<R>
    where
        T: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut request = Request::new(message.clone());
            request.metadata_mut().insert("authorization", self.authorization.clone());
            let status = match tokio::time::timeout(CALL_TIMEOUT, call(request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer"),
            };
            let transient = matches!(
                status.code(),
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::Unknown
            );
            if !transient || tokio::time::Instant::now() > deadline {
                bail!("{what}: {}: {}", status.code(), status.message());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// All events of a workflow.
    pub async fn workflow(&self, workflow: &str) -> anyhow::Result<Vec<Shown>> {
        let client = v1::workflow_service_client::WorkflowServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request =
            v1::GetWorkflowRequest { workflow_id: workflow.to_owned(), page_size: PAGE, ..Default::default() };
        self.pages("GetWorkflow", request, |request| {
            let mut client = client.clone();
            async move { client.get_workflow(request).await }
        })
        .await?
        .into_iter()
        .map(|entry| {
            let event = entry.event.context("GetWorkflow: an entry without its event")?;
            Ok(Shown {
                event_id: event.event_id,
                workflow: event.workflow_id,
                number: event.sequence_number,
                previous: event.previous_event_id,
                status: word::<v1::EventStatus>(entry.status).to_owned(),
            })
        })
        .collect()
    }

    /// All dead letters, of every status.
    pub async fn dead_letters(&self) -> anyhow::Result<Vec<DeadLetter>> {
        let client = v1::dead_letter_service_client::DeadLetterServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let statuses = v1::DeadLetterStatus::ALL.iter().map(|status| (*status).into()).collect();
        let filter = v1::DeadLetterFilter { statuses, ..Default::default() };
        let request = v1::ListDeadLettersRequest { filter: Some(filter), page_size: PAGE, page_token: String::new() };
        let letters = self.pages("ListDeadLetters", request, |request| {
            let mut client = client.clone();
            async move { client.list_dead_letters(request).await }
        });
        let letters = letters.await?.into_iter().map(|letter| DeadLetter {
            subscription: letter.subscription,
            event_id: letter.event_id,
            number: letter.sequence_number,
            status: word::<v1::DeadLetterStatus>(letter.status).to_owned(),
        });
        Ok(letters.collect())
    }

    /// The counts of a source.
    pub async fn stats(&self, source: &str) -> anyhow::Result<Counts> {
        let client = v1::stats_service_client::StatsServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let now = SystemTime::now();
        // Outcomes are counted by the clocks of their workers, which are stepped.
        let request = v1::GetStatsRequest {
            since: now.checked_sub(STEPS_MAX).map(prost_types::Timestamp::from),
            until: now.checked_add(STEPS_MAX).map(prost_types::Timestamp::from),
            step_minutes: 0,
        };
        let answer = self.call("GetStats", &request, |request| {
            let mut client = client.clone();
            async move { client.get_stats(request).await }
        });
        let stats = answer.await?.stats.context("GetStats: no stats")?;
        let of_source = stats.sources.into_iter().find(|group| group.label == source);
        let counts = of_source.and_then(|group| group.counts).unwrap_or_default();
        let v1::StatsCounts { accepted, delivered, dead_lettered, discarded, resolved, unrouted, .. } = counts;
        Ok(Counts { accepted, delivered, dead_lettered, discarded, resolved, unrouted })
    }

    /// The items of all pages.
    async fn pages<T, R, F>(
        &self,
        what: &str,
        mut request: T,
        mut call: impl FnMut(Request<T>) -> F,
    ) -> anyhow::Result<Vec<R::Item>>
    where
        T: Paged + Clone,
        R: Page,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut items = Vec::new();
        loop {
            let (page, next) = self.call(what, &request, &mut call).await?.split();
            items.extend(page);
            if next.is_empty() {
                return Ok(items);
            }
            request.turn_to(next);
        }
    }

    /// Delivers all open dead letters of a subscription again; waits until each has been settled.
    ///
    /// # Errors
    ///
    /// When the call is refused, or does not end within `patience`.
    pub async fn redrive(
        &self,
        subscription: &str,
        patience: Duration,
    ) -> anyhow::Result<v1::RedriveDeadLettersResponse> {
        let client = v1::dead_letter_service_client::DeadLetterServiceClient::new(self.channel.clone());
        let filter = v1::DeadLetterFilter { subscription: subscription.to_owned(), ..Default::default() };
        let request = v1::RedriveDeadLettersRequest {
            filter: Some(filter),
            reason: "chaos".to_owned(),
            request_id: format!("redrive-{subscription}"),
            ..Default::default()
        };
        let whole = async {
            let mut progress = self
                .call("RedriveDeadLetters", &request, |request| {
                    let mut client = client.clone();
                    async move { client.redrive_dead_letters(request).await }
                })
                .await?;
            let mut last = v1::RedriveDeadLettersResponse::default();
            while let Some(message) = progress.message().await? {
                last = message;
            }
            Ok::<_, anyhow::Error>(last)
        };
        tokio::time::timeout(patience, whole).await.context("RedriveDeadLetters does not end")?
    }
}

/// A request for a page.
trait Paged {
    /// Asks for the page of this token.
    fn turn_to(&mut self, token: String);
}

/// A page.
trait Page {
    /// Type of its items.
    type Item;
    /// The items, and the token of the next page; empty: there is none.
    fn split(self) -> (Vec<Self::Item>, String);
}

impl Paged for v1::GetWorkflowRequest {
    fn turn_to(&mut self, token: String) {
        self.page_token = token;
    }
}

impl Page for v1::GetWorkflowResponse {
    type Item = v1::WorkflowEvent;

    fn split(self) -> (Vec<Self::Item>, String) {
        (self.events, self.next_page_token)
    }
}

impl Paged for v1::ListDeadLettersRequest {
    fn turn_to(&mut self, token: String) {
        self.page_token = token;
    }
}

impl Page for v1::ListDeadLettersResponse {
    type Item = v1::DeadLetter;

    fn split(self) -> (Vec<Self::Item>, String) {
        (self.dead_letters, self.next_page_token)
    }
}
