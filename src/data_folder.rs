//! The data folder of a server: `store.db`, keys and certificates, `kubeconfig`, `node/`. One server holds it at a time.

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The folder, held by this process until dropped.
#[derive(Debug)]
pub(crate) struct DataFolder {
    path: PathBuf,
    lock: Flock<File>,
}

/// What the lock file says about who holds the folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    pub(crate) since: String,
    /// Empty until it serves.
    pub(crate) server: String,
}

/// The ports that a restarted server takes again, where they are free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ports {
    pub(crate) apiserver: u16,
    pub(crate) rendezvous: u16,
}

impl DataFolder {
    /// Makes the folder where there is none, and takes its lock.
    pub(crate) fn open(path: &Path, since: String) -> Result<DataFolder> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("failed to create the data folder {}", path.display()))?;
        let lock_path = path.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("failed to open {}", lock_path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                let folder = DataFolder { path: path.to_owned(), lock };
                folder.announce(&Holder { pid: std::process::id(), since, server: String::new() })?;
                Ok(folder)
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                // The holder may be writing just now; its name is a courtesy.
                let _ = file.read_to_string(&mut text);
                bail!("{}", held(path, serde_json::from_str(&text).ok()))
            }
            Err((_, e)) => Err(e).with_context(|| format!("failed to lock {}", lock_path.display())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes who holds the folder, for the next one who wants it.
    pub(crate) fn announce(&self, holder: &Holder) -> Result<()> {
        let mut file: &File = &self.lock;
        let text = serde_json::to_string(holder)?;
        file.set_len(0)?;
        std::io::Seek::rewind(&mut file)?;
        file.write_all(text.as_bytes())?;
        Ok(())
    }

    pub(crate) fn ports(&self) -> Ports {
        fs::read(self.file("ports.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    pub(crate) fn keep_ports(&self, ports: Ports) -> Result<()> {
        if self.ports() == ports {
            return Ok(());
        }
        write_private(&self.file("ports.json"), serde_json::to_string(&ports)?.as_bytes())
    }

    /// Writes a file of the folder, durably and readable by its owner alone.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_private(&self.file(name), bytes)
    }

    /// The content of a file of the folder; made, durably, where it is not there yet.
    pub(crate) fn keep(&self, name: &str, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let path = self.file(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let bytes = make()?;
                write_private(&path, &bytes)?;
                Ok(bytes)
            }
            Err(e) => Err(e).with_context(|| format!("failed to read {}", path.display())),
        }
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = || format!("failed to write {}", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = folder.join(name);
    // A leftover of a process of the same number must not lend its mode.
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).with_context(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(fail)?;
    fs::rename(&temporary, path).with_context(fail)?;
    File::open(folder).and_then(|dir| dir.sync_all()).with_context(fail)
}

fn held(path: &Path, holder: Option<Holder>) -> String {
    let who = match holder {
        Some(Holder { pid, since, server }) if server.is_empty() => {
            format!("another muster (process {pid}, since {since}); stop it with `kill {pid}`")
        }
        Some(Holder { pid, since, server }) => {
            format!("another muster (process {pid}, since {since}, serving {server}); stop it with `kill {pid}`")
        }
        None => "another muster; stop it".to_owned(),
    };
    format!("the data folder {} is held by {who}, or choose another folder with --data-dir", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_holds_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path(), "2026-01-01T00:00:00Z".into()).unwrap();
        folder
            .announce(&Holder { pid: 4711, since: "2026-01-01T00:00:00Z".into(), server: "https://127.0.0.1:1".into() })
            .unwrap();
        let error = DataFolder::open(dir.path(), String::new()).unwrap_err().to_string();
        for part in ["process 4711", "since 2026-01-01", "https://127.0.0.1:1", "kill 4711", "--data-dir"] {
            assert!(error.contains(part), "{error}");
        }
        drop(folder);
        DataFolder::open(dir.path(), String::new()).expect("free again");
    }

    #[test]
    fn what_is_kept_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path(), String::new()).unwrap();
        assert_eq!(folder.keep("token", || Ok(b"one".to_vec())).unwrap(), b"one");
        assert_eq!(folder.keep("token", || Ok(b"two".to_vec())).unwrap(), b"one");
        assert_eq!(fs::metadata(folder.file("token")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
