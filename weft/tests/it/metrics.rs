//! docs/metrics.md and `/metrics` name the same metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use bytes::Bytes;
use weft_services::{
    mesh::{Up, Wiring},
    receiver::{Answer, Receiver},
};
use weft_testkit::eventually;

use crate::{
    mesh::{PATIENCE, accepted, program, provide_tls},
    up::http,
};

/// Name, type and labels of each row of the table.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `weft_"));
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let labels = cells[3].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels))
    };
    rows.map(row).collect()
}

/// The same of a scrape; every metric has a HELP text.
fn scraped(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let helped: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' ')).map(|(name, _)| name).collect();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for (name, kind) in types {
        assert!(helped.contains(name), "{name} has no HELP");
        found.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
    }
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, labels) =
            line.split_once('{').map_or((line, ""), |(name, rest)| (name, rest.split('}').next().unwrap()));
        let name = name.split(' ').next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let base = base.filter(|base| found.contains_key(*base)).unwrap_or(name);
        let labels = labels.split(',').filter_map(|label| label.split_once('=')).map(|(label, _)| label.to_owned());
        let (_, known) = found.get_mut(base).unwrap_or_else(|| panic!("{line} has no TYPE"));
        known.extend(labels.filter(|label| label != "le"));
    }
    found
}

/// The words of a text that are names of metrics, as their table has them.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("weft_"));
    words
        .map(|word| {
            ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
        })
        .collect()
}

/// Alert rules and dashboard ask for metrics that exist, and Prometheus accepts the rules. Without promtool (of Debian's package
/// `prometheus`) the names alone are checked.
#[test]
fn rules_and_dashboard_ask_for_metrics_that_exist() {
    let deploy = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../services/deploy"));
    let rules = deploy.join("alerts.rules.yml");
    let dashboard = fs::read_to_string(deploy.join("grafana/weft.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
    let table = documented();
    for text in [fs::read_to_string(&rules).unwrap(), dashboard] {
        let unknown: Vec<_> = named(&text).into_iter().filter(|name| !table.contains_key(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
    match Command::new("promtool").args(["check", "rules"]).arg(&rules).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("the rules were not checked by promtool: {error}"),
    }
}

/// The table is complete and names nothing else, the series exist before anything has happened to them, and what is counted
/// agrees with what the receiver got and with `weft stats`.
#[tokio::test]
async fn metrics_are_those_of_the_table_and_agree_with_the_receiver() {
    provide_tls();
    let folder = tempfile::tempdir().unwrap();
    let wiring = Wiring::new();
    let listen = ([127, 0, 0, 1], 0).into();
    let receiver = Receiver::start(listen, &wiring.receiver_secret, |_| Answer::OK).await.unwrap();
    let mut up = Up::start(&program(), folder.path(), &wiring.config(Some(&receiver.url()))).await.unwrap();
    let url = format!("{}/metrics", up.endpoints.get("ops").unwrap());
    let scrape = async || http(&url).await.1;

    let table = documented();
    let mut found = BTreeMap::new();
    let complete = eventually(PATIENCE, async || {
        found = scraped(&scrape().await);
        found.keys().eq(table.keys())
    });
    let _ = complete.await;
    assert_eq!(found, table);

    let sender = up.sender().unwrap();
    let body = Bytes::from_static(br#"{"type":"order.paid","data":1}"#);
    for number in 1..=20 {
        let workflow = format!("order-{}", number % 3);
        accepted(&sender, &wiring, &workflow, &format!("evt_{number}"), body.clone()).await;
    }
    assert!(receiver.until(PATIENCE, |arrivals| arrivals.len() >= 20).await);
    let value = |text: &str, series: &str| {
        let line = text.lines().find(|line| line.starts_with(series)).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    let delivered = r#"weft_worker_outcomes_total{subscription="receiver",outcome="delivered"}"#;
    let mut text = String::new();
    let counted = eventually(PATIENCE, async || {
        text = scrape().await;
        text.lines().any(|line| {
            line.starts_with("weft_worker_outcomes_total") && line.contains("\"delivered\"") && line.ends_with(" 20")
        })
    });
    assert!(counted.await, "{:?} of {text}", value(&text, delivered));
    let deliveries: f64 = text
        .lines()
        .filter(|line| line.starts_with("weft_worker_delivery_seconds_count"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    assert!((deliveries - 20.0).abs() < f64::EPSILON, "{deliveries} deliveries were timed");

    let stats = async || {
        let output = Command::new(program())
            .args(["stats", "-o", "json"])
            .env("WEFT_DATA", folder.path().join("data"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let mut seen = serde_json::Value::Null;
    let agrees = eventually(PATIENCE, async || {
        seen = stats().await;
        seen["total"]["delivered"] == 20 && seen["subscriptions"][0]["backlog"] == 0
    });
    assert!(agrees.await, "{seen}");
    assert_eq!(seen["total"]["accepted"], 20);
    assert_eq!(seen["subscriptions"][0]["latencies"]["total"]["count"], 20);
    assert_eq!(up.stop().await.unwrap().code(), Some(0));
}
