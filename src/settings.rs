//! From flags, environment and config file to resolved settings. A flag wins over its variable (clap does that), the
//! variable over the config file, the file over the default.

use crate::cli::{Addressing, LogFormat, Role, UpArgs};
use crate::env;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The folders that hold what Muster keeps and what it is told.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    pub(crate) data: PathBuf,
    pub(crate) config: PathBuf,
}

impl Folders {
    /// Below `MUSTER_HOME` where that is set, else the XDG folders.
    pub(crate) fn resolve() -> Result<Folders> {
        if let Some(home) = env::path(env::MUSTER_HOME) {
            return Ok(Folders { data: home.join("data"), config: home });
        }
        Ok(Folders {
            data: xdg(env::XDG_DATA_HOME, ".local/share")?.join("muster"),
            config: xdg(env::XDG_CONFIG_HOME, ".config")?.join("muster"),
        })
    }
}

/// An XDG folder: the variable, or its fallback below the home folder.
pub(crate) fn xdg(variable: &str, fallback: &str) -> Result<PathBuf> {
    match env::path(variable) {
        Some(path) => Ok(path),
        None => Ok(env::path(env::HOME)
            .with_context(|| format!("neither {variable} nor HOME is set; set MUSTER_HOME to a folder"))?
            .join(fallback)),
    }
}

/// The settings of one server, resolved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServerSettings {
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    /// Written with the API server's role, read without it.
    pub(crate) kubeconfig: PathBuf,
    pub(crate) roles: BTreeSet<Role>,
    pub(crate) addressing: Addressing,
    /// The image table. It need not exist yet in its usual place.
    pub(crate) images: PathBuf,
    pub(crate) simulated_gpus: u32,
    pub(crate) log_level: String,
    pub(crate) log_format: LogFormat,
}

/// `config.toml`: the flags of `muster up`, with the same names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct ConfigFile {
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    kubeconfig: Option<PathBuf>,
    roles: Option<Vec<String>>,
    addressing: Option<String>,
    images: Option<PathBuf>,
    simulated_gpus: Option<u32>,
    log_level: Option<String>,
    log_format: Option<String>,
}

impl ServerSettings {
    pub(crate) fn resolve(args: &UpArgs) -> Result<ServerSettings> {
        let folders = Folders::resolve()?;
        let path = folders.config.join("config.toml");
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => parse(&text).with_context(|| format!("in {}", path.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => ConfigFile::default(),
            Err(e) => return Err(e).with_context(|| format!("failed to read {}", path.display())),
        };
        combine(args, file, &folders)
    }

    pub(crate) fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// The settings as a config file that gives the same settings.
    pub(crate) fn to_toml(&self) -> String {
        // A JSON string is a basic string of TOML.
        let text = |value: &str| serde_json::Value::from(value).to_string();
        let path = |value: &Path| text(&value.to_string_lossy());
        let roles: Vec<String> = self.roles.iter().map(|role| text(&name(*role))).collect();
        let mut out = String::new();
        let mut line = |key: &str, value: String| {
            writeln!(out, "{key} = {value}").expect("writing to a string does not fail");
        };
        line("data-dir", path(&self.data_dir));
        line("listen", text(&self.listen.to_string()));
        line("kubeconfig", path(&self.kubeconfig));
        line("roles", format!("[{}]", roles.join(", ")));
        line("addressing", text(&name(self.addressing)));
        line("images", path(&self.images));
        line("simulated-gpus", self.simulated_gpus.to_string());
        line("log-level", text(&self.log_level));
        line("log-format", text(&name(self.log_format)));
        out
    }
}

fn parse(text: &str) -> Result<ConfigFile> {
    toml::from_str(text).map_err(|e| anyhow::anyhow!("{}", e.to_string().trim_end()))
}

fn combine(args: &UpArgs, file: ConfigFile, folders: &Folders) -> Result<ServerSettings> {
    // Destructured, so that a flag that nothing reads does not compile.
    let UpArgs {
        data_dir,
        listen,
        kubeconfig,
        roles,
        addressing,
        images,
        simulated_gpus,
        log_level,
        log_format,
        dump_config: _,
    } = args.clone();
    let data_dir = std::path::absolute(data_dir.or(file.data_dir).unwrap_or_else(|| folders.data.clone()))
        .context("--data-dir")?;
    let listen = match (listen, file.listen) {
        (Some(listen), _) => listen,
        (None, Some(text)) => text.parse().with_context(|| format!("listen: {text:?} is not ADDRESS:PORT"))?,
        (None, None) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    };
    if !listen.ip().is_loopback() {
        bail!("--listen {listen}: only loopback addresses are served; choose 127.0.0.1 or [::1]");
    }
    let roles = match (roles, file.roles) {
        (Some(roles), _) => roles,
        (None, Some(names)) => names.iter().map(|n| choice("roles", n)).collect::<Result<_>>()?,
        (None, None) => Role::value_variants().to_vec(),
    };
    if roles.is_empty() {
        bail!("--roles: choose at least one of {}", names::<Role>());
    }
    let addressing = match (addressing, file.addressing) {
        (Some(addressing), _) => addressing,
        (None, Some(text)) => choice("addressing", &text)?,
        (None, None) => Addressing::HostPorts,
    };
    let log_format = match (log_format, file.log_format) {
        (Some(format), _) => format,
        (None, Some(text)) => choice("log-format", &text)?,
        (None, None) => LogFormat::Text,
    };
    let usual = std::path::absolute(folders.config.join("images.toml")).context("--images")?;
    let images = match images.or(file.images) {
        // A table that was asked for must exist; the usual place may be empty.
        Some(path) if path != usual && !path.is_file() => bail!("image table {} does not exist", path.display()),
        Some(path) => std::path::absolute(path).context("--images")?,
        None => usual,
    };
    Ok(ServerSettings {
        kubeconfig: std::path::absolute(kubeconfig.or(file.kubeconfig).unwrap_or_else(|| data_dir.join("kubeconfig")))
            .context("--kubeconfig")?,
        data_dir,
        listen,
        roles: roles.into_iter().collect(),
        addressing,
        images,
        simulated_gpus: simulated_gpus.or(file.simulated_gpus).unwrap_or(0),
        log_level: log_level.or(file.log_level).unwrap_or_else(|| "info".to_owned()),
        log_format,
    })
}

/// A value as it is typed.
pub(crate) fn name<T: ValueEnum>(value: T) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

fn names<T: ValueEnum>() -> String {
    T::value_variants()
        .iter()
        .filter_map(|v| v.to_possible_value())
        .map(|v| v.get_name().to_owned())
        .collect::<Vec<_>>()
        .join(", ")
}

fn choice<T: ValueEnum>(key: &str, text: &str) -> Result<T> {
    T::from_str(text, false).map_err(|_| anyhow::anyhow!("{key}: {text:?} is none of {}", names::<T>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn resolve(flags: &[&str], file: &str) -> Result<ServerSettings> {
        let cli = Cli::try_parse_from(["muster", "up"].iter().chain(flags))?;
        let Command::Up(args) = cli.command else { panic!("not up") };
        let folders = Folders { data: "/nowhere/data".into(), config: "/nowhere/config".into() };
        combine(&args, parse(file)?, &folders)
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let settings = resolve(&["--roles", "apiserver,node"], "roles = ['operator']\nsimulated-gpus = 3").unwrap();
        assert_eq!(settings.roles, BTreeSet::from([Role::Apiserver, Role::Node]));
        assert_eq!(settings.simulated_gpus, 3);
        assert_eq!(settings.addressing, Addressing::HostPorts);
        assert_eq!(settings.kubeconfig, Path::new("/nowhere/data/kubeconfig"));
    }

    #[test]
    fn dumped_settings_read_back_as_the_same() {
        let settings =
            resolve(&["--data-dir", "/a \"b\"/c", "--addressing", "dns", "--log-format", "json"], "").unwrap();
        assert_eq!(resolve(&[], &settings.to_toml()).unwrap(), settings);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (flags, file, want) in [
            (&["--listen", "0.0.0.0:0"][..], "", "only loopback"),
            (&[], "listen = '192.0.2.1:80'", "only loopback"),
            (&[], "listne = 'x'", "listne"),
            (&[], "roles = ['apiserver', 'cook']", "cook"),
            (&["--images", "/nowhere/images.toml"], "", "does not exist"),
        ] {
            let error = format!("{:#}", resolve(flags, file).unwrap_err());
            assert!(error.contains(want), "{error}");
        }
    }
}
