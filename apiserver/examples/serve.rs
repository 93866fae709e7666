//! Serves the API alone, without controllers or a node, and writes a kubeconfig.
//!
//! `cargo run --release -p muster-apiserver --example serve -- --kubeconfig FILE [--store FILE] [--listen 127.0.0.1:0]`

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_apiserver::auth::token::SigningKey;
use muster_apiserver::{ApiServer, Backend, Identity, Keys, Options, tls};
use std::error::Error;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

struct Arguments {
    kubeconfig: PathBuf,
    store: Option<PathBuf>,
    listen: String,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let (mut kubeconfig, mut store, mut listen) = (None, None, "127.0.0.1:0".to_owned());
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--kubeconfig" => kubeconfig = Some(value.into()),
            "--store" => store = Some(value.into()),
            "--listen" => listen = value,
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    Ok(Arguments { kubeconfig: kubeconfig.ok_or("--kubeconfig is needed")?, store, listen })
}

fn write_kubeconfig(path: &Path, server: &str, ca: &str, token: &str) -> Result<(), Box<dyn Error>> {
    let ca = STANDARD.encode(ca);
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "muster",
        "clusters": [{"name": "muster", "cluster": {"server": server, "certificate-authority-data": ca}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "muster", "context": {"cluster": "muster", "user": "admin", "namespace": "default"}}],
    });
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(serde_json::to_string_pretty(&text)?.as_bytes())?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { kubeconfig, store, listen } = arguments()?;
    let authority = tls::Authority::generate()?;
    let pair = authority.server(&["localhost", "kubernetes.default.svc"], &["127.0.0.1".parse()?])?;
    let config = tls::server_config(&pair, &authority.pair.certificate)?;
    let token = muster_api::random::Random::system().uuid();
    let signing = SigningKey::from_pkcs8(&SigningKey::generate()?)?;
    let mut options = Options::memory();
    options.keys = Keys::new().with_token(&token, Identity::admin()).with_service_accounts(signing);
    options.crds = muster_api::crds();
    if let Some(path) = store {
        options.backend = Backend::Sqlite(path);
    }
    let server = ApiServer::open(options).await?;
    let listener = tokio::net::TcpListener::bind(&listen).await?;
    let address = format!("https://{}", listener.local_addr()?);
    write_kubeconfig(&kubeconfig, &address, &authority.pair.certificate, &token)?;
    println!("serving {address}, kubeconfig {}", kubeconfig.display());
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    server.serve(listener, config, shutdown).await;
    server.close().await;
    Ok(())
}
