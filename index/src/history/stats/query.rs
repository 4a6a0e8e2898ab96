//! Reading: sums over minutes.

use std::collections::BTreeMap;

use weft_proto::ids::SubscriptionUid;

use super::{Cell, CellRow, Counts, Dimension, OTHER};
use crate::history::{
    names::Subscriptions,
    tables::{View, decode},
};

/// Period of a report, in minutes since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatsQuery {
    /// The first minute.
    pub from: u64,
    /// The minute after the last.
    pub until: u64,
    /// Minutes of a point.
    pub step: u64,
}

/// Counts by which alerts are decided, minute by minute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Minutes {
    /// Counts of sources: minute, source.
    pub sources: Vec<(u64, String, Counts)>,
    /// Dead letters of subscriptions, without those of the mesh's own events: minute, subscription, number.
    pub dead_letters: Vec<(u64, SubscriptionUid, u64)>,
}

pub(in crate::history) fn minutes(view: &View, from: u64, until: u64) -> Result<Minutes, redb::Error> {
    let mut minutes = Minutes::default();
    for row in view.stats_rows.range((from, 0, "")..(until, 0, ""))? {
        let (key, value) = row?;
        let (minute, dimension, label) = key.value();
        if dimension == Dimension::Source as u8 {
            let counts = Cell::from(&decode::<CellRow>(value.value())?).counts;
            minutes.sources.push((minute, label.to_owned(), counts));
        } else if dimension == Dimension::DeadLetters as u8
            && let Ok(uid) = label.parse()
        {
            let counts = Cell::from(&decode::<CellRow>(value.value())?).counts;
            minutes.dead_letters.push((minute, uid, counts.dead_lettered));
        }
    }
    Ok(minutes)
}

/// Sums over a period.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StatsReport {
    /// Of everything.
    pub total: Cell,
    /// Of everything by the first minute of the point; points without anything are left out.
    pub points: BTreeMap<u64, Cell>,
    /// By source.
    pub sources: BTreeMap<String, Counts>,
    /// By type.
    pub types: BTreeMap<String, Counts>,
    /// By subscription: its uid (`None`: all without a separate label) and its name.
    pub subscriptions: BTreeMap<Option<SubscriptionUid>, (String, Cell)>,
    /// Refused requests by code.
    pub codes: BTreeMap<String, u64>,
}

pub(in crate::history) fn report(
    view: &View,
    subscriptions: &Subscriptions,
    query: StatsQuery,
) -> Result<StatsReport, redb::Error> {
    let mut report = StatsReport::default();
    let mut by_uid: BTreeMap<String, Cell> = BTreeMap::new();
    for row in view.stats_rows.range((query.from, 0, "")..(query.until, 0, ""))? {
        let (key, value) = row?;
        let (minute, dimension, label) = key.value();
        let cell = Cell::from(&decode::<CellRow>(value.value())?);
        let counts = cell.counts;
        if dimension == Dimension::Total as u8 {
            report.total.add(&cell);
            let step = query.step.max(1);
            let point = query.from + minute.saturating_sub(query.from) / step * step;
            report.points.entry(point).or_default().add(&cell);
        } else if dimension == Dimension::Source as u8 {
            report.sources.entry(label.to_owned()).or_default().add(&counts);
        } else if dimension == Dimension::Type as u8 {
            report.types.entry(label.to_owned()).or_default().add(&counts);
        } else if dimension == Dimension::Subscription as u8 {
            by_uid.entry(label.to_owned()).or_default().add(&cell);
        } else if dimension == Dimension::Code as u8 {
            *report.codes.entry(label.to_owned()).or_default() += counts.rejected;
        }
    }
    for (label, cell) in by_uid {
        let uid = label.parse::<SubscriptionUid>().ok();
        let name = match &uid {
            Some(uid) => subscriptions.name(view, uid.as_bytes())?,
            None => OTHER.to_owned(),
        };
        report.subscriptions.insert(uid, (name, cell));
    }
    Ok(report)
}
