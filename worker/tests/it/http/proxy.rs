//! Deliveries through a forward proxy: a real one, which opens tunnels and forwards requests in absolute form.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use weft_proto::v1::{AttemptClass, HttpProxy};
use weft_testkit::Authority;
use weft_worker::{
    destination::{Destinations, address::AddressRules},
    lane::AttemptResult,
};

use super::{
    changed, destinations,
    http1::{OK, Process, read_head, read_request},
    receiver,
    tls::acceptor,
};

/// Base64 of `me:hush`.
const CREDENTIALS: &str = "proxy-authorization: basic bwu6ahvzaa==";

/// A proxy that wants [`CREDENTIALS`]; the first line of each request comes out.
async fn proxy() -> (HttpProxy, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(connection, sender.clone()));
        }
    });
    (HttpProxy { url, user: "me".into(), password: "hush".into() }, asked)
}

async fn serve(mut client: TcpStream, asked: mpsc::UnboundedSender<String>) -> Option<()> {
    let head = read_head(&mut client).await?;
    let line = head.lines().next()?.to_owned();
    let [method, target, _] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    let (method, target) = (method.to_owned(), target.to_owned());
    asked.send(line).ok()?;
    if !head.to_lowercase().contains(CREDENTIALS) {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
        return client.write_all(refusal).await.ok();
    }
    // Names are the proxy's to resolve: all are this machine.
    let address = |authority: &str| format!("127.0.0.1:{}", authority.rsplit(':').next().unwrap());
    if method == "CONNECT" {
        let mut receiver = TcpStream::connect(address(&target)).await.ok()?;
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.ok()?;
        copy_bidirectional(&mut client, &mut receiver).await.ok()?;
    } else {
        let authority = target.strip_prefix("http://")?.split('/').next()?;
        let mut receiver = TcpStream::connect(address(authority)).await.ok()?;
        receiver.write_all(head.replacen(&format!("http://{authority}"), "", 1).as_bytes()).await.ok()?;
        copy_bidirectional(&mut client, &mut receiver).await.ok()?;
    }
    Some(())
}

/// Guards: `http` goes through the proxy in absolute form, with the proxy's credentials; a name that only the proxy knows is
/// delivered to.
#[tokio::test]
async fn http_is_sent_in_absolute_form() {
    let (url, mut taken) = receiver().await;
    let (proxy, mut asked) = proxy().await;
    let port = url.rsplit(':').next().unwrap();
    for host in ["127.0.0.1", "only-the-proxy-knows.invalid"] {
        let target = format!("http://{host}:{port}/ok");
        let subscription = changed(&target, |http| http.proxy = Some(proxy.clone()));
        let process = Process::with_subscription(destinations(), subscription);
        let end = process.deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "{host}: {}", end.error);
        assert_eq!(asked.recv().await.unwrap(), format!("POST {target} HTTP/1.1"));
        assert_eq!(taken.recv().await.unwrap().0["host"], format!("{host}:{port}"));
        assert_eq!(process.deliver().await.result, AttemptResult::Delivered, "over the same connection");
        assert!(asked.try_recv().is_err());
        taken.recv().await.unwrap();
    }
}

/// Guards: `https` goes through a tunnel, so that the proxy sees neither the event nor the receiver's credentials.
#[tokio::test]
async fn https_is_sent_through_a_tunnel() {
    let authority = Authority::new();
    let acceptor = acceptor(&authority, false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        let (connection, _) = listener.accept().await.unwrap();
        let mut connection = acceptor.accept(connection).await.unwrap();
        while let Some(request) = read_request(&mut connection).await {
            let text = String::from_utf8_lossy(&request).to_lowercase();
            assert!(text.starts_with("post / http/1.1") && !text.contains("proxy-authorization"), "{text}");
            counted.fetch_add(1, Ordering::SeqCst);
            connection.write_all(OK.as_bytes()).await.unwrap();
        }
    });
    let (proxy, mut asked) = proxy().await;
    let ca = std::fs::read_to_string(authority.ca()).unwrap();
    let subscription = changed(&format!("https://localhost:{port}/"), |http| {
        http.proxy = Some(proxy.clone());
        http.tls = Some(weft_proto::v1::ClientTls { ca, ..Default::default() });
    });
    let process = Process::with_subscription(destinations(), subscription);
    for _ in 0..3 {
        let end = process.deliver().await;
        assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    }
    assert_eq!(asked.recv().await.unwrap(), format!("CONNECT localhost:{port} HTTP/1.1"));
    assert!(asked.try_recv().is_err(), "the tunnel is used again");
    assert_eq!(requests.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_and_not_counted() {
    let (proxy, _asked) = proxy().await;
    let wrong = HttpProxy { password: "wrong".into(), ..proxy };
    let subscription = changed("https://localhost:9/", |http| http.proxy = Some(wrong.clone()));
    let end = Process::with_subscription(destinations(), subscription).deliver().await;
    assert_eq!((end.result, end.class), (AttemptResult::Unreachable, AttemptClass::Connect), "{}", end.error);
    let named = wrong.url.strip_prefix("http://").unwrap();
    assert!(end.error.contains(named) && end.error.contains("(407)") && !end.error.contains("wrong"), "{}", end.error);
}

/// Guards: a proxy is no way around the address guard, neither by its own address nor for a receiver whose address is known here.
#[tokio::test]
async fn the_address_guard_holds_with_a_proxy() {
    let (proxy, mut asked) = proxy().await;
    let subscription = |url: &str| changed(url, |http| http.proxy = Some(proxy.clone()));
    let refused = [
        (Destinations::new(AddressRules::default()), "http://receiver.invalid/", "loopback"),
        (destinations(), "https://10.0.0.1/", "private"),
        (destinations(), "http://169.254.169.254/", "link-local"),
        (destinations(), "http://[fd00::1]/", "private"),
    ];
    for (destinations, url, rule) in refused {
        let destination = destinations.make(&subscription(url)).unwrap();
        assert!(destination.check().await.unwrap_err().rule.starts_with(rule), "{url}");
        let end = Process::with_subscription(destinations, subscription(url)).deliver().await;
        assert_eq!(
            (end.result, end.class),
            (AttemptResult::Held, AttemptClass::RefusedAddress),
            "{url}: {}",
            end.error
        );
        assert!(end.error.contains(rule), "{}", end.error);
    }
    assert!(asked.try_recv().is_err(), "the proxy was not called");
}
