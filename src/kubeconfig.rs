//! Writing the kubeconfig of a server, and finding the one that a client command should use.

use crate::data_folder::write_private;
use crate::env;
use crate::settings::Folders;
use anyhow::{Context, Result, bail};
use base64::Engine;
use std::path::{Path, PathBuf};

/// The name of cluster, user and context in the kubeconfigs that Muster writes.
pub(crate) const NAME: &str = "muster";
/// The first line of them: only a file that begins with it is written over.
const MARK: &str = "# Written by muster up, which writes it again at each start.";

/// Refuses to write over a kubeconfig that is somebody else's.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() || text.starts_with(MARK) => Ok(()),
        Ok(_) => bail!("{} is not a kubeconfig of muster's; choose another file with --kubeconfig", path.display()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("failed to read {}", path.display())),
    }
}

/// Writes a kubeconfig with everything inline, readable by its owner alone.
pub(crate) fn write(path: &Path, server: &str, ca_certificate: &str, token: &str) -> Result<()> {
    let ca = base64::engine::general_purpose::STANDARD.encode(ca_certificate);
    let text = format!(
        "{MARK}\napiVersion: v1\nkind: Config\ncurrent-context: {NAME}\nclusters:\n- name: {NAME}\n  cluster:\n    \
         server: {server}\n    certificate-authority-data: {ca}\nusers:\n- name: {NAME}\n  user:\n    token: {token}\n\
         contexts:\n- name: {NAME}\n  context:\n    cluster: {NAME}\n    user: {NAME}\n    namespace: default\n"
    );
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    }
    write_private(path, text.as_bytes())
}

/// Where a client command finds its server: the flag, `KUBECONFIG`, the kubeconfig of `muster up`, kubectl's default.
pub(crate) fn locate(flag: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = flag {
        return Ok(path.to_owned());
    }
    if let Some(list) = env::read(env::KUBECONFIG) {
        // kubectl merges several files; the first that exists is the one that matters for reading.
        let mut files = std::env::split_paths(&list);
        let first = files.find(|path| path.exists());
        return first.with_context(|| format!("KUBECONFIG names no file that exists: {}", list.to_string_lossy()));
    }
    let own = Folders::resolve()?.data.join("kubeconfig");
    if own.exists() {
        return Ok(own);
    }
    if let Some(default) = env::path(env::HOME).map(|home| home.join(".kube/config"))
        && default.exists()
    {
        return Ok(default);
    }
    bail!("no server is known: start one with `muster up`, or name a kubeconfig with --kubeconfig")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_kubeconfig_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "apiVersion: v1\nkind: Config\n").unwrap();
        assert!(check_writable(&path).unwrap_err().to_string().contains("--kubeconfig"));
        std::fs::remove_file(&path).unwrap();
        write(&path, "https://127.0.0.1:1", "ca", "token").unwrap();
        check_writable(&path).expect("its own");
    }
}
