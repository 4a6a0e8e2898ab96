//! The rules that span keys or sections. Single values are checked by their types, sources and subscriptions by
//! `weft_catalog`.

use std::{collections::BTreeSet, time::Duration};

use bytesize::ByteSize;
use weft_catalog::{validate_source, validate_subscription};
use weft_gateway::options::DRAIN_DELAY_MAX;
use weft_nats::{event::OWN_SOURCE, options::Span};
use weft_proto::{
    ids::SubscriptionUid,
    v1::{Source, Subscription},
};
use weft_schemes::Verifier;

use super::{Config, KeyPath, Problem};

/// Below this a lease would end in an ordinary pause of a busy machine.
const LEASE_MIN: Span = Span::secs(1);

/// The first rule that is broken.
pub(super) fn check(config: &Config) -> Result<(), Problem> {
    check_log(config)?;
    check_roles(config)?;
    check_gateway(config)?;
    check_keys_and_traces(config)?;
    check_catalog(config)
}

fn check_log(config: &Config) -> Result<(), Problem> {
    config.spec.validate().map_err(placed)?;
    config.nats.validate().map_err(placed)?;
    let replicas = config.spec.log.replicas;
    if replicas > 1 && config.nats.url.is_none() {
        let problem = format!("{replicas} copies need a cluster; name its servers with [nats] url");
        return Err((KeyPath::default().key("log").key("replicas"), problem));
    }
    Ok(())
}

/// The crates say `[section] key …`; the file knows its line.
fn placed(problem: String) -> Problem {
    let named = problem.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    let Some((section, rest)) = named else { return (KeyPath::default(), problem) };
    let key = rest.split([' ', ':']).next().unwrap_or_default();
    (KeyPath::default().key(section).key(key), rest.to_owned())
}

fn check_roles(config: &Config) -> Result<(), Problem> {
    let root = KeyPath::default();
    if config.worker.concurrency == 0 {
        return Err((root.key("worker").key("concurrency"), "0 would deliver nothing; use 1 or more".into()));
    }
    if config.worker.lease < LEASE_MIN {
        let problem = format!("{} is below {LEASE_MIN}; a short pause would lose the shard", config.worker.lease);
        return Err((root.key("worker").key("lease"), problem));
    }
    if config.nats.user.is_some() != config.nats.password.is_some() {
        return Err((root.key("nats"), "user and password belong together: give both or neither".into()));
    }
    let nats = &config.nats;
    let others = [
        nats.user.is_some(),
        nats.creds.is_some(),
        nats.nkey.is_some(),
        nats.inbox_prefix.is_some(),
        nats.api_prefix.is_some(),
    ];
    if nats.passwords.is_some() && others.contains(&true) {
        let problem = "passwords has each role connect as its own user; leave out user, password, creds, nkey, inbox_prefix and api_prefix";
        return Err((root.key("nats").key("passwords"), problem.into()));
    }
    if nats.passwords.is_some() && nats.url.is_none() {
        return Err((root.key("nats").key("passwords"), "is for a server elsewhere; name it with [nats] url".into()));
    }
    Ok(())
}

/// Two for an exchange, and the ones of exchanges that were not finished.
const MASTER_KEYS_MAX: usize = 4;

fn check_keys_and_traces(config: &Config) -> Result<(), Problem> {
    config.traces.validate().map_err(|(key, problem)| (KeyPath::default().key("traces").key(key), problem))?;
    let keys = config.sealing.master_keys.len();
    if keys > MASTER_KEYS_MAX {
        let problem = format!("has {keys} keys, at most {MASTER_KEYS_MAX}; reseal, and leave out the older ones");
        return Err((KeyPath::default().key("catalog").key("master_keys"), problem));
    }
    Ok(())
}

fn check_gateway(config: &Config) -> Result<(), Problem> {
    let root = KeyPath::default();
    for (section, tls) in [("gateway", &config.gateway.tls), ("admin", &config.admin.tls)] {
        if tls.cert.is_some() != tls.key.is_some() || (tls.client_ca.is_some() && tls.cert.is_none()) {
            let problem = "cert and key belong together: give both or neither; client_ca needs them";
            return Err((root.key(section).key("tls"), problem.into()));
        }
    }
    let delay = config.gateway.drain_delay;
    if delay > DRAIN_DELAY_MAX {
        let problem = format!("{delay} is above {DRAIN_DELAY_MAX}: what restarts the process would not wait so long");
        return Err((root.key("gateway").key("drain_delay"), problem));
    }
    let max_body = config.gateway.max_body;
    for (index, source) in config.catalog.sources.iter().enumerate() {
        if source.max_body_bytes > max_body.as_u64() {
            let own = ByteSize::b(source.max_body_bytes);
            let problem = format!("{own} is above [gateway] max_body, which is {max_body}; lower it, or raise that");
            return Err((root.key("source").index(index).key("max_body"), problem));
        }
    }
    Ok(())
}

/// Refuses a tolerance of timestamps above the dedup horizon: a captured request that is still fresh after its id is forgotten
/// would be accepted as another event.
fn check_tolerance(source: &Source, horizon: Span) -> Result<(), String> {
    let scheme = source.verification.as_ref().and_then(|verification| verification.scheme.as_ref());
    let tolerance_ms = scheme.and_then(|scheme| weft_schemes::of(scheme).tolerance_ms());
    let tolerance = tolerance_ms.map(Duration::from_millis);
    if tolerance.is_some_and(|tolerance| tolerance > horizon.0) {
        return Err(format!("is longer than [log] dedup_horizon, which is {horizon}; lower it"));
    }
    Ok(())
}

fn check_catalog(config: &Config) -> Result<(), Problem> {
    let root = KeyPath::default();
    let mut names = BTreeSet::new();
    for (index, source) in config.catalog.sources.iter().enumerate() {
        let path = root.key("source").index(index);
        if !names.insert(&source.name) {
            return Err((path.key("name"), format!("source {:?} is defined twice", source.name)));
        }
        validate_source(source).map_err(|problem| (path.clone(), problem))?;
        Verifier::compile(source).map_err(|error| (path.key("verify"), error.problem))?;
        check_tolerance(source, config.spec.log.dedup_horizon).map_err(|problem| {
            let key = path.key("verify").key("tolerance");
            (key, problem)
        })?;
    }
    let mut names = BTreeSet::new();
    for (index, subscription) in config.catalog.subscriptions.iter().enumerate() {
        let path = root.key("subscription").index(index);
        let value = &subscription.value;
        if !names.insert(&value.name) {
            return Err((path.key("name"), format!("subscription {:?} is defined twice", value.name)));
        }
        // Its uid is made when it is created.
        let created = Subscription { uid: SubscriptionUid::unique().to_vec(), ..value.clone() };
        validate_subscription(&created).map_err(|problem| (path.clone(), problem))?;
        // A misspelt source would be a subscription that waits for ever.
        let sources = &config.catalog.sources;
        let is_known = |name: &String| name == OWN_SOURCE || sources.iter().any(|source| source.name == *name);
        let unknown = value.sources.iter().find(|name| !is_known(name));
        if let (Some(name), false) = (unknown, sources.is_empty()) {
            return Err((path.key("sources"), format!("{name:?} is not a [[source]] of this file")));
        }
    }
    Ok(())
}
