//! `weft listen` as a process: what it answers, what it shows, and how it ends.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};
use weft_nats::server::free_port;
use weft_services::{
    mesh::secret,
    sender::{Scheme, Signing},
};

use crate::mesh::{PATIENCE, program, provide_tls};

struct Listener {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    url: String,
    signing: Signing,
}

impl Listener {
    async fn start(args: &[&str]) -> Self {
        provide_tls();
        let secret = secret();
        let mut command = Command::new(program());
        command.args(["listen", "--secret", &secret]).args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, stderr.next_line()).await.unwrap().unwrap().unwrap();
        let url = line.strip_prefix("listening at ").unwrap().to_owned();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, url, signing: Signing::new(Scheme::Standard, secret) }
    }

    /// Delivers an envelope; the status of the answer.
    async fn deliver(&self, workflow: &str, data: &str) -> u16 {
        let body = format!(r#"{{"eventId":"e","workflowId":"{workflow}","type":"order.paid",{data}}}"#);
        let now = jiff::Timestamp::now().as_second();
        let mut request = reqwest::Client::new().post(&self.url);
        for (name, value) in self.signing.headers("e", now, None, body.as_bytes()).unwrap() {
            request = request.header(name, value);
        }
        request.body(body).send().await.unwrap().status().as_u16()
    }

    async fn line(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.unwrap().unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn end(mut self, signal: Signal) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        tokio::time::timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap().code()
    }
}

#[tokio::test]
async fn a_workflow_fails_by_name_and_the_payload_is_shown() {
    let args = ["--port", "0", "--show", "--fail-workflow", "sick", "--status", "503"];
    let mut listener = Listener::start(&args).await;
    assert_eq!(listener.deliver("well", "\"data\": {\n \"total\": 1.50,\n \"n\": 1e400 }").await, 200);
    assert_eq!(listener.deliver("sick", r#""data":null"#).await, 503);
    assert_eq!(listener.deliver("well", r#""dataBase64":"aGk=","dataContentType":"text/plain""#).await, 200);
    let line = tokio::time::timeout(PATIENCE, listener.lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(line.contains(r#""data":{"total":1.50,"n":1e400}"#) && line.contains(r#""signed":true"#), "{line}");
    let sick = listener.line().await;
    assert_eq!((sick["status"].as_u64(), sick.get("data")), (Some(503), Some(&Value::Null)));
    assert_eq!(listener.line().await["dataBase64"], "aGk=");
    assert_eq!(listener.end(Signal::TERM).await, Some(0));
}

#[tokio::test]
async fn every_attempt_fails_with_a_status_alone_on_every_address() {
    let port = free_port().unwrap().to_string();
    let mut listener = Listener::start(&["--host", "0.0.0.0", "--port", &port, "--status", "410"]).await;
    listener.url = format!("http://127.0.0.1:{port}/any/path");
    assert_eq!(listener.deliver("w", r#""data":{}"#).await, 410);
    let line = listener.line().await;
    assert_eq!((line["status"].as_u64(), line.get("data")), (Some(410), None));
    assert_eq!(listener.end(Signal::INT).await, Some(0));
}
