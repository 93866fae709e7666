//! What a measurement was taken on.

use std::fs::read_to_string;

#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) cores: usize,
    pub(super) kernel: String,
    /// The load average of the last minute.
    pub(super) load: f64,
}

impl Machine {
    pub(super) fn look() -> Machine {
        let read = |path: &str| read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let load = read("/proc/loadavg");
        Machine {
            processor: model.map_or("unknown processor", |(_, name)| name.trim()).to_owned(),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0),
        }
    }
}
