//! The connection to the admin: where it is, with which token, and what its refusals mean for the exit code.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};
use weft_nats::{error_chain::in_one_line, options::Secret};
use weft_proto::v1::{
    audit_service_client::AuditServiceClient, catalog_service_client::CatalogServiceClient,
    dead_letter_service_client::DeadLetterServiceClient, event_service_client::EventServiceClient,
    rejected_service_client::RejectedServiceClient, replay_service_client::ReplayServiceClient,
    shard_service_client::ShardServiceClient, stats_service_client::StatsServiceClient,
    workflow_service_client::WorkflowServiceClient,
};

use super::lag::LagChannel;
use crate::{
    config::DATA_DEFAULT,
    data::{CLIENT_FILE, Client},
    failure::Failure,
};

/// Heading of the options of every command in its help.
pub const HEADING: &str = "Connection and output";
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer taken: a page of large events.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where the admin is and who asks.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AdminArgs {
    /// The admin's address, such as http://127.0.0.1:9080 [default: the one in client.toml of the data folder]
    #[arg(long, env = "WEFT_SERVER", value_name = "URL", help_heading = HEADING)]
    pub server: Option<String>,
    /// The bearer token [default: the one in client.toml of the data folder]
    #[arg(long, env = "WEFT_TOKEN", hide_env_values = true, help_heading = HEADING)]
    pub token: Option<Secret>,
    /// Certificates (PEM) that the admin's is trusted by, instead of the system's [default: those of client.toml]
    #[arg(long, env = "WEFT_CA", value_name = "FILE", help_heading = HEADING)]
    pub ca: Option<PathBuf>,
    /// Certificate (PEM) of this client, where the admin asks for one; with --client-key
    #[arg(long, env = "WEFT_CLIENT_CERT", value_name = "FILE", requires = "client_key", help_heading = HEADING)]
    pub client_cert: Option<PathBuf>,
    /// Private key (PEM) of that certificate
    #[arg(long, env = "WEFT_CLIENT_KEY", value_name = "FILE", requires = "client_cert", help_heading = HEADING)]
    pub client_key: Option<PathBuf>,
    /// The data folder with client.toml
    #[arg(long, env = "WEFT_DATA", value_name = "DIR", default_value = DATA_DEFAULT, help_heading = HEADING)]
    pub data: PathBuf,
}

/// A connection that asks with a token.
#[derive(Debug, Clone)]
pub struct AdminClient {
    channel: LagChannel,
    authorization: MetadataValue<Ascii>,
    server: String,
    gateway: Option<String>,
}

impl AdminArgs {
    /// Connects.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] without an address; [`Failure::Unavailable`] without an answer.
    pub async fn connect(self) -> Result<AdminClient, Failure> {
        let identity = self.client_cert.zip(self.client_key);
        let (server, token, ca, gateway) = match (self.server, self.token) {
            (Some(server), Some(token)) => (server, token, self.ca, None),
            (Some(server), None) => {
                // A token is for its own server: another would learn it.
                let path = self.data.join(CLIENT_FILE);
                let client = read_client(&path).map_err(|_| no_token(&server, &path))?;
                if !is_same_server(&server, &client.server) {
                    return Err(no_token(&server, &path));
                }
                (server, Secret::new(client.token), self.ca.or(client.ca), None)
            }
            (None, token) => {
                let client = read_client(&self.data.join(CLIENT_FILE))?;
                let token = token.unwrap_or_else(|| Secret::new(client.token));
                // The file's gateway is of the file's mesh.
                (client.server, token, self.ca.or(client.ca), client.gateway)
            }
        };
        warn_of_clear_text(&server);
        let admin = AdminClient::connect_as(server, token.expose(), ca.as_deref(), identity.as_ref()).await?;
        Ok(AdminClient { gateway, ..admin })
    }
}

impl AdminClient {
    /// Connects to a server with a token. What certificates `ca` holds are trusted instead of the
    /// system's.
    ///
    /// # Errors
    ///
    /// As [`AdminArgs::connect`].
    pub async fn connect(server: String, token: &str, ca: Option<&Path>) -> Result<Self, Failure> {
        Self::connect_as(server, token, ca, None).await
    }

    /// As [`connect`](Self::connect), with the files of a client certificate and its key.
    async fn connect_as(
        server: String,
        token: &str,
        ca: Option<&Path>,
        identity: Option<&(PathBuf, PathBuf)>,
    ) -> Result<Self, Failure> {
        let usage = |problem: &str| Failure::Usage(format!("{problem}; see --server and --token"));
        let authorization = format!("Bearer {token}").parse();
        let mut authorization: MetadataValue<Ascii> =
            authorization.map_err(|_| usage("the token holds what no header can"))?;
        // What prints or compresses headers leaves it alone.
        authorization.set_sensitive(true);
        let mut endpoint = Endpoint::from_shared(server.clone())
            .map_err(|_| usage("the server is not an address such as http://127.0.0.1:9080"))?
            .connect_timeout(CONNECT_TIMEOUT);
        if endpoint.uri().scheme_str() == Some("https") {
            endpoint =
                endpoint.tls_config(identified(trusting(ca)?, identity)?).map_err(|error| Failure::of(&error))?;
        }
        let channel = endpoint.connect().await.map_err(|error| {
            Failure::Unavailable(format!(
                "no admin answers at {server}: {}; is `weft up` running?",
                in_one_line(&error)
            ))
        })?;
        Ok(Self { channel: LagChannel::new(channel), authorization, server, gateway: None })
    }

    /// The gateway's address, where it is known.
    pub fn gateway(&self) -> Option<&str> {
        self.gateway.as_deref()
    }

    /// The event service.
    pub fn events(&self) -> EventServiceClient<LagChannel> {
        EventServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The dead letter service.
    pub fn dead_letters(&self) -> DeadLetterServiceClient<LagChannel> {
        DeadLetterServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The service of refused requests.
    pub fn rejected(&self) -> RejectedServiceClient<LagChannel> {
        RejectedServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The catalog service.
    pub fn catalog(&self) -> CatalogServiceClient<LagChannel> {
        CatalogServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The workflow service.
    pub fn workflows(&self) -> WorkflowServiceClient<LagChannel> {
        WorkflowServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The shard service.
    pub fn shards(&self) -> ShardServiceClient<LagChannel> {
        ShardServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The audit service.
    pub fn audit(&self) -> AuditServiceClient<LagChannel> {
        AuditServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The replay service.
    pub fn replays(&self) -> ReplayServiceClient<LagChannel> {
        ReplayServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The stats service.
    pub fn stats(&self) -> StatsServiceClient<LagChannel> {
        StatsServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// A request with the token.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }

    /// The failure for a refusal.
    pub fn failure(&self, status: &Status) -> Failure {
        if not_grpc(status) {
            let problem = "what answers there is not an admin, or not one of this version; a gateway takes events only. See \
                           --server, and the line `admin` that `weft up` prints";
            return Failure::Usage(format!("{}: {problem}", self.server));
        }
        let text = match status.message() {
            "" => format!("{}: {}", self.server, status.code()),
            message => message.lines().collect::<Vec<_>>().join(" "),
        };
        match status.code() {
            Code::NotFound => Failure::NotFound(text),
            Code::InvalidArgument | Code::OutOfRange => Failure::Usage(text),
            Code::Unavailable | Code::DeadlineExceeded => {
                Failure::Unavailable(format!("{text}; the admin at {} cannot answer now", self.server))
            }
            Code::Unauthenticated => Failure::Failed(format!("{text}; see --token")),
            _ => Failure::Failed(text),
        }
    }
}

/// Whether an answer is not one of a gRPC server, or is one of a server without this service.
fn not_grpc(status: &Status) -> bool {
    let message = status.message();
    let foreign = message.contains("invalid compression flag") || message.contains("invalid content-type");
    foreign || status.code() == Code::Unimplemented
}

fn no_token(server: &str, path: &Path) -> Failure {
    Failure::Usage(format!(
        "no token for {server}: {} is not of that server; give its token with --token or WEFT_TOKEN",
        path.display()
    ))
}

/// True if both addresses are of one server, by scheme, host and port as they are written.
fn is_same_server(one: &str, other: &str) -> bool {
    let parts = |address: &str| {
        let uri: http::Uri = address.trim().parse().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme, uri.host()?.to_ascii_lowercase(), port))
    };
    parts(one).is_some_and(|one| parts(other) == Some(one))
}

/// A token that is sent to another machine without TLS can be read on its way.
fn warn_of_clear_text(server: &str) {
    if is_clear_text(server) {
        eprintln!("weft: warning: the token is sent to {server} without TLS; use https");
    }
}

fn is_clear_text(server: &str) -> bool {
    let Ok(uri) = server.parse::<http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let address = host.parse::<std::net::IpAddr>().ok();
    let local =
        host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.to_canonical().is_loopback());
    uri.scheme_str() == Some("http") && !local
}

/// Trusts the certificates of a file, else the system's authorities.
fn trusting(ca: Option<&Path>) -> Result<ClientTlsConfig, Failure> {
    let config = ClientTlsConfig::new();
    let Some(path) = ca else { return Ok(config.with_native_roots()) };
    let pem = fs::read(path).map_err(|error| Failure::Usage(format!("{}: {error}; see --ca", path.display())))?;
    Ok(config.ca_certificate(Certificate::from_pem(pem)))
}

/// With the client's certificate, where there is one.
fn identified(config: ClientTlsConfig, files: Option<&(PathBuf, PathBuf)>) -> Result<ClientTlsConfig, Failure> {
    let Some((cert, key)) = files else { return Ok(config) };
    let read = |path: &PathBuf| {
        fs::read(path).map_err(|error| Failure::Usage(format!("{}: {error}; see --client-cert", path.display())))
    };
    Ok(config.identity(Identity::from_pem(read(cert)?, read(key)?)))
}

fn read_client(path: &Path) -> Result<Client, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        let path = path.display();
        Failure::Usage(format!("{path}: {error}; name the admin with --server and --token, or the folder with --data"))
    })?;
    // Its own text could quote the token.
    toml::from_str(&text).map_err(|_| {
        Failure::Failed(format!("{} does not hold server and token; start `weft up` to write it again", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_its_own_server() {
        let own = "http://127.0.0.1:9080";
        for same in ["http://127.0.0.1:9080", "http://127.0.0.1:9080/", "HTTP://127.0.0.1:9080"] {
            assert!(is_same_server(same, own), "{same}");
        }
        for other in [
            "http://127.0.0.1:9081",
            "https://127.0.0.1:9080",
            "http://evil.example:9080",
            "http://127.0.0.1:9080@evil.example",
            "http://127.0.0.1.evil.example:9080",
            "127.0.0.1:9080",
            "",
        ] {
            assert!(!is_same_server(other, own), "{other}");
        }
        assert!(is_same_server("https://admin.example", "https://ADMIN.example:443"));
    }

    /// Another server is not even connected to.
    #[tokio::test]
    async fn the_kept_token_is_not_sent_to_another_server() {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let client = Client {
            server: "http://127.0.0.1:1".into(),
            token: "secret-of-the-first".into(),
            ca: None,
            gateway: None,
        };
        fs::write(folder.path().join(CLIENT_FILE), toml::to_string(&client).unwrap()).unwrap();
        let args = AdminArgs { server: Some(server.clone()), data: folder.path().to_owned(), ..AdminArgs::default() };
        let failure = args.connect().await.unwrap_err();
        let text = failure.to_string();
        assert!(matches!(failure, Failure::Usage(_)) && text.contains(&server) && text.contains("--token"), "{text}");
        assert!(!text.contains("secret-of-the-first"));
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn clear_text_is_warned_of_beyond_this_machine() {
        for local in ["http://127.0.0.1:9080", "http://localhost:9080", "http://[::1]:9080", "https://admin.example"] {
            assert!(!is_clear_text(local), "{local}");
        }
        for remote in ["http://192.0.2.1:9080", "http://admin.example:9080", "http://[2001:db8::1]:9080"] {
            assert!(is_clear_text(remote), "{remote}");
        }
    }
}
