//! `weft healthcheck`: the probe of a container's health check, in an image without a shell or an HTTP client.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::failure::Failure;

/// Ports of operations, unless the container's environment names another address.
const LISTEN_DEFAULT: &str = "127.0.0.1:9101";
/// A probe is over before the container engine gives it up.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Readiness reports are some lines; more is not shown.
const RESPONSE_BYTES_MAX: u64 = 16 * 1024;

/// `weft healthcheck`.
#[derive(Debug, clap::Args)]
pub struct HealthcheckArgs {
    /// The address of `[ops] listen`
    #[arg(long, env = "WEFT_OPS__LISTEN", value_name = "ADDR", default_value = LISTEN_DEFAULT)]
    listen: String,
    /// The path to get
    #[arg(long, default_value = "/readyz")]
    path: String,
}

/// Succeeds if the response is 200.
///
/// # Errors
///
/// [`Failure::Failed`] with the response's text, [`Failure::Unavailable`] without a response.
pub async fn run(args: HealthcheckArgs) -> Result<(), Failure> {
    let address = local(&args.listen);
    let response = tokio::time::timeout(TIMEOUT, get(&address, &args.path)).await;
    let response = response.map_err(|_| Failure::Unavailable(format!("no response from {address} in {TIMEOUT:?}")))?;
    let response = response.map_err(|error| Failure::Unavailable(format!("{address}: {error}")))?;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => {
            let status = head.lines().next().unwrap_or_default();
            Err(Failure::Failed(format!("{status}: {}", body.lines().collect::<Vec<_>>().join("; "))))
        }
    }
}

/// The address of a listener as a client on the same machine connects to it.
fn local(listen: &str) -> String {
    let (host, port) = listen.rsplit_once(':').unwrap_or((listen, ""));
    match host {
        "0.0.0.0" | "" => format!("127.0.0.1:{port}"),
        "[::]" => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    }
}

async fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the response ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut response = Vec::new();
    stream.take(RESPONSE_BYTES_MAX).read_to_end(&mut response).await?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_addresses_are_probed_on_loopback() {
        for (listen, address) in [
            ("0.0.0.0:9101", "127.0.0.1:9101"),
            (":9101", "127.0.0.1:9101"),
            ("[::]:9101", "[::1]:9101"),
            ("[::1]:9101", "[::1]:9101"),
            ("10.0.0.7:9101", "10.0.0.7:9101"),
        ] {
            assert_eq!(local(listen), address);
        }
    }
}
