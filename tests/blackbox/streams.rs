//! What takes a stream to a pod: exec, attach, port-forward, with the real kubectl.

use crate::harness::{Ended, Server, ended, eventually};
use crate::process;
use nix::pty::{Winsize, openpty};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

/// A pod that runs these containers, each a shell script, until it is deleted.
fn pod(server: &Server, name: &str, containers: &[(&str, &str)]) {
    let container = |(name, script): &(&str, &str)| {
        json!({"name": name, "image": "host", "command": ["sh", "-c", script], "workingDir": "/apart",
               "env": [{"name": "SELF", "value": name}], "volumeMounts": [{"name": "v", "mountPath": "/apart"}]})
    };
    let containers: Vec<Value> = containers.iter().map(container).collect();
    server.apply(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "terminationGracePeriodSeconds": 1, "containers": containers, "volumes": [{"name": "v", "emptyDir": {}}]}})
        .to_string(),
    );
    server.kubectl(&["wait", &format!("pod/{name}"), "--for=condition=Ready", "--timeout=60s"]).succeeded();
}

/// kubectl, not started yet.
fn kubectl(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command.args(arguments).env("KUBECONFIG", server.path("kubeconfig")).env("HOME", server.dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(mut command: Command) -> Ended {
    ended(command.output().unwrap())
}

/// Bytes that do not repeat and hold every value.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length / 8).flat_map(|_| next().to_le_bytes()).collect()
}

/// The processes of a server's pods whose command line holds a mark.
fn marked(server: &Server, mark: &str) -> Vec<String> {
    let all = process::all_of(server.dir.path()).into_iter().map(|(_, command)| command);
    all.filter(|command| command.contains(mark) && !command.starts_with("kubectl")).collect()
}

#[test]
fn exec_gives_what_the_command_writes_and_how_it_ends() {
    let server = Server::start(&[]);
    pod(&server, "two", &[("first", "sleep 600"), ("second", "touch made; sleep 600")]);
    let said = server.kubectl(&["exec", "two", "--", "sh", "-c", "echo out of $SELF; echo err >&2; exit 3"]);
    assert_eq!((said.code, said.stdout.as_str()), (3, "out of first\n"));
    assert!(said.stderr.contains("err\n") && said.stderr.contains("exit code 3"), "{}", said.stderr);
    // In the other container: its variables, its folder, its files.
    let said = server.kubectl(&["exec", "two", "-c", "second", "--", "sh", "-c", "pwd; ls; echo $SELF"]).succeeded();
    assert_eq!(said.stdout, "/apart\nmade\nsecond\n");
    assert_eq!(server.kubectl(&["exec", "two", "--", "sh", "-c", "kill -TERM $$"]).code, 128 + 15);
    assert_eq!(server.kubectl(&["exec", "two", "--", "cat"]).succeeded().stdout, "", "without -i nothing comes in");

    server.kubectl(&["exec", "two", "--", "no-such"]).failed_with(&["\"no-such\": executable file not found in $PATH"]);
    server.kubectl(&["exec", "two", "--", "/no/such"]).failed_with(&["\"/no/such\": no such file or directory"]);
    server.kubectl(&["exec", "two", "-c", "third", "--", "true"]).failed_with(&["third is not valid for pod two"]);
    server.kubectl(&["exec", "none", "--", "true"]).failed_with(&["pods \"none\" not found"]);
    // Asked past kubectl's own checks: no stream (flags as Python writes them, which were all taken for off), and a pod
    // that has ended.
    let path = "/api/v1/namespaces/default/pods/two/exec?container=first&command=true&stdin=False&stdout=True";
    server.kubectl(&["get", "--raw", path]).failed_with(&["Upgrade request required"]);
    server.kubectl(&["run", "over", "--image=host", "--restart=Never", "--", "true"]).succeeded();
    server.kubectl(&["wait", "pod/over", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"]).succeeded();
    server
        .kubectl(&["get", "--raw", "/api/v1/namespaces/default/pods/over/exec?command=true&stdout=true"])
        .failed_with(&["container \"over\" in pod \"over\" has ended"]);
}

#[test]
fn what_is_piped_through_a_command_arrives_whole() {
    let server = Server::start(&[]);
    pod(&server, "pipe", &[("main", "sleep 600")]);
    let bytes = noise(8 << 20);
    let (sent, got) = (server.path("sent"), server.path("got"));
    std::fs::write(&sent, &bytes).unwrap();
    let mut through = kubectl(&server, &["exec", "-i", "pipe", "--", "cat"]);
    through.stdin(File::open(&sent).unwrap()).stdout(File::create(&got).unwrap());
    run(through).succeeded();
    assert!(std::fs::read(&got).unwrap() == bytes, "what came back is not what was sent");
    // A command that does not read all of it ends all the same, with its own code.
    let mut early =
        kubectl(&server, &["exec", "-i", "pipe", "--", "sh", "-c", "head -c 1 >/dev/null; echo enough; exit 4"]);
    early.stdin(File::open("/dev/zero").unwrap());
    let early = run(early);
    assert_eq!((early.code, early.stdout.as_str()), (4, "enough\n"), "{}", early.stderr);
}

#[test]
fn a_terminal_has_a_name_and_the_size_of_the_users() {
    let server = Server::start(&[]);
    pod(&server, "seen", &[("main", "sleep 600")]);
    let size = Winsize { ws_row: 37, ws_col: 91, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).unwrap();
    let mut exec = kubectl(&server, &["exec", "-it", "seen", "--", "sh"]);
    exec.stdin(terminal.slave.try_clone().unwrap()).stdout(terminal.slave);
    let mut child = exec.spawn().unwrap();
    drop(exec);
    let mut keys = File::from(terminal.master.try_clone().unwrap());
    writeln!(keys, "until [ \"$(stty size)\" = '37 91' ]; do sleep 0.05; done; tty; echo term=$TERM; exit 5").unwrap();
    let mut screen = Vec::new();
    // With its last user gone a terminal gives an error.
    let _ = File::from(terminal.master).read_to_end(&mut screen);
    let screen = String::from_utf8_lossy(&screen).into_owned();
    assert!(screen.contains("/dev/pts/") && screen.contains("\nterm="), "{screen}");
    assert_eq!(child.wait().unwrap().code(), Some(5), "{screen}");
}

#[test]
fn no_command_outlives_who_asked_for_it() {
    let mut server = Server::start(&[]);
    pod(&server, "host", &[("main", "sleep 600")]);
    let start = |mark: &str, stdin: Stdio| -> Child {
        // Jobs in the background, in a process group of their own too, and one that reads no input.
        let mark = server.path(mark);
        let mark = mark.display();
        let script = format!(
            "set -m; tail -qf /dev/null {mark} & set +m; tail -qf /dev/null {mark} & echo on; tail -qf /dev/null {mark}"
        );
        let mut child =
            kubectl(&server, &["exec", "-i", "host", "--", "sh", "-c", &script]).stdin(stdin).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "on\n");
        child
    };
    let quiet = || Stdio::from(File::open("/dev/zero").unwrap());
    let (mut killed, mut flooding, mut left) =
        (start("killed", Stdio::piped()), start("flooding", quiet()), start("left", Stdio::piped()));
    for child in [&mut killed, &mut flooding] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    for mark in ["killed", "flooding"] {
        eventually("the commands of a killed client to end", || marked(&server, mark).is_empty().then_some(()));
    }
    assert!(!marked(&server, "left").is_empty(), "another client's command runs on");
    // Nor the server, where the container itself lives on.
    server.kill();
    eventually("the commands of a killed server to end", || marked(&server, "/left").is_empty().then_some(()));
    left.wait().unwrap();
    server.restart();
    assert_eq!(server.get(&["pod", "host"])["status"]["containerStatuses"][0]["restartCount"], 0);
    server.kubectl(&["exec", "host", "--", "true"]).succeeded();

    // Nor its container.
    let mark = server.path("last");
    let script = format!("echo on; exec tail -qf /dev/null {}", mark.display());
    let mut last = kubectl(&server, &["exec", "host", "--", "sh", "-c", &script]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(last.stdout.take().unwrap()).read_line(&mut line).unwrap();
    server.kubectl(&["delete", "pod", "host", "--wait"]).succeeded();
    assert_eq!(last.wait().unwrap().code(), Some(137));
    assert_eq!(marked(&server, "/last"), Vec::<String>::new());
}

#[test]
fn attach_shows_what_is_written_from_then_on_and_ends_with_the_container() {
    let server = Server::start(&[]);
    let gate = server.path("gate");
    let script = format!(
        "echo before; n=0; while [ ! -e {} ]; do n=$((n+1)); echo out $n; echo err $n >&2; sleep 0.1; done; echo last",
        gate.display()
    );
    server
        .kubectl(&["run", "talker", "--image=host", "--restart=Never", "--command", "--", "sh", "-c", &script])
        .succeeded();
    server.kubectl(&["wait", "pod/talker", "--for=condition=Ready", "--timeout=60s"]).succeeded();
    eventually("the first lines", || server.kubectl(&["logs", "talker"]).stdout.contains("err 1").then_some(()));
    let mut attached = kubectl(&server, &["attach", "talker"]).spawn().unwrap();
    let mut stdout = BufReader::new(attached.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.starts_with("out "), "{line}");
    std::fs::write(&gate, "").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("last\n") && !rest.contains("before") && !rest.contains("err"), "{rest}");
    let attached = ended(attached.wait_with_output().unwrap()).succeeded();
    assert!(attached.stderr.contains("err ") && !attached.stderr.contains("out "), "{}", attached.stderr);

    pod(&server, "deaf", &[("main", "sleep 600")]);
    server.kubectl(&["attach", "-i", "deaf"]).failed_with(&["keeps no standard input", "kubectl exec -i"]);
}

/// `kubectl port-forward` to a pod's port, and the port of this machine that it listens on.
fn forward(server: &Server, pod: &str, port: u16, websockets: bool) -> (Child, u16) {
    let mut command = kubectl(server, &["port-forward", &format!("pod/{pod}"), &format!(":{port}")]);
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets.to_string());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let port =
        line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|port| port.parse().ok());
    let Some(port) = port else { panic!("{line:?} {:?}", ended(child.wait_with_output().unwrap())) };
    // It goes on saying what it does.
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    (child, port)
}

/// A request, with the connection's other direction closed after it, and all of the answer.
fn answer(port: u16, request: &[u8]) -> Vec<u8> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut sending = connection.try_clone().unwrap();
    let mut answer = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            sending.write_all(request).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        connection.read_to_end(&mut answer).unwrap();
    });
    answer
}

/// A program that answers each connection with what it has received, once all of it is there.
const ECHO: &str = "import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        received = b''.join(iter(lambda: self.request.recv(65536), b''))
        self.request.sendall(received)
server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Echo)
print(server.server_address[1], flush=True)
server.serve_forever()";

#[test]
fn ports_are_forwarded_many_connections_at_once() {
    let server = Server::start(&[]);
    server
        .kubectl(&["run", "echo", "--image=host", "--restart=Never", "--command", "--", "python3", "-c", ECHO])
        .succeeded();
    let port: u16 = eventually("the port", || server.kubectl(&["logs", "echo"]).stdout.trim().parse().ok());
    let bytes = noise(4 << 20);
    for websockets in [true, false] {
        let (mut child, local) = forward(&server, "echo", port, websockets);
        assert_ne!(local, port);
        std::thread::scope(|scope| {
            for size in [0, 1, 100_000, 4 << 20, 4 << 20, 1_000_000] {
                let bytes = &bytes[..size];
                scope.spawn(move || assert!(answer(local, bytes) == bytes, "{size} bytes came back as others"));
            }
        });
        // One after the other, more than there may be at once.
        for _ in 0..600 {
            assert_eq!(answer(local, b"again"), b"again");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // Nobody listens there: the client is told so.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (child, local) = forward(&server, "echo", free, true);
    assert_eq!(answer(local, b""), b"");
    let told = ended(child.wait_with_output().unwrap());
    assert!(told.stderr.contains(&format!("error forwarding port {free} to pod echo")), "{}", told.stderr);
    // With the pod its forwards end.
    let (child, local) = forward(&server, "echo", port, true);
    let mut open = TcpStream::connect(("127.0.0.1", local)).unwrap();
    open.write_all(b"x").unwrap();
    server.kubectl(&["delete", "pod", "echo", "--wait"]).succeeded();
    let told = ended(child.wait_with_output().unwrap()).failed_with(&["lost connection to pod"]);
    assert!(told.code != 0);
    assert_eq!(open.read(&mut [0; 8]).unwrap_or(0), 0);
}
