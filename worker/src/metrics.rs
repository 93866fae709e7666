//! Measurements of a run, one JSON object a line: for machines; people get lines on standard output.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Record<'a> {
    /// The ranks of an epoch of the membership begin to work.
    Start {
        membership: u64,
        world: usize,
        threads: i32,
        parameters: usize,
        step: u64,
    },
    Step {
        step: u64,
        epoch: u64,
        loss: f64,
        learning_rate: f64,
        samples_per_second: f64,
        step_seconds: f64,
    },
    /// A pass over the data is over.
    Epoch {
        step: u64,
        epoch: u64,
        loss: f64,
        /// The model's, by name, such as accuracy.
        #[serde(flatten)]
        metrics: &'a BTreeMap<&'static str, f64>,
        samples_per_second: f64,
        seconds: f64,
    },
    Checkpoint {
        step: u64,
        path: &'a str,
        seconds: f64,
    },
    /// A rank was lost, or the collectives failed.
    Interrupted {
        membership: u64,
        step: u64,
        cause: &'a str,
    },
    Finish {
        step: u64,
        loss: f64,
        /// The model's, by name, such as accuracy.
        #[serde(flatten)]
        metrics: &'a BTreeMap<&'static str, f64>,
        /// Over the steps that this process has done, without evaluation and waiting.
        samples_per_second: f64,
        seconds: f64,
        parameters: &'a str,
    },
}

/// Where the records go. Each line is written whole.
#[derive(Debug)]
pub struct Metrics(Option<File>);

impl Metrics {
    /// Appends to a file, since a restarted process goes on with the run of the one before. None: nowhere.
    pub fn open(path: Option<&Path>) -> io::Result<Metrics> {
        let open = |path: &Path| {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder)?;
            }
            OpenOptions::new().create(true).append(true).open(path)
        };
        Ok(Metrics(path.map(open).transpose()?))
    }

    pub fn write(&mut self, record: &Record<'_>) -> io::Result<()> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        file.write_all(&line)
    }
}
