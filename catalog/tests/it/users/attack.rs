//! The ways in which a user tries to remove or change what it may not write.

use super::*;

/// Requests whose reply subject another user chooses.
fn requests(api: &str, consumer: &str) -> Vec<(String, String)> {
    let mut requests = vec![(format!("{api}.INFO"), String::new())];
    let mut ask = |request: String, payload: Value| {
        let payload = if payload.is_null() { String::new() } else { payload.to_string() };
        requests.push((format!("{api}.{request}"), payload));
    };
    ask("STREAM.NAMES".into(), Value::Null);
    ask("STREAM.LIST".into(), Value::Null);
    for stream in STREAMS {
        ask(format!("STREAM.INFO.{stream}"), Value::Null);
        ask(format!("STREAM.MSG.GET.{stream}"), json!({ "seq": 999_999 }));
        ask(format!("DIRECT.GET.{stream}"), json!({ "seq": 999_999 }));
        ask(format!("DIRECT.GET.{stream}"), json!({ "seq": 1 }));
        ask(format!("DIRECT.GET.{stream}"), json!({ "seq": 1, "next_by_subj": ">", "batch": 2 }));
        ask(format!("CONSUMER.INFO.{stream}.{consumer}"), Value::Null);
        ask(format!("CONSUMER.MSG.NEXT.{stream}.{consumer}"), json!({ "batch": 1, "no_wait": true }));
        ask(format!("CONSUMER.DELETE.{stream}.none"), Value::Null);
    }
    requests
}

/// Sends every request, and every message of `SUBJECTS`, with a reply subject that is a request itself.
pub(super) async fn attack_by_replies(connection: &Connection, api: &str, targets: &[String], consumer: &str) {
    let client = connection.client();
    let mut requests = requests(api, consumer);
    for subject in SUBJECTS {
        requests.extend(["", r#"{"seq":2}"#].map(|payload| (subject.to_owned(), payload.to_owned())));
    }
    for (subject, payload) in requests {
        for target in targets {
            client.publish_with_reply(subject.clone(), target.clone(), payload.clone().into()).await.unwrap();
        }
        // Answers of one request go out before the next is read.
        client.flush().await.unwrap();
    }
    barrier(connection).await;
}

/// Sends every request itself.
async fn attack_directly(connection: &Connection, targets: &[String]) {
    let client = connection.client();
    let config = |name: &str| json!({ "name": name, "subjects": ["evil.>"], "max_msgs": 1 }).to_string();
    for target in targets {
        let name = target.rsplit('.').next().unwrap();
        for payload in [String::new(), "{}".into(), r#"{"seq":2}"#.into(), config(name)] {
            client.publish_with_reply(target.clone(), client.new_inbox(), payload.into()).await.unwrap();
        }
    }
    barrier(connection).await;
}

/// Has every stream delivered to every target.
pub(super) async fn attack_by_consumers(connection: &Connection, targets: &[String]) {
    let client = connection.client();
    let inbox = client.new_inbox();
    let mut number = 0;
    for stream in STREAMS {
        for target in targets {
            number += 1;
            let config = json!({
                "name": format!("p{number}"), "deliver_subject": target, "ack_policy": "none", "mem_storage": true,
            });
            let create = json!({ "stream_name": stream, "config": config }).to_string();
            let subject = connection.api_subject(format_args!("CONSUMER.CREATE.{stream}.p{number}"));
            client.publish_with_reply(subject, inbox.clone(), create.into()).await.unwrap();
        }
        barrier(connection).await;
    }
}

/// Publishes with headers that remove messages, or send traces elsewhere.
async fn attack_by_headers(connection: &Connection, targets: &[String]) {
    let client = connection.client();
    for subject in SUBJECTS {
        let mut headers: Vec<(&str, &str)> = vec![("Nats-Rollup", "all"), ("Nats-Rollup", "sub")];
        headers.extend(targets.iter().map(|target| ("Nats-Trace-Dest", target.as_str())));
        for (name, value) in headers {
            let mut map = HeaderMap::new();
            map.insert(name, value);
            client.publish_with_headers(subject, map, "{}".into()).await.unwrap();
        }
        client.flush().await.unwrap();
    }
    barrier(connection).await;
}

pub(super) async fn attack(role: Role) {
    let log = Log::start().await;
    let connection = log.connect(role).await;
    let before = settled(&log.admin).await;
    let consumer = "mine";
    for stream in STREAMS {
        let config = json!({ "name": consumer, "ack_policy": "none", "mem_storage": true });
        let create = json!({ "stream_name": stream, "config": config }).to_string();
        let subject = connection.api_subject(format_args!("CONSUMER.CREATE.{stream}.{consumer}"));
        let _ = connection.client().request(subject, create.into()).await;
    }
    let mut all: Vec<String> = SUBJECTS.map(str::to_owned).to_vec();
    all.retain(|subject| !may_publish(role, subject));
    for api in ["weft.API", "$JS.API"] {
        all.extend(targets(api));
    }
    for api in ["weft.API", "$JS.API"] {
        attack_by_replies(&connection, api, &all, consumer).await;
    }
    log.assert_unharmed(role, &before, "reply subjects").await;
    attack_directly(&connection, &all).await;
    log.assert_unharmed(role, &before, "requests").await;
    attack_by_headers(&connection, &all).await;
    log.assert_unharmed(role, &before, "headers").await;
    attack_by_consumers(&connection, &all).await;
    log.assert_unharmed(role, &before, "push consumers").await;
}

fn may_publish(role: Role, subject: &str) -> bool {
    let may: &[&str] = match role {
        Role::Gateway => &["events.", "heads.", "rejected.", "$KV.weft_catalog.key-used.", "$KV.weft_leases.appender."],
        Role::Worker => &["heads.", "outcomes.", "checkpoints.", "dlq.", "$KV.weft_leases."],
        Role::Admin | Role::Tail => &[],
    };
    may.iter().any(|prefix| subject.starts_with(prefix))
}
