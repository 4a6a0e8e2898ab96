//! Forward proxies: a tunnel by CONNECT for `https`, requests in absolute form for `http`.
//!
//! The address guard holds for the proxy's own address, as for any other. The name of a receiver is resolved by the proxy, so
//! only what is known here can be refused: an address in the URL, and a name that resolves here to refused addresses only.
//! Any other receiver is for the proxy's own rules.

use http::{HeaderValue, Uri};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use weft_catalog::delivery_url::{DeliveryUrl, InvalidUrl};
use weft_proto::v1::HttpProxy;

use super::credentials::basic;

/// Maximum length of the head of an answer to CONNECT.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// A forward proxy.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    url: DeliveryUrl,
    authorization: Option<HeaderValue>,
}

/// A proxy that opens no tunnel.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {proxy} {problem}")]
pub(super) struct TunnelError {
    proxy: String,
    problem: String,
}

impl Proxy {
    pub fn new(proxy: &HttpProxy) -> Result<Self, InvalidUrl> {
        let url = DeliveryUrl::parse(&proxy.url)?;
        let authorization = (!proxy.user.is_empty()).then(|| basic(&proxy.user, &proxy.password)).flatten();
        Ok(Self { url, authorization })
    }

    pub fn url(&self) -> &DeliveryUrl {
        &self.url
    }

    /// The value of `proxy-authorization`.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Opens a tunnel to the host and port of `target` over a connection to the proxy.
    pub async fn tunnel<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        connection: &mut T,
        target: &Uri,
    ) -> Result<(), TunnelError> {
        let failed = |problem: String| TunnelError { proxy: self.url.authority(), problem };
        let host = target.host().unwrap_or_default();
        let port = target.port_u16().unwrap_or(443);
        let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            request.extend_from_slice(b"proxy-authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        let io = |error: std::io::Error| failed(format!("closed the connection: {error}"));
        connection.write_all(&request).await.map_err(io)?;
        let mut head = Vec::new();
        // Behind the head the receiver speaks only after this side, so there is nothing to read too far into.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= HEAD_BYTES_MAX {
                return Err(failed("answered CONNECT with a head of more than 8 KiB".into()));
            }
            head.push(connection.read_u8().await.map_err(io)?);
        }
        match status(&head) {
            Some(200..=299) => Ok(()),
            Some(407) => Err(failed("wants another user and password (407)".into())),
            Some(status) => Err(failed(format!("refused CONNECT {host}:{port} with status {status}"))),
            None => Err(failed("answered CONNECT with something else than HTTP/1.1".into())),
        }
    }
}

/// The status of the head of an HTTP/1.1 response.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|status| status.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn connect(answer: &[u8]) -> (Result<(), String>, String) {
        let proxy = HttpProxy { url: "http://proxy:3128".into(), user: "me".into(), password: "hush".into() };
        let proxy = Proxy::new(&proxy).unwrap();
        let (mut here, mut there) = duplex(64 * 1024);
        there.write_all(answer).await.unwrap();
        let target = "https://[2606:4700::1]/hook?a=b".parse().unwrap();
        there.shutdown().await.unwrap();
        let result = proxy.tunnel(&mut here, &target).await;
        drop(here);
        let mut request = String::new();
        there.read_to_string(&mut request).await.unwrap();
        (result.map_err(|error| error.to_string()), request)
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_with_host_port_and_credentials() {
        let (result, request) = connect(b"HTTP/1.1 200 Connection established\r\nvia: x\r\n\r\n").await;
        assert_eq!(result, Ok(()));
        let head = "CONNECT [2606:4700::1]:443 HTTP/1.1\r\nhost: [2606:4700::1]:443\r\n";
        assert_eq!(request, format!("{head}proxy-authorization: Basic bWU6aHVzaA==\r\n\r\n"));
    }

    /// Guards: a proxy that refuses is named, with its status, and no credentials are.
    #[tokio::test]
    async fn a_refusal_names_the_proxy() {
        for (answer, names) in [
            (&b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..], "another user and password"),
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", "with status 403"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "something else"),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "something else"),
            (b"HTTP/1.1 200 OK\r\n", "closed the connection"),
            (b"", "closed the connection"),
            (&[b'x'; 9000], "8 KiB"),
        ] {
            let problem = connect(answer).await.0.unwrap_err();
            assert!(problem.starts_with("the proxy proxy:3128 ") && problem.contains(names), "{problem}");
            assert!(!problem.contains("hush") && !problem.contains("bWU6"), "{problem}");
        }
    }
}
