//! Carrying out what probes and lifecycle hooks ask for.

use super::probe::Action;
use super::runtime::{ContainerId, PodRuntime};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Of an answer, no more is looked at.
const MAX_ANSWER: u64 = 4096;

/// Succeeds, or says why not.
pub(super) async fn carry_out(
    action: Action,
    runtime: Arc<dyn PodRuntime>,
    id: ContainerId,
    limit: Duration,
) -> Result<(), String> {
    let outcome = async {
        match action {
            Action::Sleep(time) => {
                tokio::time::sleep(Duration::try_from(time).unwrap_or_default()).await;
                Ok(())
            }
            Action::Tcp { host, port } => TcpStream::connect((host.as_str(), port))
                .await
                .map(drop)
                .map_err(|e| format!("dial {host}:{port}: {e}")),
            Action::Http { host, port, path, headers } => get(&host, port, &path, &headers).await,
            Action::Exec(command) => {
                let ran = runtime.exec(&id, command).await?;
                match (ran.exit_code, ran.output.trim()) {
                    (0, _) => Ok(()),
                    (code, "") => Err(format!("the command ended with code {code}")),
                    (_, output) => Err(output.to_owned()),
                }
            }
        }
    };
    match tokio::time::timeout(limit, outcome).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

async fn get(host: &str, port: u16, path: &str, headers: &[(String, String)]) -> Result<(), String> {
    let url = format!("http://{host}:{port}{path}");
    let failed = |error: std::io::Error| format!("Get \"{url}\": {error}");
    let mut stream = TcpStream::connect((host, port)).await.map_err(failed)?;
    let mut request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
    let given = |name: &str| headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    let usual = [
        ("Host", format!("{host}:{port}")),
        ("User-Agent", "kube-probe/1.34".to_owned()),
        ("Accept", "*/*".to_owned()),
    ];
    let usual = usual.into_iter().filter(|(name, _)| !given(name)).map(|(name, value)| (name.to_owned(), value));
    for (name, value) in usual.chain(headers.iter().cloned()) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    let mut rest = stream.take(MAX_ANSWER);
    while !answer.contains(&b'\n') {
        if rest.read_buf(&mut answer).await.map_err(failed)? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    let status: Option<u16> =
        line.strip_prefix("HTTP/1.").and_then(|rest| rest.split_whitespace().nth(1)).and_then(|code| code.parse().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("HTTP probe failed with statuscode: {status}")),
        None => Err(format!("Get \"{url}\": the answer is not HTTP")),
    }
}
