//! `StatsService`: counts and percentiles by minute, and what waits at this moment.
//!
//! - `observe`: the present state; `show`: both as messages, pure.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream::unfold};
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Request, Response, Status};
use weft_index::history::stats::{KEPT_MINUTES, StatsQuery};
use weft_proto::v1::{self, stats_service_server::StatsService};

use super::state::{LogState, State, draining};
use crate::{
    auth, convert,
    error::{Code, of_history, refuse},
};

pub(super) mod observe;
mod show;

/// Period without a `since`, in minutes.
const PERIOD_DEFAULT: u64 = 60;
/// Points of a series whose step is left to the server, and of any series.
const POINTS_DEFAULT: u64 = 120;
const POINTS_MAX: u64 = 1000;
/// Interval of `WatchStats`: default and bounds.
const WATCH_DEFAULT: Duration = Duration::from_secs(2);
const WATCH_MIN: Duration = Duration::from_secs(1);
const WATCH_MAX: Duration = Duration::from_mins(1);
/// Time-out for the first observation after the start.
const OBSERVED_TIMEOUT: Duration = Duration::from_secs(10);
const MINUTE_SECONDS: i64 = 60;

/// `StatsService` over the history.
#[derive(Debug)]
pub(super) struct StatsOfMesh {
    state: Arc<State>,
}

impl StatsOfMesh {
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<v1::WatchStatsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl StatsService for StatsOfMesh {
    type WatchStatsStream = Responses;

    async fn get_stats(&self, request: Request<v1::GetStatsRequest>) -> Result<Response<v1::GetStatsResponse>, Status> {
        let log = self.state.log()?;
        auth::grant(&request)?;
        let request = request.into_inner();
        let now = log.connection.server_clock().now();
        let until = time("until", request.until.as_ref())?.unwrap_or(now);
        let since = time("since", request.since.as_ref())?;
        let period = Period::new(since, until, request.step_minutes)?;
        log.catch_up().await?;
        let stats = Some(stats(log, period).await?);
        Ok(Response::new(v1::GetStatsResponse { stats }))
    }

    async fn watch_stats(&self, request: Request<v1::WatchStatsRequest>) -> Result<Response<Responses>, Status> {
        let log = self.state.log()?.clone();
        let grant = auth::grant(&request)?;
        let place = self.state.place(&grant)?;
        let request = request.into_inner();
        let wait =
            duration("interval", request.interval.as_ref())?.unwrap_or(WATCH_DEFAULT).clamp(WATCH_MIN, WATCH_MAX);
        let period = duration("period", request.period.as_ref())?;
        let period = period.unwrap_or(Duration::from_secs(PERIOD_DEFAULT * 60));
        let step = request.step_minutes;
        let until_now = move |log: &LogState| {
            let now = log.connection.server_clock().now();
            Period::new(Some(now.checked_sub(period).unwrap_or(Timestamp::MIN)), now, step)
        };
        // A wrong period is refused at once.
        until_now(&log)?;
        let stop = self.state.draining().clone();
        let start = Instant::now();
        let open = Some((log, Box::pin(grant.ended()), stop, place, start));
        let responses = unfold(open, move |open| async move {
            let (log, mut ended, stop, place, next) = open?;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Some((Err(draining()), None)),
                () = &mut ended => return Some((Err(auth::ended()), None)),
                () = sleep_until(next) => {}
            }
            let stats = match until_now(&log) {
                Ok(period) => stats(&log, period).await,
                Err(status) => Err(status),
            };
            match stats {
                Ok(stats) => {
                    let response = v1::WatchStatsResponse { stats: Some(stats) };
                    Some((Ok(response), Some((log, ended, stop, place, Instant::now() + wait))))
                }
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(responses.boxed()))
    }
}

/// The stats of a period.
async fn stats(log: &LogState, period: Period) -> Result<v1::Stats, Status> {
    let mut observed = log.observed.clone();
    let observation = timeout(OBSERVED_TIMEOUT, observed.wait_for(Option::is_some)).await;
    let observation = observation.ok().and_then(Result::ok).and_then(|observation| observation.clone());
    let observation = observation
        .ok_or_else(|| refuse(Code::Starting, "the mesh has not been observed yet; try again in a moment"))?;
    let report = log.history.stats(period.query).await.map_err(of_history)?;
    let catalog = log.catalog.present().await.map_err(crate::error::of_catalog)?;
    Ok(show::stats(&period, report, &observation, &catalog))
}

/// A period of whole minutes, but for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Period {
    query: StatsQuery,
    until: Timestamp,
}

impl Period {
    fn new(since: Option<Timestamp>, until: Timestamp, step: u32) -> Result<Self, Status> {
        let minute = |time: Timestamp| u64::try_from(time.as_second().div_euclid(MINUTE_SECONDS)).unwrap_or(0);
        let end = minute(until).saturating_add(u64::from(
            until.as_second().rem_euclid(MINUTE_SECONDS) > 0 || until.subsec_nanosecond() > 0,
        ));
        // What is no longer kept is not summed up.
        let from = since.map_or(end.saturating_sub(PERIOD_DEFAULT), minute).max(end.saturating_sub(KEPT_MINUTES));
        if from >= end {
            return Err(refuse(Code::BadQuery, "since: the period is empty; it must begin before until"));
        }
        let minutes = end - from;
        let step = if step == 0 { minutes.div_ceil(POINTS_DEFAULT) } else { u64::from(step) };
        if minutes.div_ceil(step) > POINTS_MAX {
            let message = format!(
                "step_minutes: {step} makes more than {POINTS_MAX} points of {minutes} minutes; take a wider one"
            );
            return Err(refuse(Code::BadQuery, message));
        }
        Ok(Self { query: StatsQuery { from, until: end, step }, until })
    }
}

fn time(name: &str, time: Option<&prost_types::Timestamp>) -> Result<Option<Timestamp>, Status> {
    let refused = || refuse(Code::BadQuery, format!("{name} is not a time within years 1 to 9999"));
    let at = |time| convert::to_milliseconds(time).and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map(|time| at(time).ok_or_else(refused)).transpose()
}

fn duration(name: &str, duration: Option<&prost_types::Duration>) -> Result<Option<Duration>, Status> {
    let refused = || refuse(Code::BadQuery, format!("{name} is not a duration above zero"));
    let of =
        |duration: &prost_types::Duration| Duration::try_from(*duration).ok().filter(|duration| !duration.is_zero());
    duration.map(|duration| of(duration).ok_or_else(refused)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_period_is_of_whole_minutes_and_within_what_is_kept() {
        let of =
            |since: Option<i64>, until, step| Period::new(since.map(at), at(until), step).map(|period| period.query);
        assert_eq!(of(None, 7200, 0).unwrap(), StatsQuery { from: 60, until: 120, step: 1 });
        assert_eq!(of(Some(3661), 7201, 5).unwrap(), StatsQuery { from: 61, until: 121, step: 5 });
        let days = 20 * 86_400;
        let kept = of(Some(0), days, 0).unwrap();
        assert_eq!((kept.until - kept.from, kept.step), (KEPT_MINUTES, 96));
        assert!(of(Some(7200), 7200, 0).is_err(), "empty");
        assert!(of(Some(0), days, 1).is_err(), "too many points");
    }
}
