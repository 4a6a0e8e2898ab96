//! `weft top`: rates, percentiles, backlogs, lanes and shards on the terminal, live.
//!
//! - `app`: the state, and the effects of keys; pure. `draw`: the state on the screen; pure.

use std::{
    io::{self, IsTerminal as _},
    thread,
    time::Duration,
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tonic::Streaming;
use weft_proto::v1;

use super::{
    admin::{AdminArgs, AdminClient},
    stats::Stats,
    view,
};
use crate::failure::Failure;

mod app;
mod draw;

use app::{App, Effect, LaneRow, ShardRow};

/// Interval at which lanes and shards are read.
const LANES_INTERVAL: Duration = Duration::from_secs(3);
/// Time between two checks for a key.
const KEY_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum number of lanes that are shown.
const LANES_MAX: u32 = 1000;
/// The states of lanes that are stuck.
const STUCK: [v1::LaneState; 5] =
    [v1::LaneState::Waiting, v1::LaneState::Blocked, v1::LaneState::Paused, v1::LaneState::Away, v1::LaneState::Held];

/// `weft top`.
#[derive(Debug, clap::Args)]
pub struct TopArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

/// Shows the mesh until the user quits.
///
/// # Errors
///
/// [`Failure`], with its exit code: also when stdout is no terminal.
pub async fn run(args: TopArgs) -> Result<(), Failure> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::Usage("weft top needs a terminal; weft stats prints the same for programs".into()));
    }
    let admin = args.admin.connect().await?;
    let mut app = App::default();
    // The first answer comes before the screen is taken: a failure is a line, not a screen.
    let mut stats = watch(&admin, &app).await?;
    let mut terminal = ratatui::try_init().map_err(|error| Failure::Failed(format!("the terminal: {error}")))?;
    let shown = show(&admin, &mut app, &mut stats, &mut terminal).await;
    ratatui::restore();
    shown
}

async fn watch(admin: &AdminClient, app: &App) -> Result<Streaming<v1::WatchStatsResponse>, Failure> {
    let seconds = i64::try_from(app.period().as_secs()).unwrap_or(i64::MAX);
    let period = Some(prost_types::Duration { seconds, nanos: 0 });
    let request = v1::WatchStatsRequest { period, ..Default::default() };
    let stream = admin.stats().watch_stats(admin.request(request)).await;
    Ok(stream.map_err(|status| admin.failure(&status))?.into_inner())
}

async fn show(
    admin: &AdminClient,
    app: &mut App,
    stats: &mut Streaming<v1::WatchStatsResponse>,
    terminal: &mut DefaultTerminal,
) -> Result<(), Failure> {
    let mut keys = keys();
    let mut lanes = interval(LANES_INTERVAL);
    lanes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal
            .draw(|frame| draw::draw(frame, app))
            .map_err(|error| Failure::Failed(format!("the terminal: {error}")))?;
        tokio::select! {
            key = keys.recv() => {
                // Without keys there is no way to quit.
                let Some(pressed) = key else { return Ok(()) };
                let Event::Key(key) = pressed else { continue };
                if key.kind == KeyEventKind::Release {
                    continue;
                }
                match app.key(key) {
                    Effect::None => {}
                    Effect::Quit => return Ok(()),
                    Effect::Period => *stats = watch(admin, app).await?,
                    Effect::Open(event_id) => app.open(history_of(admin, &event_id).await),
                }
            }
            response = stats.message() => match response {
                Ok(Some(response)) => app.stats(Stats::from(response.stats.unwrap_or_default())),
                Ok(None) => *stats = watch(admin, app).await?,
                Err(status) => return Err(admin.failure(&status)),
            },
            _ = lanes.tick() => {
                match stuck(admin).await {
                    Ok((lanes, shards)) => app.lanes(lanes, shards),
                    Err(status) => app.problem(status.message()),
                }
            }
        }
    }
}

/// Keys and changes of size, from a thread that ends with the receiver.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEY_INTERVAL) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(event) = event::read() else { return };
                    if sender.blocking_send(event).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    });
    receiver
}

async fn stuck(admin: &AdminClient) -> Result<(Vec<LaneRow>, Vec<ShardRow>), tonic::Status> {
    let states = STUCK.map(i32::from).to_vec();
    let request = v1::ListLanesRequest { states, page_size: LANES_MAX, ..Default::default() };
    let lanes = admin.workflows().list_lanes(admin.request(request)).await?.into_inner().lanes;
    let shards = admin.shards().list_shards(admin.request(v1::ListShardsRequest {})).await?.into_inner().shards;
    Ok((lanes.into_iter().map(LaneRow::from).collect(), shards.into_iter().map(ShardRow::from).collect()))
}

/// An event, as `weft event get` prints it.
async fn history_of(admin: &AdminClient, event_id: &str) -> String {
    let request = v1::GetEventRequest { event_id: event_id.to_owned(), ..Default::default() };
    match admin.events().get_event(admin.request(request)).await {
        Ok(answer) => match view::EventWithDeliveries::new(answer.into_inner()) {
            Some(history) => history.human(),
            None => "the admin names no event".to_owned(),
        },
        Err(status) => status.message().to_owned(),
    }
}
