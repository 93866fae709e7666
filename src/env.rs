//! Every environment variable that `muster` reads, and the only place that reads them. Flags that have a variable of
//! their own (`MUSTER_LISTEN` and so on) name it in `cli`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// One folder for everything of Muster: `data/`, `config.toml`, `images.toml`. Since 0.1.
pub(crate) const MUSTER_HOME: &str = "MUSTER_HOME";
/// Where state is kept when `MUSTER_HOME` is not set: `$XDG_DATA_HOME/muster`. Since 0.1.
pub(crate) const XDG_DATA_HOME: &str = "XDG_DATA_HOME";
/// Where `config.toml` and `images.toml` are when `MUSTER_HOME` is not set. Since 0.1.
pub(crate) const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// Where the libtorch set is looked for: `$XDG_CACHE_HOME/muster/libtorch-*`. Since 0.1.
pub(crate) const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// The fallback of the three above.
pub(crate) const HOME: &str = "HOME";
/// A libtorch folder to use instead of the cached one. Since 0.1.
pub(crate) const LIBTORCH: &str = "LIBTORCH";
/// The search path for programs, for the `muster-worker` that is not beside `muster`.
pub(crate) const PATH: &str = "PATH";
/// The kubeconfig that kubectl uses; client commands use it as well. Since 0.1.
pub(crate) const KUBECONFIG: &str = "KUBECONFIG";
/// Set and not empty: no colours.
pub(crate) const NO_COLOR: &str = "NO_COLOR";

/// A process's rank in its job, and where the job's first process is: what a training framework's launcher sets.
pub(crate) const RANK: &str = "RANK";
pub(crate) const MASTER_ADDR: &str = "MASTER_ADDR";
pub(crate) const MASTER_PORT: &str = "MASTER_PORT";
/// What the ranks of `muster bench --job` know each other by; the command sets it. Since 0.1.
pub(crate) const MUSTER_BENCH_SECRET: &str = "MUSTER_BENCH_SECRET";

/// The value of a variable; an empty one counts as not set.
#[expect(clippy::disallowed_methods, reason = "this module is the door to the environment")]
pub(crate) fn read(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// A variable that holds one path.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    read(name).map(PathBuf::from)
}

/// A variable that holds text.
pub(crate) fn text(name: &str) -> Option<String> {
    read(name)?.into_string().ok()
}

/// The whole environment, for pods of the image `host`. What is not text is left out.
pub(crate) fn all() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
