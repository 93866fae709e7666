//! Carrying out what probes and lifecycle hooks ask for.

use super::probe::Action;
use super::runtime::{Command, ContainerId, Executing, PodRuntime};
use super::supervisor::DRAIN_MS;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Of an answer, no more is looked at.
const MAX_ANSWER: u64 = 4096;
/// As much as the kubelet keeps of what a probe's command writes.
const MAX_OUTPUT: usize = 10 * 1024;

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
                let ran = runtime.exec(&id, Command { argv: command, ..Command::default() }).await?;
                let (code, output) = to_its_end(ran).await?;
                match (code, output.trim()) {
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

/// The exit code of a command, and the beginning of what it wrote. What it has left running may hold its output open.
async fn to_its_end(ran: Executing) -> Result<(i32, String), String> {
    let Executing { mut stdout, stderr, mut exit, .. } = ran;
    let mut stderr = stderr.unwrap_or_else(|| Box::new(tokio::io::empty()));
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let reading = async { tokio::join!(beginning(&mut stdout, &mut output), beginning(&mut stderr, &mut errors)) };
    let code = {
        let mut reading = std::pin::pin!(reading);
        tokio::select! {
            biased;
            _ = &mut reading => exit.await?,
            code = &mut exit => {
                let _ = tokio::time::timeout(Duration::from_millis(DRAIN_MS.into()), reading).await;
                code?
            }
        }
    };
    output.extend_from_slice(&errors);
    output.truncate(MAX_OUTPUT);
    Ok((code, String::from_utf8_lossy(&output).into_owned()))
}

async fn beginning(from: &mut (dyn AsyncRead + Send + Unpin), kept: &mut Vec<u8>) {
    let mut chunk = [0; 4096];
    while let Ok(count) = from.read(&mut chunk).await
        && count > 0
    {
        // What is too much is read all the same: the command must not wait for a reader.
        kept.extend_from_slice(&chunk[..count.min(MAX_OUTPUT.saturating_sub(kept.len()))]);
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
