use super::*;

const NOW: i64 = 1_764_500_000_000;

fn decided(state: &mut State, seen: &Seen, now_ms: i64) -> Vec<(String, String)> {
    decide(state, seen, now_ms);
    let alerts = std::mem::take(&mut state.outbox);
    alerts.into_iter().map(|alert| (alert.r#type, alert.data["state"].as_str().unwrap().to_owned())).collect()
}

fn of(subscription: Subscription) -> Seen {
    Seen { subscriptions: vec![Subscription { name: "billing".into(), ..subscription }], ..Seen::default() }
}

fn said(kind: &str, state: &str) -> Vec<(String, String)> {
    vec![(kind.to_owned(), state.to_owned())]
}

/// Each condition is said once when it begins and once when it ends.
#[test]
fn conditions_are_reported_on_change() {
    let day = 86_400_000;
    let stream = Stream { name: "EVENTS".into(), bytes: 96, bytes_max: 100, alert_from: 95 };
    let source = Source { name: "shop".into(), is_configured: true, ..Source::default() };
    let counted = || Seen { finished: 1, ..Seen::default() };
    for (kind, seen) in [
        ("weft.subscription.paused", of(Subscription { paused: Some("by ops".into()), ..Default::default() })),
        (
            "weft.circuit.opened",
            of(Subscription { receiver: Some(("away", NOW, "down".into())), ..Default::default() }),
        ),
        ("weft.lane.blocked", of(Subscription { blocked: (2, vec!["order-1".into()]), ..Default::default() })),
        (
            "weft.lane.late",
            Seen { retention_ms: 8 * day, ..of(Subscription { oldest_ms: Some(NOW - 5 * day), ..Default::default() }) },
        ),
        ("weft.log.near_full", Seen { streams: vec![stream], ..Seen::default() }),
        (
            "weft.source.rejecting",
            Seen { sources: vec![Source { rejected: 20, accepted: 3, ..source.clone() }], ..Seen::default() },
        ),
        (
            "weft.source.silent",
            Seen { sources: vec![Source { last_ms: Some(NOW - 3_700_000), hours: 24, ..source }], ..Seen::default() },
        ),
        ("weft.projection.lagging", Seen { behind_since_ms: Some(NOW - 61_000), ..Seen::default() }),
    ] {
        let mut state = State::default();
        assert_eq!(decided(&mut state, &seen, NOW), said(kind, "raised"));
        assert_eq!(decided(&mut state, &seen, NOW + 10_000), [], "{kind} is not repeated");
        assert_eq!(decided(&mut state, &counted(), NOW + 20_000), said(kind, "recovered"));
        assert_eq!(decided(&mut state, &counted(), NOW + 30_000), []);
    }
}

/// A thousand dead letters of a minute are one event, and what was before the first look is none.
#[test]
fn dead_letters_are_reported_by_the_minute() {
    let mut state = State::default();
    let seen = |finished, dead_letters: &[(u64, u64)]| Seen {
        finished,
        dead_letters: dead_letters.iter().map(|(minute, count)| (*minute, "billing".to_owned(), *count)).collect(),
        ..Seen::default()
    };
    decide(&mut state, &seen(100, &[(98, 5), (99, 7)]), NOW);
    assert!(state.outbox.is_empty());
    decide(&mut state, &seen(101, &[(99, 7), (100, 1000), (101, 3)]), NOW);
    let alert = state.outbox.pop_front().unwrap();
    assert_eq!((alert.r#type.as_str(), &alert.data["count"]), ("weft.dead_letter.created", &json!(1000)));
    assert_eq!(alert.data["filter"]["since"], "1970-01-01T01:40:00Z");
    decide(&mut state, &seen(101, &[(100, 1000), (101, 3)]), NOW);
    assert!(state.outbox.is_empty(), "once");
    decide(&mut state, &seen(102, &[(100, 1000), (101, 3)]), NOW);
    assert_eq!(state.outbox.pop_front().unwrap().data["count"], 3);
}

/// Outcomes of an outage are committed after their minutes are finished: they are reported then, once.
#[test]
fn dead_letters_that_are_committed_late_are_reported() {
    let mut state = State::default();
    let seen = |finished, dead_letters: &[(u64, u64)]| Seen {
        finished,
        dead_letters: dead_letters.iter().map(|(minute, count)| (*minute, "billing".to_owned(), *count)).collect(),
        ..Seen::default()
    };
    let ids = |state: &mut State, seen: &Seen| {
        decide(state, seen, NOW);
        let alerts = std::mem::take(&mut state.outbox);
        alerts.into_iter().map(|alert| (alert.id, alert.data["count"].as_u64().unwrap())).collect::<Vec<_>>()
    };
    let id = |minute: i64, more: &str| {
        format!("weft.dead_letter.created/subscription/billing/{}/raised{more}", minute * MINUTE_MS)
    };
    assert_eq!(ids(&mut state, &seen(0, &[])), [], "nothing is counted yet");
    assert_eq!(ids(&mut state, &seen(100, &[(99, 5)])), []);
    assert_eq!(ids(&mut state, &seen(101, &[(99, 5), (100, 2)])), [(id(100, ""), 2)]);
    let late = seen(105, &[(99, 7), (100, 9), (101, 4)]);
    assert_eq!(ids(&mut state, &late), [(id(99, "/5"), 2), (id(100, "/2"), 7), (id(101, ""), 4)]);
    let mut kept: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
    assert_eq!(ids(&mut kept, &late), []);
    // A history that is built again may know fewer for a while.
    assert_eq!(ids(&mut kept, &seen(106, &[(100, 3)])), []);
    assert_eq!(ids(&mut kept, &seen(106, &[(100, 9)])), []);
    assert_eq!(ids(&mut kept, &seen(300, &[])), []);
    assert_eq!(kept.reported, Some(BTreeMap::new()), "what is not looked at any more is forgotten");
    // The record of an earlier version does not say what was reported.
    let mut earlier = State { dead_letters_from: 101, ..State::default() };
    assert_eq!(ids(&mut earlier, &late), [(id(101, ""), 4)]);
}

/// A source that stays silent does not recover because the hours in which it sent go by, nor because an admin that takes over
/// has counted nothing yet.
#[test]
fn a_silent_source_recovers_by_an_event() {
    const HOUR_MS: i64 = 3_600_000;
    let mut state = State::default();
    let seen = |last_ms, hours| {
        let source = Source { name: "shop".into(), is_configured: true, last_ms, hours, ..Source::default() };
        Seen { sources: vec![source], finished: 1, ..Seen::default() }
    };
    let kind = "weft.source.silent";
    assert_eq!(decided(&mut state, &seen(Some(NOW), 24), NOW + HOUR_MS), said(kind, "raised"));
    for hour in 2..=30 {
        let last_ms = Some(NOW).filter(|_| hour <= 25);
        let silent = seen(last_ms, 24 - usize::try_from(hour.min(24)).unwrap());
        assert_eq!(decided(&mut state, &silent, NOW + hour * HOUR_MS), [], "{hour}");
    }
    assert_eq!(decided(&mut state, &Seen::default(), NOW + 30 * HOUR_MS), []);
    let sent = seen(Some(NOW + 30 * HOUR_MS), 1);
    assert_eq!(decided(&mut state, &sent, NOW + 30 * HOUR_MS), said(kind, "recovered"));
    // One that is not configured any more is not waited for.
    let mut removed = seen(Some(NOW), 24);
    assert_eq!(decided(&mut state, &removed, NOW + HOUR_MS), said(kind, "raised"));
    removed.sources[0].is_configured = false;
    assert_eq!(decided(&mut state, &removed, NOW + HOUR_MS), said(kind, "recovered"));
}

/// Another admin that continues from the same record publishes the same ids, which gateways recognise as repeats.
#[test]
fn ids_are_those_of_the_condition() {
    let seen = of(Subscription { receiver: Some(("away", NOW - 5_000, "down".into())), ..Default::default() });
    let mut states = [State::default(), State::default()];
    let ids = states.each_mut().map(|state| {
        decide(state, &seen, NOW);
        state.outbox.front().unwrap().id.clone()
    });
    assert_eq!(ids[0], ids[1]);
    let kept: State = serde_json::from_str(&serde_json::to_string(&states[0]).unwrap()).unwrap();
    assert_eq!(kept, states[0]);
    let mut again = of(Subscription { receiver: Some(("away", NOW + 60_000, "down".into())), ..Default::default() });
    decide(&mut states[0], &Seen::default(), NOW + 30_000);
    again.subscriptions[0].paused = None;
    decide(&mut states[0], &again, NOW + 60_000);
    let all: Vec<_> = states[0].outbox.iter().map(|alert| alert.id.clone()).collect();
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!((all.len(), distinct.len()), (3, 3), "a second outage is another alert");
}

/// Alerts about the deliveries of alerts would never end.
#[test]
fn nothing_is_said_about_the_own_events() {
    let mut seen = of(Subscription {
        takes_own_only: true,
        paused: Some("x".into()),
        receiver: Some(("away", NOW, "down".into())),
        blocked: (1, vec![]),
        ..Default::default()
    });
    seen.sources.push(Source { name: "weft".into(), rejected: 100, ..Source::default() });
    assert_eq!(decided(&mut State::default(), &seen, NOW), []);
}

/// A stream around its limit is not reported again and again.
#[test]
fn a_full_stream_recovers_below_its_limit() {
    let mut state = State::default();
    let at = |bytes| Seen {
        streams: vec![Stream { name: "EVENTS".into(), bytes, bytes_max: 100, alert_from: 95 }],
        ..Seen::default()
    };
    assert_eq!(decided(&mut state, &at(94), NOW), []);
    assert_eq!(decided(&mut state, &at(95), NOW), said("weft.log.near_full", "raised"));
    assert_eq!(decided(&mut state, &at(93), NOW), []);
    assert_eq!(decided(&mut state, &at(91), NOW), said("weft.log.near_full", "recovered"));
}

#[test]
fn what_waits_is_bounded() {
    let mut state = State::default();
    for second in 0..300 {
        let away = Subscription { receiver: Some(("away", NOW + second, "down".into())), ..Default::default() };
        let seen = if second % 2 == 0 { of(away) } else { Seen::default() };
        decide(&mut state, &seen, NOW + second);
    }
    assert_eq!(state.outbox.len(), OUTBOX_MAX);
}
