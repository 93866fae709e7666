//! What a machine has of NCCL and GPUs: for people, and as JSON for programs.

use std::fmt::{self, Write};

use crate::nccl::driver::{Device, Driver};
use crate::nccl::error::DriverError;
use crate::nccl::library::Library;
use crate::nccl::loading::Search;

/// Versions and topology. What is not there is said in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    pub nccl: Result<LibraryReport, String>,
    pub driver: Result<DriverReport, String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LibraryReport {
    pub version: String,
    pub code: u32,
    pub path: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DriverReport {
    /// The newest CUDA that the driver speaks, as 13000 for 13.0.
    pub cuda: u32,
    pub path: String,
    pub devices: Vec<DeviceReport>,
    /// Each ordered pair of devices.
    pub links: Vec<LinkReport>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceReport {
    pub ordinal: usize,
    pub name: String,
    pub uuid: String,
    pub pci_bus_id: String,
    pub compute_capability: (u32, u32),
    pub multiprocessors: u32,
    pub memory_bytes: u64,
    pub numa_node: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkReport {
    pub from: usize,
    pub to: usize,
    /// Whether kernels of the one may use the other's memory.
    pub peer_access: bool,
    /// Relative to the host's other pairs; 0 is best.
    pub rank: u32,
}

impl Report {
    /// Looks for both libraries, and asks them.
    pub fn gather(nccl: &Search, driver: &Search) -> Report {
        Report {
            nccl: Library::load(nccl).map(|library| LibraryReport::of(&library)).map_err(|error| error.to_string()),
            driver: Driver::load(driver)
                .and_then(|driver| DriverReport::of(&driver))
                .map_err(|error| error.to_string()),
        }
    }

    /// One JSON object.
    pub fn to_json(&self) -> String {
        let mut out = String::from("{\"nccl\":");
        match &self.nccl {
            Ok(LibraryReport { version, code, path }) => {
                push(&mut out, format_args!("{{\"version\":{},\"code\":{code}", quoted(version)));
                push(&mut out, format_args!(",\"path\":{}}}", quoted(path)));
            }
            Err(error) => push(&mut out, format_args!("{{\"error\":{}}}", quoted(error))),
        }
        out.push_str(",\"driver\":");
        match &self.driver {
            Ok(driver) => driver.push_json(&mut out),
            Err(error) => push(&mut out, format_args!("{{\"error\":{}}}", quoted(error))),
        }
        out.push('}');
        out
    }
}

impl LibraryReport {
    pub fn of(library: &Library) -> LibraryReport {
        let version = library.version();
        let path = library.path().display().to_string();
        LibraryReport { version: version.to_string(), code: version.code(), path }
    }
}

impl DriverReport {
    pub fn of(driver: &Driver) -> Result<DriverReport, DriverError> {
        let devices = driver.devices()?;
        let mut links = Vec::new();
        for from in &devices {
            for to in devices.iter().filter(|to| to.ordinal() != from.ordinal()) {
                let (peer_access, rank) = (from.can_access(to)?, from.link_rank(to)?);
                links.push(LinkReport { from: from.ordinal(), to: to.ordinal(), peer_access, rank });
            }
        }
        Ok(DriverReport {
            cuda: driver.version()?,
            path: driver.path().display().to_string(),
            devices: devices.iter().map(DeviceReport::of).collect::<Result<_, _>>()?,
            links,
        })
    }

    fn push_json(&self, out: &mut String) {
        push(out, format_args!("{{\"cuda\":{},\"path\":{},\"devices\":[", self.cuda, quoted(&self.path)));
        for (index, device) in self.devices.iter().enumerate() {
            let (major, minor) = device.compute_capability;
            let separator = if index == 0 { "" } else { "," };
            let numa = device.numa_node.map_or("null".to_owned(), |node| node.to_string());
            push(out, format_args!("{separator}{{\"ordinal\":{},\"name\":{}", device.ordinal, quoted(&device.name)));
            push(out, format_args!(",\"uuid\":{}", quoted(&device.uuid)));
            push(out, format_args!(",\"pci_bus_id\":{}", quoted(&device.pci_bus_id)));
            push(out, format_args!(",\"compute_capability\":\"{major}.{minor}\""));
            push(out, format_args!(",\"multiprocessors\":{}", device.multiprocessors));
            push(out, format_args!(",\"memory_bytes\":{},\"numa_node\":{numa}}}", device.memory_bytes));
        }
        out.push_str("],\"links\":[");
        for (index, LinkReport { from, to, peer_access, rank }) in self.links.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            push(out, format_args!("{separator}{{\"from\":{from},\"to\":{to}"));
            push(out, format_args!(",\"peer_access\":{peer_access},\"rank\":{rank}}}"));
        }
        out.push_str("]}");
    }
}

impl DeviceReport {
    pub fn of(device: &Device) -> Result<DeviceReport, DriverError> {
        Ok(DeviceReport {
            ordinal: device.ordinal(),
            name: device.name()?,
            uuid: device.uuid()?,
            pci_bus_id: device.pci_bus_id()?,
            compute_capability: device.compute_capability()?,
            multiprocessors: device.multiprocessors()?,
            memory_bytes: device.memory()?,
            numa_node: device.numa_node(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.nccl {
            Ok(LibraryReport { version, path, .. }) => writeln!(f, "NCCL    {version}  {path}")?,
            Err(error) => writeln!(f, "NCCL    absent: {error}")?,
        }
        match &self.driver {
            Ok(driver) => driver.fmt(f),
            Err(error) => writeln!(f, "driver  absent: {error}"),
        }
    }
}

impl fmt::Display for DriverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "driver  CUDA {}.{}  {}", self.cuda / 1000, self.cuda % 1000 / 10, self.path)?;
        for device in &self.devices {
            let DeviceReport { ordinal, name, uuid, pci_bus_id, multiprocessors, .. } = device;
            let (major, minor) = device.compute_capability;
            let gib = device.memory_bytes as f64 / f64::from(1 << 30);
            let numa = device.numa_node.map_or(String::new(), |node| format!(", node {node}"));
            writeln!(
                f,
                "GPU {ordinal}   {name}, sm_{major}{minor}, {multiprocessors} SMs, {gib:.1} GiB, {pci_bus_id}{numa}, {uuid}"
            )?;
        }
        if self.links.is_empty() {
            return Ok(());
        }
        // A row for each device: how its kernels reach the others' memory.
        let count = self.devices.len();
        writeln!(f, "peer   {}", (0..count).map(|to| format!("{to:>6}")).collect::<String>())?;
        for from in 0..count {
            write!(f, "{from:>6} ")?;
            for to in 0..count {
                let link = self.links.iter().find(|link| (link.from, link.to) == (from, to));
                let cell = match link {
                    None => "-".to_owned(),
                    Some(link) if link.peer_access => format!("yes/{}", link.rank),
                    Some(_) => "no".to_owned(),
                };
                write!(f, "{cell:>6}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn push(out: &mut String, text: fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = out.write_fmt(text);
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            letter if letter < ' ' => push(&mut out, format_args!("\\u{:04x}", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_is_there_and_what_is_not() {
        let device = |ordinal| DeviceReport {
            ordinal,
            name: "A \"big\" one".into(),
            uuid: "GPU-00".into(),
            pci_bus_id: "0000:01:00.0".into(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            memory_bytes: 80 << 30,
            numa_node: (ordinal == 0).then_some(1),
        };
        let link = |from, to| LinkReport { from, to, peer_access: from == 0, rank: 0 };
        let report = Report {
            nccl: Err("no\nlibrary".into()),
            driver: Ok(DriverReport {
                cuda: 13_010,
                path: "/lib/libcuda.so.1".into(),
                devices: vec![device(0), device(1)],
                links: vec![link(0, 1), link(1, 0)],
            }),
        };
        assert_eq!(
            report.to_json(),
            concat!(
                r#"{"nccl":{"error":"no\u000alibrary"},"driver":{"cuda":13010,"path":"/lib/libcuda.so.1","devices":["#,
                r#"{"ordinal":0,"name":"A \"big\" one","uuid":"GPU-00","pci_bus_id":"0000:01:00.0","#,
                r#""compute_capability":"9.0","multiprocessors":132,"memory_bytes":85899345920,"numa_node":1},"#,
                r#"{"ordinal":1,"name":"A \"big\" one","uuid":"GPU-00","pci_bus_id":"0000:01:00.0","#,
                r#""compute_capability":"9.0","multiprocessors":132,"memory_bytes":85899345920,"numa_node":null}],"#,
                r#""links":[{"from":0,"to":1,"peer_access":true,"rank":0},"#,
                r#"{"from":1,"to":0,"peer_access":false,"rank":0}]}}"#,
            )
        );
        let text = report.to_string();
        assert!(text.contains("driver  CUDA 13.1") && text.contains("sm_90, 132 SMs, 80.0 GiB"), "{text}");
        assert!(text.contains("     0      - yes/0") && text.contains("     1     no     -"), "{text}");
    }
}
