//! A process that supervises a nats-server until it is killed: `<this> run <folder> <port> [launched]`. With `launched`
//! the server is started through this program's other half, `<this> launch <program> <args…>`, as `weft up` does.

use std::{env, error::Error, ffi::OsString};

use tokio_util::sync::CancellationToken;
use weft_nats::{
    options::LogOptions,
    server::{Server, ServerOptions, find_program, launch},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args_os().skip(1);
    match args.next().as_deref().and_then(|verb| verb.to_str()) {
        Some("launch") => Err(launch(args).into()),
        Some("run") => run(args.collect()).await,
        _ => Err("say run or launch".into()),
    }
}

async fn run(args: Vec<OsString>) -> Result<(), Box<dyn Error>> {
    let [folder, port, rest @ ..] = args.as_slice() else { return Err("say a folder and a port".into()) };
    let launcher = match rest {
        [] => Vec::new(),
        _ => vec![env::current_exe()?.into(), "launch".into()],
    };
    let options = ServerOptions {
        program: find_program()?,
        folder: folder.into(),
        log: LogOptions::default(),
        max_payload: 1 << 20,
        port: port.to_str().unwrap_or_default().parse()?,
        publish: Vec::new(),
        launcher,
    };
    let server = Server::start(options, CancellationToken::new()).await?;
    println!("{}", server.url());
    std::future::pending().await
}
