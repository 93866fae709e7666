//! Processes of this machine, as `/proc` shows them.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;

pub(crate) fn signal(pid: i32, signal: i32) {
    kill(Pid::from_raw(pid), Signal::try_from(signal).unwrap()).unwrap();
}

pub(crate) fn kill_hard(pid: i32) {
    // It may have ended by itself meanwhile.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// All processes whose command line or environment names a folder: a server, its supervisors, their pods.
pub(crate) fn all_of(dir: &Path) -> Vec<(i32, String)> {
    let needle = dir.to_string_lossy().into_owned();
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let read = |name: &str| {
            std::fs::read(entry.path().join(name))
                .map(|b| String::from_utf8_lossy(&b).replace('\0', " "))
                .unwrap_or_default()
        };
        // A zombie has neither; it has ended.
        let (command, environment) = (read("cmdline"), read("environ"));
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if pid != own && (command.contains(&needle) || environment.contains(&needle) || cwd.starts_with(dir)) {
            found.push((pid, command));
        }
    }
    found
}

/// Kills whatever is left of a folder.
pub(crate) fn end_all_of(dir: &Path) {
    for _ in 0..20 {
        let left = all_of(dir);
        if left.is_empty() {
            return;
        }
        left.iter().for_each(|(pid, _)| kill_hard(*pid));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// What is in the shared memory folder.
pub(crate) fn shared_memory() -> std::collections::BTreeSet<String> {
    let entries = std::fs::read_dir("/dev/shm").unwrap().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("muster"))
        .collect()
}
