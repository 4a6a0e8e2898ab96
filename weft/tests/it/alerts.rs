//! The mesh's own events: raised once by several admins, delivered in order to subscriptions that name their source, and to no other.

use std::path::Path;

use weft_catalog::Catalog;
use weft_nats::subject::Layout;
use weft_proto::v1;
use weft_services::{
    apply::apply,
    config::Config,
    mesh::SUBSCRIPTION,
    receiver::{Answer, Arrival, Receiver},
};
use weft_testkit::master_key;

use crate::mesh::{Mesh, PATIENCE};

async fn set_paused(catalog: &Catalog, paused: bool) {
    let snapshot = catalog.read().await.unwrap();
    let known = &snapshot.subscriptions[SUBSCRIPTION];
    let pause_reason = if paused { "migration".to_owned() } else { String::new() };
    let changed = v1::Subscription { paused, pause_reason, ..(*known.value).clone() };
    catalog.put_subscription(&changed, known.revision).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_reported_once_and_so_is_its_end() {
    let mesh = Mesh::start(|_| Answer::OK).await;
    let _second = mesh.another("admin", "second-admin").await;
    let alerts =
        Receiver::start(([127, 0, 0, 1], 0).into(), &mesh.wiring.receiver_secret, |_| Answer::OK).await.unwrap();
    let text = format!(
        "{}[[subscription]]\nname = \"alerts\"\nsources = [\"weft\"]\n\
         destination = {{ type = \"http\", url = \"{}\", secret = \"{}\" }}\n",
        mesh.wiring.config(Some(&mesh.receiver.url())),
        alerts.url(),
        mesh.wiring.receiver_secret,
    );
    let config = Config::parse(Path::new("weft.toml"), text, [], None).unwrap();
    let catalog = Catalog::new(mesh.server.connection("test").await, master_key());
    apply(&catalog, Layout::new(1), &config.catalog, "test").await.unwrap();

    let reported = async |count: usize| {
        let all = alerts.until(PATIENCE, |arrivals| arrivals.len() >= count).await;
        assert!(all, "{:?}", alerts.arrivals());
    };
    set_paused(&catalog, true).await;
    reported(1).await;
    set_paused(&catalog, false).await;
    reported(2).await;
    set_paused(&catalog, true).await;
    reported(3).await;
    let about = |arrival: &Arrival| (arrival.event_type.clone(), arrival.workflow_id.clone(), arrival.sequence_number);
    let arrivals = alerts.arrivals();
    let workflow = format!("weft:subscription:{SUBSCRIPTION}");
    let expected: Vec<_> =
        (1..=3).map(|number| ("weft.subscription.paused".to_owned(), workflow.clone(), number)).collect();
    assert_eq!(arrivals.iter().map(about).collect::<Vec<_>>(), expected, "each once, although two admins look");
    let states: Vec<_> =
        arrivals.iter().filter_map(|arrival| arrival.delivery_id.as_deref()?.rsplit('/').next()).collect();
    assert_eq!(states, ["raised", "recovered", "raised"]);

    set_paused(&catalog, false).await;
    reported(4).await;
    mesh.send("order-1", "evt_1").await;
    assert!(mesh.receiver.until(PATIENCE, |arrivals| !arrivals.is_empty()).await);
    let others = mesh.receiver.arrivals();
    assert!(others.iter().all(|arrival| arrival.workflow_id == "order-1"), "who names no source gets none: {others:?}");
}

/// The ready-made subscriptions are as the catalog takes them, and their expressions compile.
#[test]
fn the_examples_can_be_applied() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/alerts"));
    for name in ["slack", "teams", "pagerduty", "email"] {
        let path = folder.join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("env:ALERTS_SECRET", &weft_services::mesh::secret());
        let config = Config::parse(&path, text, [], None);
        assert!(config.is_ok(), "{name}: {:?}", config.err());
    }
}
