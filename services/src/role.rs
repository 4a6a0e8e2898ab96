//! `weft gateway`, `weft worker`, `weft admin`: one role in a separate process, against `[nats] url`.
//!
//! A missing server never ends the process: `/readyz` reports it until it is available.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;
use weft_admin::Admin;
use weft_catalog::Catalog;
use weft_gateway::Gateway;
use weft_nats::server;
use weft_worker::Worker;

use crate::{
    config::Config,
    data::{DataFolder, configured_token, url},
    deliveries::WorkerDeliveries,
    failure::Failure,
    health_http::{Ops, Readiness},
    ready_output::Line,
    roles::{Roles, bind_failure, finish},
    signal, telemetry,
    traces::Exporter,
    up::connect,
};

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// In.
    Gateway,
    /// Through.
    Worker,
    /// Control.
    Admin,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Worker => "worker",
            Self::Admin => "admin",
        }
    }

    const fn of_nats(self) -> server::Role {
        match self {
            Self::Gateway => server::Role::Gateway,
            Self::Worker => server::Role::Worker,
            Self::Admin => server::Role::Admin,
        }
    }

    /// Where its ops endpoints listen by default: one machine holds one of each.
    const fn ops_listen(self) -> SocketAddr {
        let port = match self {
            Self::Gateway => 9101,
            Self::Worker => 9102,
            Self::Admin => 9103,
        };
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
    }
}

/// Runs one role until a signal.
///
/// # Errors
///
/// One line: what a person must put right.
pub async fn run(role: Role, config: Config) -> Result<(), Failure> {
    let data = DataFolder::open(&config.data)?;
    let _lock = data.lock(&[role.name()])?;
    let mut readiness = Readiness::default();
    let mut roles = Roles::default();
    let drain = signal::drain_token().map_err(|error| Failure::of(&error))?;
    let ops_listen = config.ops.listen.unwrap_or(role.ops_listen());
    let ops = Ops::bind(ops_listen).await.map_err(|error| bind_failure("ops", ops_listen, &error.into()))?;
    let metrics = telemetry::record_metrics()?;
    let exporter = Exporter::start(&config.traces)?;
    let mut lines = vec![("ops", url("http", ops.local_addr()))];
    lines.extend(start(role, config, &data, &mut readiness, &mut roles).await?);

    let stop = CancellationToken::new();
    let ops = tokio::spawn(ops.serve(readiness.clone(), metrics, stop.clone()));
    let result = roles.serve(&drain, &readiness, &lines).await;
    stop.cancel();
    finish(ops, exporter).await;
    result
}

/// Binds the role's port and starts it; what it announces.
async fn start(
    role: Role,
    config: Config,
    data: &DataFolder,
    readiness: &mut Readiness,
    roles: &mut Roles,
) -> Result<Vec<Line>, Failure> {
    let (name, folder, spec) = (role.name(), data.role(role.name()), config.spec);
    let report = readiness.add(name);
    let key = data.master_key(&config.sealing)?;
    let nats = config.nats.of_role(role.of_nats());
    let catalog = || async move {
        let connection = connect(&nats, &format!("weft-{name}")).await?;
        Ok::<_, Failure>(Catalog::new(connection, key))
    };
    match role {
        Role::Gateway => {
            let (listen, delay) = (config.gateway.listen, config.gateway.drain_delay.0);
            let gateway = Gateway::bind(config.gateway).await;
            let gateway = gateway.map_err(|error| bind_failure(name, listen, &error))?;
            let line = ("gateway", url(gateway.scheme(), gateway.local_addr()));
            let token = configured_token(&config.admin, &[(name, listen)])?;
            let catalog = catalog().await?;
            let gateway = gateway.conditions(readiness.conditions());
            roles.start_with_delay(name, delay, |drain| gateway.run(catalog, spec, folder, token, report, drain));
            Ok(vec![line])
        }
        Role::Worker => {
            let catalog = catalog().await?;
            let worker = Worker::new(config.worker).conditions(readiness.conditions());
            roles.start(name, |drain| worker.run(catalog, spec, folder, report, drain));
            Ok(Vec::new())
        }
        Role::Admin => {
            let token = data.admin_token(&config.admin)?;
            let listen = config.admin.listen;
            let ca = config.admin.tls.cert.clone();
            let deliveries = Arc::new(WorkerDeliveries::new(config.worker.address_rules()));
            let admin = Admin::bind(config.admin, token.clone(), deliveries).await;
            let admin = admin.map_err(|error| bind_failure(name, listen, &error))?;
            let line = ("admin", url(admin.scheme(), admin.local_addr()));
            let client = data.write_client(line.1.clone(), None, &token, ca.as_ref())?;
            let catalog = catalog().await?;
            let admin = admin.conditions(readiness.conditions());
            roles.start(name, |drain| admin.run(catalog, spec, folder, report, drain));
            Ok(vec![line, ("client", client.display().to_string())])
        }
    }
}
