//! The state of `weft top`, and the effects of keys. Pure.

use std::{cmp::Ordering, time::Duration};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use weft_proto::{v1, words::word};

use crate::command::stats::{Stats, Subscription};

/// Periods that counts and percentiles may cover.
const PERIODS: [Duration; 4] =
    [Duration::from_mins(1), Duration::from_mins(5), Duration::from_hours(1), Duration::from_hours(24)];
/// Lines by which a page moves.
const PAGE: usize = 10;

/// A list on the screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum View {
    #[default]
    Subscriptions,
    Lanes,
    Shards,
}

impl View {
    pub const ALL: [Self; 3] = [Self::Subscriptions, Self::Lanes, Self::Shards];

    pub fn name(self) -> &'static str {
        match self {
            Self::Subscriptions => "subscriptions",
            Self::Lanes => "stuck lanes",
            Self::Shards => "shards",
        }
    }

    pub fn headings(self) -> &'static [&'static str] {
        match self {
            Self::Subscriptions => &[
                "SUBSCRIPTION",
                "STATE",
                "PER SECOND",
                "DEAD",
                "RETRIES",
                "P50",
                "P99",
                "BACKLOG",
                "OLDEST",
                "BLOCKED",
                "WHY",
            ],
            Self::Lanes => &["SUBSCRIPTION", "WORKFLOW", "STATE", "ATTEMPTS", "HEAD", "WHY"],
            Self::Shards => &["SHARD", "STATE", "OWNER", "EPOCH", "LAST", "NOT MATCHED"],
        }
    }
}

/// A lane that is stuck.
#[derive(Debug, Clone, Default)]
pub(super) struct LaneRow {
    pub subscription: String,
    pub workflow: String,
    pub state: &'static str,
    pub attempts: u32,
    pub head: String,
    pub why: String,
}

impl From<v1::WorkflowLane> for LaneRow {
    fn from(lane: v1::WorkflowLane) -> Self {
        let receiver = lane.receiver.map(|receiver| receiver.reason).filter(|reason| !reason.is_empty());
        let pause = lane.pause.map(|pause| format!("paused by {}: {}", pause.operator, pause.reason));
        Self {
            subscription: lane.subscription,
            workflow: lane.workflow_id,
            state: word::<v1::LaneState>(lane.state),
            attempts: lane.attempts,
            head: lane.head_event_id,
            why: pause.or(receiver).unwrap_or(lane.last_error),
        }
    }
}

/// A shard with its owner.
#[derive(Debug, Clone, Default)]
pub(super) struct ShardRow {
    pub shard: u32,
    pub state: &'static str,
    pub worker: String,
    pub epoch: u64,
    pub last: u64,
    pub committed: u64,
}

impl From<v1::Shard> for ShardRow {
    fn from(shard: v1::Shard) -> Self {
        Self {
            committed: shard.events_committed.map_or(0, |position| position.sequence),
            shard: shard.shard,
            state: word::<v1::ShardState>(shard.state),
            worker: shard.worker,
            epoch: shard.epoch,
            last: shard.events_last,
        }
    }
}

/// The effect of a key outside of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Quit,
    /// Another period was chosen.
    Period,
    /// This event is to be opened.
    Open(String),
}

/// The state.
#[derive(Debug, Default)]
pub(super) struct App {
    stats: Option<Stats>,
    lanes: Vec<LaneRow>,
    shards: Vec<ShardRow>,
    pub view: View,
    /// Index of the column by which rows are sorted.
    pub sort: usize,
    pub descending: bool,
    pub filter: String,
    /// The filter is being typed.
    pub is_typing: bool,
    pub selected: usize,
    period: usize,
    /// An open event, and the lines above the screen.
    pub open: Option<(String, usize)>,
    pub problem: String,
}

/// The value of a cell by which rows are sorted.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Number(f64),
}

/// A row: what its cells show, and the values by which it is sorted.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub cells: Vec<String>,
    pub values: Vec<Value>,
    /// The event that Enter opens.
    pub event: Option<String>,
}

impl Row {
    fn new(cells: Vec<(String, Option<f64>)>, event: Option<String>) -> Self {
        let value = |(text, number): &(String, Option<f64>)| match number {
            Some(number) => Value::Number(*number),
            None => Value::Text(text.clone()),
        };
        let values = cells.iter().map(value).collect();
        Self { cells: cells.into_iter().map(|(text, _)| text).collect(), values, event }
    }
}

impl App {
    /// The period of counts and percentiles.
    pub fn period(&self) -> Duration {
        PERIODS.get(self.period).copied().unwrap_or(Duration::from_mins(1))
    }

    pub fn stats(&mut self, stats: Stats) {
        self.stats = Some(stats);
        self.problem.clear();
    }

    pub fn lanes(&mut self, lanes: Vec<LaneRow>, shards: Vec<ShardRow>) {
        (self.lanes, self.shards) = (lanes, shards);
    }

    pub fn open(&mut self, text: String) {
        self.open = Some((text, 0));
    }

    pub fn problem(&mut self, problem: &str) {
        problem.clone_into(&mut self.problem);
    }

    pub fn current(&self) -> Option<&Stats> {
        self.stats.as_ref()
    }

    pub fn stuck(&self) -> usize {
        self.lanes.len()
    }

    /// The effect of a key.
    pub fn key(&mut self, key: KeyEvent) -> Effect {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Effect::Quit;
        }
        if self.is_typing {
            return self.type_filter(key.code);
        }
        if self.open.is_some() {
            return self.scroll(key.code);
        }
        let last = self.rows().len().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Effect::Quit,
            KeyCode::Char('1') => self.show(View::Subscriptions),
            KeyCode::Char('2') => self.show(View::Lanes),
            KeyCode::Char('3') => self.show(View::Shards),
            KeyCode::Tab => {
                let at = View::ALL.iter().position(|view| *view == self.view).unwrap_or(0);
                self.show(View::ALL.get(at + 1).copied().unwrap_or_default());
            }
            KeyCode::Char('s') => self.sort = (self.sort + 1) % self.view.headings().len(),
            KeyCode::Char('r') => self.descending = !self.descending,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('p') => {
                self.period = (self.period + 1) % PERIODS.len();
                return Effect::Period;
            }
            KeyCode::Down | KeyCode::Char('j') => self.selected = (self.selected + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::PageDown => self.selected = (self.selected + PAGE).min(last),
            KeyCode::PageUp => self.selected = self.selected.saturating_sub(PAGE),
            KeyCode::Enter => {
                let event = self.rows().get(self.selected).and_then(|row| row.event.clone());
                return event.map_or(Effect::None, Effect::Open);
            }
            _ => {}
        }
        Effect::None
    }

    fn show(&mut self, view: View) {
        (self.view, self.sort, self.descending, self.selected) = (view, 0, false, 0);
    }

    fn type_filter(&mut self, code: KeyCode) -> Effect {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(typed) => self.filter.push(typed),
            _ => {}
        }
        self.selected = 0;
        Effect::None
    }

    fn scroll(&mut self, code: KeyCode) -> Effect {
        let Some((text, above)) = &mut self.open else { return Effect::None };
        let last = text.lines().count().saturating_sub(1);
        match code {
            KeyCode::Char('q') | KeyCode::Esc | KeyCode::Enter => self.open = None,
            KeyCode::Down | KeyCode::Char('j') => *above = (*above + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => *above = above.saturating_sub(1),
            KeyCode::PageDown => *above = (*above + PAGE).min(last),
            KeyCode::PageUp => *above = above.saturating_sub(PAGE),
            _ => {}
        }
        Effect::None
    }

    /// The rows of the view that the filter takes, sorted.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = match self.view {
            View::Subscriptions => self
                .stats
                .iter()
                .flat_map(|stats| stats.subscriptions.iter().map(|of| subscription(stats, of)))
                .collect(),
            View::Lanes => self.lanes.iter().map(lane).collect(),
            View::Shards => self.shards.iter().map(shard).collect(),
        };
        let wanted = self.filter.to_lowercase();
        rows.retain(|row| wanted.is_empty() || row.cells.iter().any(|cell| cell.to_lowercase().contains(&wanted)));
        let order = |one: &Row, other: &Row| compare(one.values.get(self.sort), other.values.get(self.sort));
        // Equal rows keep their order.
        rows.sort_by(|one, other| if self.descending { order(other, one) } else { order(one, other) });
        rows
    }
}

fn compare(one: Option<&Value>, other: Option<&Value>) -> Ordering {
    match (one, other) {
        (Some(Value::Number(one)), Some(Value::Number(other))) => one.total_cmp(other),
        (Some(Value::Text(one)), Some(Value::Text(other))) => one.cmp(other),
        _ => Ordering::Equal,
    }
}

fn subscription(stats: &Stats, of: &Subscription) -> Row {
    let total = of.latencies.total;
    let rate = of.counts.delivered as f64 / stats.length();
    let span = |span: f64| if total.count == 0 { "-".to_owned() } else { crate::command::stats::seconds(span) };
    let oldest = of.oldest_pending_at.map_or(f64::INFINITY, |oldest| oldest.0.as_millisecond() as f64);
    let count = |count: u64| (count.to_string(), Some(count as f64));
    Row::new(
        vec![
            (of.subscription.clone(), None),
            (of.condition.to_owned(), None),
            (format!("{rate:.1}"), Some(rate)),
            count(of.counts.dead_lettered),
            count(of.counts.retried),
            (span(total.p50_seconds), Some(total.p50_seconds)),
            (span(total.p99_seconds), Some(total.p99_seconds)),
            (of.backlog(), Some(of.backlog as f64)),
            (stats.oldest(of), Some(-oldest)),
            count(of.blocked_lanes),
            (of.reason.clone(), None),
        ],
        None,
    )
}

fn lane(lane: &LaneRow) -> Row {
    let text = |text: &String| (text.clone(), None);
    let cells = vec![
        text(&lane.subscription),
        text(&lane.workflow),
        (lane.state.to_owned(), None),
        (lane.attempts.to_string(), Some(f64::from(lane.attempts))),
        text(&lane.head),
        text(&lane.why),
    ];
    Row::new(cells, Some(lane.head.clone()).filter(|head| !head.is_empty()))
}

fn shard(shard: &ShardRow) -> Row {
    let number = |number: u64| (number.to_string(), Some(number as f64));
    let cells = vec![
        number(u64::from(shard.shard)),
        (shard.state.to_owned(), None),
        (shard.worker.clone(), None),
        number(shard.epoch),
        number(shard.last),
        number(shard.last.saturating_sub(shard.committed)),
    ];
    Row::new(cells, None)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::command::top) fn app() -> App {
        let of = |name: &str, backlog| v1::SubscriptionStats {
            subscription: name.into(),
            backlog,
            condition: v1::SubscriptionCondition::Active.into(),
            ..Default::default()
        };
        let total = Some(v1::StatsCounts { accepted: 600, delivered: 300, ..Default::default() });
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let stats = v1::Stats {
            since: at(1_000_000),
            until: at(1_000_060),
            total,
            subscriptions: vec![of("billing", 7), of("audit", 90), of("mail", 0)],
            ..Default::default()
        };
        let mut app = App::default();
        app.stats(Stats::from(stats));
        let lane = |workflow: &str, head: &str| LaneRow {
            workflow: workflow.into(),
            head: head.into(),
            state: "blocked",
            ..LaneRow::default()
        };
        app.lanes(vec![lane("order-2", "e2"), lane("order-1", "e1")], vec![ShardRow::default()]);
        app
    }

    fn press(app: &mut App, keys: &str) -> Effect {
        keys.chars().map(|key| app.key(KeyEvent::from(KeyCode::Char(key)))).last().unwrap_or(Effect::None)
    }

    fn names(app: &App) -> Vec<String> {
        app.rows().into_iter().map(|row| row.cells[usize::from(app.view == View::Lanes)].clone()).collect()
    }

    #[test]
    fn rows_are_sorted_by_any_column_and_filtered() {
        let mut app = app();
        assert_eq!(names(&app), ["audit", "billing", "mail"]);
        press(&mut app, "sssssss");
        assert_eq!(names(&app), ["mail", "billing", "audit"], "by number");
        press(&mut app, "r");
        assert_eq!(names(&app), ["audit", "billing", "mail"]);
        press(&mut app, "/IL");
        assert_eq!(names(&app), ["billing", "mail"]);
        assert_eq!(press(&mut app, "q"), Effect::None, "a letter of the filter");
        app.key(KeyEvent::from(KeyCode::Esc));
        assert_eq!(names(&app).len(), 3);
        assert_eq!(press(&mut app, "q"), Effect::Quit);
    }

    #[test]
    fn enter_opens_the_head_of_a_lane() {
        let mut app = app();
        assert_eq!(app.key(KeyEvent::from(KeyCode::Enter)), Effect::None, "a subscription is no event");
        press(&mut app, "2sj");
        assert_eq!(names(&app), ["order-1", "order-2"]);
        assert_eq!(app.key(KeyEvent::from(KeyCode::Enter)), Effect::Open("e2".into()));
        app.open("one\ntwo".into());
        press(&mut app, "jjjj");
        assert_eq!(app.open.as_ref().map(|(_, above)| *above), Some(1));
        assert_eq!(press(&mut app, "q"), Effect::None, "closes it");
        assert!(app.open.is_none());
        assert_eq!(press(&mut app, "p"), Effect::Period);
    }
}
