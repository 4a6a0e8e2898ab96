//! Permanent errors end the process: exit code 1, one line that says what to do.

use std::{fs, net::TcpListener, path::Path, process::Output};

use tokio::process::Command;
use weft_nats::folder_lock::FolderLock;

use crate::mesh::program;

async fn run(folder: &Path, config: &str, env: &[(&str, &str)]) -> Output {
    run_role(folder, "up", config, env).await
}

async fn run_role(folder: &Path, role: &str, config: &str, env: &[(&str, &str)]) -> Output {
    let file = folder.join("weft.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(program());
    command.arg(role).arg("--config").arg(file).current_dir(folder).envs(env.iter().copied());
    command.kill_on_drop(true).output().await.unwrap()
}

#[track_caller]
fn assert_one_line(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn a_misspelt_key_names_line_and_nearest_key() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), "[gateway]\nlissten = \"127.0.0.1:0\"\n", &[]).await;
    assert_one_line(&output, &["weft.toml:2", "gateway.lissten", "did you mean listen?"]);
    let output = run(folder.path(), "", &[("WEFT_GATEWAY__LISSTEN", "127.0.0.1:0")]).await;
    assert_one_line(&output, &["WEFT_GATEWAY__LISSTEN", "did you mean listen?"]);
}

#[tokio::test]
async fn a_port_that_is_taken_says_how_to_choose_another() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (section, variable) in
        [("gateway", "WEFT_GATEWAY__LISTEN"), ("admin", "WEFT_ADMIN__LISTEN"), ("ops", "WEFT_OPS__LISTEN")]
    {
        let free = "127.0.0.1:0";
        let listen = |name: &str| if name == section { address.as_str() } else { free };
        let config = ["gateway", "admin", "ops"].map(|name| format!("[{name}]\nlisten = \"{}\"\n", listen(name)));
        let output = run(folder.path(), &config.concat(), &[]).await;
        assert_one_line(&output, &["address in use", &address, &format!("[{section}] listen"), variable]);
    }
    assert!(
        !folder.path().join("weft-data/nats").exists(),
        "nats-server must not be started before the ports are ours"
    );
}

/// Certificates are looked at before anything is started, and only by the roles that show them.
#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("key.pem"), "not a key, and not to be quoted").unwrap();
    let listen = ["gateway", "admin", "ops"].map(|name| format!("[{name}]\nlisten = \"127.0.0.1:0\"\n")).concat();
    for section in ["gateway", "admin"] {
        let variable = |key: &str| format!("WEFT_{}__TLS__{key}", section.to_ascii_uppercase());
        let (cert, key) = (variable("CERT"), variable("KEY"));
        let output = run(folder.path(), &listen, &[(&*cert, "file:no.pem"), (&*key, "file:key.pem")]).await;
        assert_one_line(&output, &[&format!("[{section}] tls.cert"), "no.pem"]);
        let output = run(folder.path(), &listen, &[(&*cert, "file:key.pem"), (&*key, "file:key.pem")]).await;
        assert_one_line(&output, &[&format!("[{section}] tls.cert holds no certificate")]);
        let output = run(folder.path(), &listen, &[(&*cert, "file:no.pem")]).await;
        assert_one_line(&output, &[&format!("{section}.tls: cert and key belong together")]);
    }
}

/// A missing certificate authority is reported at the start with its path, like every other file of the configuration,
/// and not as a server that does not answer.
#[tokio::test]
async fn a_certificate_authority_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("some.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    let config = "[nats]\nurl = \"tls://127.0.0.1:1\"\n[admin]\ntoken = \"env:TOKEN\"\n";
    for role in ["up", "gateway", "worker", "admin"] {
        for (key, file) in [("CA", "no-ca.pem"), ("CERT", "no-cert.pem"), ("CA", ".")] {
            let file_of = |this: &str| if this == key { format!("file:{file}") } else { "file:some.pem".to_owned() };
            let env = ["CA", "CERT", "KEY"].map(|key| (format!("WEFT_NATS__TLS__{key}"), file_of(key)));
            let mut env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let free = ["WEFT_GATEWAY__LISTEN", "WEFT_ADMIN__LISTEN", "WEFT_OPS__LISTEN"];
            env.extend(free.map(|name| (name, "127.0.0.1:0")));
            env.push(("TOKEN", "a token of some length, to start with"));
            let output = run_role(folder.path(), role, config, &env).await;
            assert_one_line(&output, &[&format!("[nats] tls.{}: file {file}", key.to_ascii_lowercase())]);
        }
    }
    let output =
        run(folder.path(), "[ops]\nlisten = \"127.0.0.1:0\"\n", &[("WEFT_GATEWAY__TLS__CA", "file:ca.pem")]).await;
    assert_one_line(&output, &["WEFT_GATEWAY__TLS__CA"]);
}

#[tokio::test]
async fn a_data_folder_below_a_regular_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let output = run(folder.path(), "data = \"file/data\"\n", &[]).await;
    assert_one_line(&output, &["file/data", "cannot be used", "--data"]);
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
    let output = command.args(["up", "--config", "no-such.toml"]).current_dir(folder.path()).output().await.unwrap();
    assert_one_line(&output, &["no-such.toml", "--config"]);
}

/// A second process on a data folder is refused before it binds a port, with any configuration.
#[tokio::test]
async fn a_data_folder_that_another_process_uses_names_that_process() {
    let folder = tempfile::tempdir().unwrap();
    for role in ["gateway", "worker", "admin"] {
        let _lock = FolderLock::take(&folder.path().join("weft-data").join(role)).unwrap();
        let output = run(folder.path(), "", &[]).await;
        let pid = format!("in use by process {};", std::process::id());
        assert_one_line(&output, &["weft-data", role, &pid, "--data"]);
    }
}
