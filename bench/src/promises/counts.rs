//! The same numbers from four sides: senders and receiver, `/metrics`, `StatsService`, and the history's events one by one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use tokio::time::sleep;
use weft_proto::v1::{self, DeliveryStatus};
use weft_services::{
    command::admin::AdminClient,
    mesh::{SOURCE, SUBSCRIPTION},
    receiver::Arrival,
};

use super::judge::{Acknowledged, Finding};

/// How long metrics, stats and history may take to count what has just happened.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// Events of one page: the most that the admin gives.
const PAGE: u32 = 1_000;

/// Numbers by name.
type Counts = BTreeMap<&'static str, u64>;

/// The numbers of senders and receiver.
pub fn witnessed(acknowledged: &[Acknowledged], arrivals: &[Arrival]) -> Counts {
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let taken = arrivals.iter().filter(|arrival| (200..300).contains(&arrival.status)).count();
    let duplicates = acknowledged.iter().filter(|one| one.duplicate).count();
    Counts::from([
        ("accepted", count(acknowledged.len() - duplicates)),
        ("duplicates", count(duplicates)),
        ("attempts", count(arrivals.len())),
        ("failed attempts", count(arrivals.len() - taken)),
        ("retried", count(arrivals.iter().filter(|arrival| arrival.attempt > 1).count())),
        ("delivered", count(taken)),
        ("dead letters", 0),
        ("backlog", 0),
    ])
}

/// Asks all three until they say what is `witnessed`, or for half a minute.
///
/// # Errors
///
/// When one of them cannot be asked.
pub async fn compare(witnessed: &Counts, ops: &str, admin: &AdminClient) -> anyhow::Result<Finding> {
    let until = Instant::now() + PATIENCE;
    loop {
        let text = reqwest::get(format!("{ops}/metrics")).await?.text().await?;
        let sides =
            [("metrics", of_metrics(&text)), ("stats", of_stats(admin).await?), ("history", of_history(admin).await?)];
        let finding = judge(witnessed, &sides);
        if finding.held || Instant::now() >= until {
            return Ok(finding);
        }
        sleep(PAUSE).await;
    }
}

/// Each side may leave numbers out that it does not have.
fn judge(witnessed: &Counts, sides: &[(&str, Counts)]) -> Finding {
    let mut differences = Vec::new();
    let mut compared = 0;
    for (side, counts) in sides {
        for (name, count) in counts {
            compared += 1;
            let expected = witnessed.get(name).copied().unwrap_or_default();
            if *count != expected {
                differences.push(format!("{side}: {count} {name}, not {expected}"));
            }
        }
    }
    let found = if differences.is_empty() { format!("{compared} counts agree") } else { differences.join("; ") };
    let something = witnessed.get("delivered").is_some_and(|delivered| *delivered > 0);
    Finding {
        promise: "metrics, stats and history count the same",
        limit: "no difference",
        found,
        held: differences.is_empty() && compared > 0 && something,
    }
}

/// By a scrape of all roles. Only deliveries of the subscription are counted, and only events of the source.
fn of_metrics(text: &str) -> Counts {
    let sum = |name: &str, labels: &[&str]| -> u64 {
        let is_one = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
                && labels.iter().all(|label| line.contains(label))
        };
        text.lines().filter(is_one).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    let source = format!("source=\"{SOURCE}\"");
    let subscription = format!("subscription=\"{SUBSCRIPTION}\"");
    let attempts = sum("weft_worker_attempts_total", &[&subscription]);
    let outcomes = |outcome: &str| sum("weft_worker_outcomes_total", &[&subscription, outcome]);
    let delivered_attempts = sum("weft_worker_attempts_total", &[&subscription, "class=\"delivered\""]);
    Counts::from([
        ("accepted", sum("weft_gateway_events_accepted_total", &[&source])),
        ("duplicates", sum("weft_gateway_events_duplicate_total", &[&source])),
        ("attempts", attempts),
        ("failed attempts", attempts.saturating_sub(delivered_attempts)),
        ("delivered", outcomes("outcome=\"delivered\"")),
        ("dead letters", outcomes("outcome=\"dead_lettered\"")),
        ("backlog", sum("weft_admin_backlog_events", &[&subscription])),
    ])
}

/// By the minutes of the last hour.
async fn of_stats(admin: &AdminClient) -> anyhow::Result<Counts> {
    let answer = admin.stats().get_stats(admin.request(v1::GetStatsRequest::default())).await;
    let stats = answer.map_err(|status| anyhow!("{status}"))?.into_inner().stats.context("no stats")?;
    let of_source = stats.sources.iter().find(|group| group.label == SOURCE);
    let of_source = of_source.and_then(|group| group.counts).unwrap_or_default();
    let of_subscription = stats.subscriptions.iter().find(|one| one.subscription == SUBSCRIPTION);
    let backlog = of_subscription.map_or(0, |one| one.backlog);
    let of_subscription = of_subscription.and_then(|one| one.counts).unwrap_or_default();
    Ok(Counts::from([
        ("accepted", of_source.accepted),
        ("attempts", of_subscription.attempts),
        ("failed attempts", of_subscription.failed),
        ("retried", of_subscription.retried),
        ("delivered", of_subscription.delivered),
        ("dead letters", of_subscription.dead_lettered),
        ("backlog", backlog),
    ]))
}

/// By the events of the source, each with its deliveries.
async fn of_history(admin: &AdminClient) -> anyhow::Result<Counts> {
    let filter = v1::ListEventsFilter { source: SOURCE.into(), ..Default::default() };
    let (mut events, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            v1::ListEventsRequest { filter: Some(filter.clone()), page_size: PAGE, page_token, ..Default::default() };
        let answer = admin.events().list_events(admin.request(request)).await;
        let page = answer.map_err(|status| anyhow!("{status}"))?.into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let deliveries: Vec<_> = events
        .iter()
        .flat_map(|event| &event.deliveries)
        .filter(|delivery| delivery.subscription == SUBSCRIPTION)
        .collect();
    let count = |statuses: &[DeliveryStatus]| -> u64 {
        let count = deliveries.iter().filter(|delivery| statuses.contains(&delivery.status())).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    };
    let attempts: u64 = deliveries.iter().map(|delivery| u64::from(delivery.attempt_count)).sum();
    let settled = count(&[
        DeliveryStatus::Delivered,
        DeliveryStatus::DeadLettered,
        DeliveryStatus::Discarded,
        DeliveryStatus::Resolved,
    ]);
    Ok(Counts::from([
        ("accepted", u64::try_from(events.len()).unwrap_or(u64::MAX)),
        ("attempts", attempts),
        ("failed attempts", attempts.saturating_sub(count(&[DeliveryStatus::Delivered]))),
        ("delivered", count(&[DeliveryStatus::Delivered])),
        ("dead letters", count(&[DeliveryStatus::DeadLettered])),
        ("backlog", u64::try_from(deliveries.len()).unwrap_or(u64::MAX).saturating_sub(settled)),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPE: &str = r#"# TYPE weft_worker_attempts_total counter
weft_worker_attempts_total{subscription="receiver",class="delivered"} 10
weft_worker_attempts_total{subscription="receiver",class="http_status"} 3
weft_worker_attempts_total{subscription="alerts",class="delivered"} 7
weft_worker_outcomes_total{subscription="receiver",outcome="delivered"} 10
weft_gateway_events_accepted_total{source="sender"} 10
weft_gateway_events_accepted_total{source="other"} 99
weft_gateway_events_duplicate_total{source="sender"} 2
"#;

    /// One number that differs, on any side, is found and named.
    #[test]
    fn each_side_is_compared_by_each_number_that_it_has() {
        let scrape = SCRAPE.replace("sender", SOURCE).replace("receiver", SUBSCRIPTION);
        let metrics = of_metrics(&scrape);
        let witnessed = Counts::from([
            ("accepted", 10),
            ("duplicates", 2),
            ("attempts", 13),
            ("failed attempts", 3),
            ("delivered", 10),
            ("dead letters", 0),
        ]);
        let finding = judge(&witnessed, &[("metrics", metrics.clone()), ("stats", Counts::from([("delivered", 10)]))]);
        assert!(finding.held, "{finding:?}");
        let finding = judge(&witnessed, &[("metrics", metrics), ("stats", Counts::from([("delivered", 9)]))]);
        assert!(!finding.held);
        assert_eq!(finding.found, "stats: 9 delivered, not 10");
        assert!(!judge(&Counts::new(), &[("stats", Counts::from([("delivered", 0)]))]).held, "nothing proves nothing");
    }
}
