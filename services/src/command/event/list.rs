//! `weft event list`.

use std::io::{IsTerminal as _, Write as _};

use jiff::Timestamp;
use weft_proto::v1::{self, EventStatus};

use super::super::{
    common::CommonArgs,
    output::{self, Format},
    paging::PAGE_MAX,
    select::{EventFilterArgs, numbers, one_of, parse_moment, to_proto},
    terminal, view,
};
use crate::failure::Failure;

/// Statuses of an event, and of a delivery.
const STATUSES: &[EventStatus] = &[
    EventStatus::Pending,
    EventStatus::Retrying,
    EventStatus::Paused,
    EventStatus::Blocked,
    EventStatus::Delivered,
    EventStatus::DeadLettered,
    EventStatus::Resolved,
    EventStatus::Discarded,
    EventStatus::Unrouted,
];

/// `weft event list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: EventFilterArgs,
    /// Only those that this subscription has taken, or will take
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Only in these statuses: of the delivery to --subscription if that is given, else of the event
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = one_of(STATUSES))]
    status: Vec<EventStatus>,
    /// Only with this delivery id of the sender
    #[arg(long, value_name = "ID")]
    delivery_id: Option<String>,
    /// Stored since: 1h, or 2026-11-21T02:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = parse_moment)]
    since: Option<Timestamp>,
    /// Stored before: 1h, or 2026-11-21T02:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = parse_moment)]
    until: Option<Timestamp>,
    /// Only with this text in the payload, byte for byte; reads the log event by event, until Ctrl-C
    #[arg(long, value_name = "TEXT")]
    contains: Option<String>,
    /// The oldest first
    #[arg(long)]
    oldest: bool,
    /// With each event's data (json, jsonl, yaml)
    #[arg(long = "with-data")]
    with_data: bool,
    /// Print at most this many, at least one
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Continue where an earlier list ended, with the same filters
    #[arg(long, value_name = "TOKEN")]
    page_token: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

impl ListArgs {
    fn filter(&self) -> v1::ListEventsFilter {
        let v1::EventFilter { workflow_id, r#type, source } = self.filter.clone().into();
        v1::ListEventsFilter {
            event_id: String::new(),
            delivery_id: self.delivery_id.clone().unwrap_or_default(),
            workflow_id,
            r#type,
            source,
            subscription: self.subscription.clone().unwrap_or_default(),
            statuses: numbers(&self.status),
            since: self.since.map(to_proto),
            until: self.until.map(to_proto),
            contains: self.contains.clone().unwrap_or_default(),
        }
    }
}

/// Lists events.
///
/// # Errors
///
/// [`Failure`], with its exit code.
pub(super) async fn run(args: ListArgs) -> Result<(), Failure> {
    let format = args.common.format();
    let mut request = v1::ListEventsRequest {
        filter: Some(args.filter()),
        oldest_first: args.oldest,
        with_data: args.with_data,
        page_token: args.page_token.unwrap_or_default(),
        ..Default::default()
    };
    let limit = args.limit.max(1);
    let admin = args.common.admin.connect().await?;
    let mut found: Vec<view::ListedEvent> = Vec::new();
    let mut printed = 0;
    let mut progress = Progress::default();
    while printed + found.len() < limit {
        let left = limit - printed - found.len();
        request.page_size = u32::try_from(left).unwrap_or(PAGE_MAX).min(PAGE_MAX);
        let answer = admin.events().list_events(admin.request(request.clone())).await;
        let page = answer.map_err(|status| admin.failure(&status))?.into_inner();
        found.extend(page.events.into_iter().filter_map(view::ListedEvent::new));
        if let Some(search) = page.search {
            progress.show(&search, printed + found.len());
            // A search may take long: what it has found is printed at once where lines do not depend on each other.
            if format == Format::Jsonl {
                printed += found.len();
                progress.clear();
                for event in found.drain(..) {
                    output::next(format, &event, String::new)?;
                }
            }
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    progress.clear();
    let count = printed + found.len();
    if !request.page_token.is_empty() {
        output::notice(&format!(
            "only the first {count} are shown, there may be more; -n sets how many, --page-token {} continues",
            request.page_token
        ));
    }
    if printed > 0 && found.is_empty() {
        return Ok(());
    }
    output::list(format, &found)
}

/// How far a search in payloads is, on a terminal.
#[derive(Debug, Default)]
struct Progress {
    scanned: u64,
    is_shown: bool,
}

impl Progress {
    fn show(&mut self, search: &v1::EventSearch, found: usize) {
        self.scanned += u64::from(search.scanned);
        if !std::io::stderr().is_terminal() {
            return;
        }
        let reached = view::when(view::Time::of(search.reached.as_ref()).as_ref());
        let text = format!("{} events read, up to {reached}; {found} found; Ctrl-C ends", self.scanned);
        // A closed stderr is no failure of the command.
        let _ = write!(std::io::stderr(), "\r\u{1b}[K{}", terminal::line(&text));
        self.is_shown = true;
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}
