use std::time::Instant;

use super::*;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(10);

fn arrival(number: u64, lane_previous: Option<u64>, status: u16) -> Arrival {
    Arrival {
        at: Timestamp::UNIX_EPOCH,
        event_id: format!("id-{number}"),
        workflow_id: "w".into(),
        sequence_number: number,
        previous_event_id: None,
        lane_previous_event_id: lane_previous.map(|number| format!("id-{number}")),
        event_type: "t".into(),
        delivery_id: None,
        attempt: 1,
        replay: false,
        epoch: 1,
        batch_size: None,
        signed: true,
        in_order: None,
        status,
        payload: Payload::default(),
    }
}

/// A receiver's judgement of the order of some arrivals.
fn order(arrivals: impl IntoIterator<Item = Arrival>) -> Vec<Option<bool>> {
    let mut records = Records::default();
    arrivals.into_iter().for_each(|arrival| records.add(arrival));
    records.arrivals.iter().map(|arrival| arrival.in_order).collect()
}

/// P3 as a receiver sees it: retries and types that are not subscribed to are no gaps, a missing event is one.
#[test]
fn a_gap_is_told_from_a_retry_and_a_repeat() {
    let (next, again, gap) = (Some(true), None, Some(false));
    let ok = |number, previous| arrival(number, previous, 200);
    assert_eq!(order([ok(1, None), arrival(2, Some(1), 500), ok(2, Some(1)), ok(5, Some(2))]), [next; 4]);
    assert_eq!(order([ok(1, None), ok(3, Some(2))]), [next, gap], "the second is missing");
    assert_eq!(order([ok(1, None), ok(2, None)]), [next, gap], "the chain restarts");
    assert_eq!(order([arrival(1, None, 500), ok(2, Some(1))]), [next; 2], "the first may have been taken by another");
    assert_eq!(order([ok(7, Some(6)), ok(8, Some(7))]), [next; 2], "a receiver that began later");
    let tail = [ok(1, None), ok(2, Some(1)), ok(3, Some(2)), ok(2, Some(1)), ok(3, Some(2)), ok(4, Some(3))];
    assert_eq!(order(tail), [next, next, next, again, again, next], "the end of a lane, repeated");
    let replay = Arrival { replay: true, ..ok(2, None) };
    assert_eq!(order([ok(1, None), ok(3, Some(1)), replay, ok(4, Some(3))]), [next, next, again, next]);
}

async fn post(url: String, secret: &str, number: u64) -> u16 {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let body = format!(r#"{{"workflowId":"größe 1","type":"order.paid","deliveryId":"evt-{number}","data":{{}}}}"#);
    let signing = crate::sender::Signing::new(crate::sender::Scheme::Standard, secret);
    let headers = signing.headers("id-1", Timestamp::now().as_second(), None, body.as_bytes()).unwrap();
    let mut request = reqwest::Client::builder().no_proxy().build().unwrap().post(url).body(body);
    for (name, value) in
        headers.into_iter().chain([("weft-sequence".into(), number.to_string()), ("weft-attempt".into(), "2".into())])
    {
        request = request.header(name, value);
    }
    request.send().await.unwrap().status().as_u16()
}

/// A batch is one request, with a list of envelopes, and an arrival for each event once it is accepted.
#[test]
fn a_batch_is_read_as_its_events() {
    let headers: HeaderMap = [
        ("webhook-id", "id-3"),
        ("weft-batch-size", "2"),
        ("weft-sequence", "3"),
        ("weft-lane-previous-event-id", "id-1"),
        ("weft-epoch", "7"),
    ]
    .into_iter()
    .map(|(name, value)| (name.parse::<axum::http::HeaderName>().unwrap(), value.parse().unwrap()))
    .collect();
    let envelope = |number: u64| {
        format!(
            r#"{{"eventId":"id-{number}","workflowId":"w","sequenceNumber":{number},"previousEventId":"id-{}","type":"t","data":{number}}}"#,
            number - 1
        )
    };
    let body = format!("[{},{}]", envelope(2), envelope(3));
    let arrivals = read(&headers, body.as_bytes(), Timestamp::UNIX_EPOCH, Keep::Data);
    let seen: Vec<_> = arrivals
        .iter()
        .map(|one| (one.event_id.as_str(), one.sequence_number, one.lane_previous_event_id.as_deref(), one.epoch))
        .collect();
    assert_eq!(seen, [("id-2", 2, Some("id-1"), 7), ("id-3", 3, Some("id-2"), 7)]);
    assert_eq!(arrivals[1].payload.data.as_ref().unwrap().get(), "3");
    assert_eq!(order(arrivals.iter().map(|one| Arrival { status: 200, ..one.clone() })), [Some(true); 2]);
    let refuses_the_second = |one: &Arrival| Answer::now(if one.sequence_number == 3 { 500 } else { 200 });
    assert_eq!(answer(&arrivals, &refuses_the_second).status, 500);
    assert_eq!(answer(&arrivals, &|_: &Arrival| Answer::OK).status, 200);
}

/// During a rotation a delivery signed with either secret counts as signed, one with another does not.
#[tokio::test]
async fn either_secret_of_a_rotation_is_taken() {
    let newer = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    let other = "whsec_b3RoZXItc2VjcmV0LW90aGVyLXNlY3JldA==";
    let rule = |arrival: &Arrival| if arrival.signed { Answer::OK } else { Answer::now(401) };
    let secrets = [newer.to_owned(), SECRET.to_owned()];
    let receiver = Receiver::start_with(([127, 0, 0, 1], 0).into(), &secrets, Keep::Nothing, rule).await.unwrap();
    for (secret, status) in [(newer, 200), (SECRET, 200), (other, 401)] {
        assert_eq!(post(receiver.url(), secret, 1).await, status);
    }
}

/// Arrivals are recorded with the result of their verification; those taken out are not kept.
#[tokio::test]
async fn arrivals_are_verified_answered_and_remembered() {
    let rule = |arrival: &Arrival| if arrival.signed { Answer::now(503) } else { Answer::now(401) };
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), SECRET, rule).await.unwrap();
    assert_eq!(post(receiver.url(), SECRET, 1).await, 503);
    assert_eq!(post(receiver.url(), "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX", 2).await, 401);
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() == 2).await);
    let arrivals = receiver.take_arrivals();
    let seen: Vec<_> =
        arrivals.iter().map(|arrival| (arrival.sequence_number, arrival.signed, arrival.status)).collect();
    assert_eq!(seen, [(1, true, 503), (2, false, 401)]);
    let first = serde_json::to_value(&arrivals[0]).unwrap();
    for (name, value) in
        [("workflowId", "größe 1"), ("type", "order.paid"), ("deliveryId", "evt-1"), ("eventId", "id-1")]
    {
        assert_eq!(first[name], value);
    }
    assert!(receiver.arrivals().is_empty());
}

/// A request that has been taken is answered before the receiver has stopped.
#[tokio::test]
async fn stopping_waits_for_answers_under_way() {
    const DELAY: Duration = Duration::from_millis(100);
    let (sender, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let rule = move |_: &Arrival| {
        let _ = sender.send(Instant::now());
        Answer { status: 200, delay: DELAY }
    };
    let receiver = Receiver::start(([127, 0, 0, 1], 0).into(), SECRET, rule).await.unwrap();
    let asking = tokio::spawn(post(receiver.url(), SECRET, 1));
    let at = asked.recv().await.unwrap();
    receiver.stop().await;
    assert!(at.elapsed() >= DELAY, "it stopped before the answer");
    assert_eq!(asking.await.unwrap(), 200);
}
