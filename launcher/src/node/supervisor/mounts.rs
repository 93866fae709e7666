//! What the container sees of the file system: volumes bound at their paths, in its own mount namespace.
//!
//! A path that the host does not have is not made on the host. Its nearest existing folder is replaced by a small
//! in-memory one that binds everything the folder holds, plus the new path; for a path under `/` that is a new root.

use super::record::Mount;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Component, Path, PathBuf};

/// Where the old root is kept until all volumes are bound.
const OLD_ROOT: &str = "/.muster-host";
/// A folder with more entries than this is not mirrored.
const MAX_MIRRORED: usize = 4096;

#[derive(Debug, thiserror::Error)]
#[error("failed to mount {path}: {source}")]
pub(super) struct MountError {
    path: PathBuf,
    source: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> MountError {
    let path = path.to_owned();
    move |source| MountError { path, source }
}

const NONE: Option<&str> = None;

/// Arranges the mounts of the calling process's own mount namespace. `scratch` is a folder that the container need not
/// see: what it holds is on the disk for a root file system, in memory and hidden from the host otherwise.
pub(super) fn arrange(mounts: &[Mount], rootfs: Option<&Path>, scratch: &Path) -> Result<(), MountError> {
    let root = Path::new("/");
    mount(NONE, root, NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).map_err(|e| at(root)(e.into()))?;
    let mut ordered: Vec<&Mount> = mounts.iter().collect();
    ordered.sort_by_key(|m| (m.target.components().count(), &m.target));

    let mut view = View { scratch: scratch.to_owned(), host: PathBuf::new(), writable: BTreeSet::new() };
    if rootfs.is_none() && !ordered.is_empty() {
        mount(Some("tmpfs"), scratch, Some("tmpfs"), MsFlags::empty(), Some("mode=700,size=1m"))
            .map_err(|e| at(scratch)(e.into()))?;
    }
    if let Some(rootfs) = rootfs {
        view.enter_rootfs(rootfs)?;
    } else if ordered.iter().any(|m| missing_below_root(&m.target)) {
        view.enter_mirrored_root()?;
    }
    for mount in ordered {
        view.bind(mount)?;
    }
    view.leave_host()
}

/// A fresh `/proc` for a new PID namespace.
pub(super) fn mount_proc() -> Result<(), MountError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NONE).map_err(|e| at(Path::new("/proc"))(e.into()))
}

fn missing_below_root(target: &Path) -> bool {
    match target.components().nth(1) {
        Some(first) => !Path::new("/").join(first).exists(),
        None => false,
    }
}

struct View {
    scratch: PathBuf,
    /// Where the host's root is seen: empty while it is the root.
    host: PathBuf,
    /// Folders in which new entries do not reach the host.
    writable: BTreeSet<PathBuf>,
}

impl View {
    fn enter_rootfs(&mut self, rootfs: &Path) -> Result<(), MountError> {
        let new_root = self.scratch.join("root");
        let (upper, work) = (self.scratch.join("upper"), self.scratch.join("work"));
        for dir in [&new_root, &upper, &work] {
            fs::create_dir_all(dir).map_err(at(dir))?;
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", rootfs.display(), upper.display(), work.display());
        mount(Some("overlay"), &new_root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .map_err(|e| at(rootfs)(e.into()))?;
        for shared in ["proc", "dev", "sys"] {
            let target = new_root.join(shared);
            fs::create_dir_all(&target).map_err(at(&target))?;
            bind(&Path::new("/").join(shared), &target)?;
        }
        for shared in ["etc/resolv.conf", "etc/hosts", "etc/hostname"] {
            let (source, target) = (Path::new("/").join(shared), new_root.join(shared));
            if source.exists() {
                make_file(&target)?;
                bind(&source, &target)?;
            }
        }
        self.pivot(&new_root)?;
        self.writable.insert(PathBuf::from("/"));
        Ok(())
    }

    fn enter_mirrored_root(&mut self) -> Result<(), MountError> {
        let new_root = self.mirror(Path::new("/"))?;
        self.pivot(&new_root)?;
        self.writable.insert(PathBuf::from("/"));
        Ok(())
    }

    fn pivot(&mut self, new_root: &Path) -> Result<(), MountError> {
        let old = new_root.join(OLD_ROOT.trim_start_matches('/'));
        fs::create_dir_all(&old).map_err(at(&old))?;
        nix::unistd::pivot_root(new_root, &old).map_err(|e| at(new_root)(e.into()))?;
        std::env::set_current_dir("/").map_err(at(Path::new("/")))?;
        self.host = PathBuf::from(OLD_ROOT);
        Ok(())
    }

    fn leave_host(&self) -> Result<(), MountError> {
        if self.host.as_os_str().is_empty() {
            return Ok(());
        }
        umount2(&self.host, MntFlags::MNT_DETACH).map_err(|e| at(&self.host)(e.into()))?;
        // An empty folder left in the container's own root harms nobody.
        let _ = fs::remove_dir(&self.host);
        Ok(())
    }

    /// A path of the host as it is seen now.
    fn on_host(&self, path: &Path) -> PathBuf {
        if self.host.as_os_str().is_empty() {
            return path.to_owned();
        }
        self.host.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn bind(&mut self, volume: &Mount) -> Result<(), MountError> {
        let source = self.on_host(&volume.source);
        let is_dir = fs::metadata(&source).map_err(at(&volume.source))?.is_dir();
        let (existing, missing) = resolve(&volume.target).map_err(at(&volume.target))?;
        let target = if missing.is_empty() {
            existing
        } else {
            if !self.writable.iter().any(|dir| existing.starts_with(dir) && same_mount(dir, &existing)) {
                let mirror = self.mirror(&existing)?;
                mount(Some(&mirror), &existing, NONE, MsFlags::MS_MOVE, NONE).map_err(|e| at(&existing)(e.into()))?;
                self.writable.insert(existing.clone());
            }
            let target = missing.iter().fold(existing, |path, part| path.join(part));
            if is_dir {
                fs::create_dir_all(&target).map_err(at(&target))?;
            } else {
                make_file(&target)?;
            }
            target
        };
        bind(&source, &target)?;
        if volume.read_only {
            make_read_only(&target)?;
        } else if is_dir {
            self.writable.insert(target);
        }
        Ok(())
    }

    /// A folder in memory that shows all that `dir` holds.
    fn mirror(&self, dir: &Path) -> Result<PathBuf, MountError> {
        let name = dir.to_string_lossy().replace('/', "-");
        let mirror = self.on_host(&self.scratch.join("mirror").join(name));
        fs::create_dir_all(&mirror).map_err(at(&mirror))?;
        mount(Some("tmpfs"), &mirror, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=16m"))
            .map_err(|e| at(dir)(e.into()))?;
        let entries: Vec<_> = fs::read_dir(dir).map_err(at(dir))?.take(MAX_MIRRORED + 1).collect();
        if entries.len() > MAX_MIRRORED {
            return Err(at(dir)(io::Error::other("the folder has too many entries to add one")));
        }
        for entry in entries {
            let entry = entry.map_err(at(dir))?;
            let (source, target) = (entry.path(), mirror.join(entry.file_name()));
            if source == self.host {
                continue;
            }
            let Ok(kind) = entry.file_type() else { continue };
            let shown = if kind.is_symlink() {
                fs::read_link(&source).and_then(|to| symlink(to, &target)).map_err(at(&source))
            } else if kind.is_dir() {
                fs::create_dir(&target).map_err(at(&target)).and_then(|()| bind(&source, &target))
            } else {
                File::create(&target).map_err(at(&target)).and_then(|_| bind(&source, &target))
            };
            if let Err(error) = shown
                && !(kind.is_socket() || error.source.kind() == io::ErrorKind::NotFound)
            {
                return Err(error);
            }
        }
        Ok(mirror)
    }
}

/// The longest existing part of `path` without symbolic links, and the parts that do not exist.
fn resolve(path: &Path) -> io::Result<(PathBuf, Vec<OsString>)> {
    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a mount path must be absolute and without '..'"));
    }
    let mut missing = Vec::new();
    let mut existing = path;
    loop {
        match fs::canonicalize(existing) {
            Ok(found) => {
                missing.reverse();
                return Ok((found, missing));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else { return Err(error) };
                missing.push(name.to_owned());
                existing = parent;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether `path` lies in the same file system as the writable folder above it, with no other mount between.
fn same_mount(dir: &Path, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    device(dir).is_some() && device(dir) == device(path)
}

fn make_file(path: &Path) -> Result<(), MountError> {
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    File::create(path).map(drop).map_err(at(path))
}

fn bind(source: &Path, target: &Path) -> Result<(), MountError> {
    mount(Some(source), target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).map_err(|e| at(target)(e.into()))
}

/// Keeps the restrictions that the mount has: taking them away is not allowed to everybody.
fn make_read_only(target: &Path) -> Result<(), MountError> {
    let has = statvfs(target).map(|fs| fs.flags()).unwrap_or(FsFlags::empty());
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (has_flag, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if has.contains(has_flag) {
            flags |= flag;
        }
    }
    mount(NONE, target, NONE, flags, NONE).map_err(|e| at(target)(e.into()))
}
