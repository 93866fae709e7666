//! No answer leaves before the disk has what it tells of: seen in the system calls.

use crate::harness::{Server, eventually};
use std::process::Command;

const WRITES: usize = 30;

/// A system call of the trace, in order of its lines.
#[derive(Debug, PartialEq)]
enum Call {
    /// The log of the store was written.
    Write,
    SyncBegins(u32),
    SyncEnds(u32),
    /// Bytes left to a client.
    Send,
}

#[test]
fn no_answer_leaves_before_its_write_is_on_disk() {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: strace is not installed");
        return;
    }
    let mut server = Server::prepare(&["--roles", "apiserver"]);
    let trace = server.path("trace");
    let up = server.up();
    let mut traced = Command::new("strace");
    // With -D the process started here is the server and strace its companion.
    traced.args(["-D", "-f", "-yy", "-qq", "-s", "0", "-o"]).arg(&trace);
    traced.args(["-e", "trace=write,writev,pwrite64,pwritev,sendto,sendmsg,fdatasync,fsync", "--"]);
    traced.arg(up.get_program()).args(up.get_args());
    for (name, value) in up.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    server.start_by(traced);
    // One client, one request at a time, HTTP/1.1: whatever goes out on its connection is an answer.
    let program = r#"
import base64, http.client, json, re, ssl, sys
text = open(sys.argv[1]).read()
server = re.search(r"server: https://127\.0\.0\.1:(\d+)", text).group(1)
token = re.search(r"token: (\S+)", text).group(1)
ca = base64.b64decode(re.search(r"certificate-authority-data: (\S+)", text).group(1)).decode()
connection = http.client.HTTPSConnection("127.0.0.1", int(server), context=ssl.create_default_context(cadata=ca))
for i in range(int(sys.argv[2])):
    body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"traced-{i}"}})
    connection.request("POST", "/api/v1/namespaces/default/configmaps", body, {"Authorization": "Bearer " + token, "Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 201, answer.status
"#;
    let python = Command::new("python3")
        .args(["-c", program])
        .arg(server.path("kubeconfig"))
        .arg(WRITES.to_string())
        .output()
        .unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    server.drain();

    let calls = eventually("the trace to be whole", || {
        let text = std::fs::read_to_string(&trace).unwrap();
        let calls = parse(&text);
        (calls.iter().filter(|c| **c == Call::Send).count() > WRITES).then_some(calls)
    });
    let (mut written, mut covered) = (0usize, 0usize);
    let mut running: std::collections::BTreeMap<u32, usize> = Default::default();
    let mut checked = 0;
    for call in &calls {
        match call {
            Call::Write => written += 1,
            Call::SyncBegins(thread) => {
                running.insert(*thread, written);
            }
            Call::SyncEnds(thread) => covered = covered.max(running.remove(thread).unwrap_or(0)),
            Call::Send => {
                assert_eq!(
                    written,
                    covered,
                    "an answer left with {} writes of the log not yet synced",
                    written - covered
                );
                checked += 1;
            }
        }
    }
    let syncs = calls.iter().filter(|c| matches!(c, Call::SyncEnds(_))).count();
    assert!(checked > WRITES && syncs >= WRITES, "{checked} answers, {syncs} syncs: the trace shows too little");
}

/// The calls that matter: on the log of the store (`store.db-wal`) and on connections of clients.
fn parse(trace: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut syncing = std::collections::BTreeSet::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.trim_start().split_once(' ') else { continue };
        let (Ok(thread), call) = (thread.parse::<u32>(), call.trim_start()) else { continue };
        let on_log = call.contains("store.db-wal>");
        if call.starts_with("fdatasync(") || call.starts_with("fsync(") {
            if on_log {
                calls.push(Call::SyncBegins(thread));
                if call.contains("unfinished") {
                    syncing.insert(thread);
                } else {
                    calls.push(Call::SyncEnds(thread));
                }
            }
        } else if call.starts_with("<... f") && call.contains("sync resumed") {
            if syncing.remove(&thread) {
                calls.push(Call::SyncEnds(thread));
            }
        } else if call.starts_with("<...") {
            // The end of a write: its beginning counted.
        } else if on_log {
            calls.push(Call::Write);
        } else if call.contains("<TCP:[127.0.0.1:") {
            calls.push(Call::Send);
        }
    }
    calls
}
