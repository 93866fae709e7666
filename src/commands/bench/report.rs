//! What was measured, for people and for programs.

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::contestant::Library;
use super::machine::Machine;
use super::plan::{Case, Results};
use super::reference::{self, Point};
use super::sizes::Bytes;
use super::statistics::{median, percentile};
use crate::cli::{BenchArgs, Operation, TransportChoice};
use crate::output::Table;

/// Operands that no cache holds: from here on the memory is the limit.
const IN_MEMORY: usize = 64_000_000;

/// What Open MPI says where it copies once, from process to process.
const SINGLE_COPY: &str = "by cma";

pub(super) struct Report<'a> {
    pub(super) args: &'a BenchArgs,
    /// As it was before the ranks started.
    pub(super) machine: Machine,
    pub(super) load_after: f64,
    /// The cores that ranks were bound to.
    pub(super) bound: &'a [usize],
    /// Each with what it says of itself and how it was started.
    pub(super) libraries: Vec<(Library, String, String)>,
    pub(super) results: Results,
}

/// One case as JSON has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(non_snake_case, reason = "the names of the JSON fields")]
pub(super) struct Row {
    pub(super) lib: &'static str,
    op: &'static str,
    transport: &'static str,
    pub(super) buffer: &'static str,
    dtype: String,
    pub(super) size: usize,
    ranks: usize,
    pub(super) p10_us: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    algbw_GBps: f64,
    busbw_GBps: f64,
    wrong: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(non_snake_case, reason = "the names of the JSON fields")]
pub(super) struct LimitRow {
    pub(super) limit: &'static str,
    pub(super) size: usize,
    pub(super) GBps: f64,
}

impl Row {
    fn of(case: &Case, args: &BenchArgs) -> Row {
        let mut times: Vec<u64> = case.rounds.iter().flatten().copied().collect();
        times.sort_unstable();
        let microseconds = |percent| percentile(&times, percent) as f64 / 1e3;
        let p50_us = microseconds(50.0);
        // Bytes in a microsecond are megabytes in a second.
        let algbw = if p50_us > 0.0 { case.size as f64 / p50_us / 1e3 } else { 0.0 };
        Row {
            lib: case.library.name(),
            op: args.operation.name(),
            transport: transport(case.library, args.transport),
            buffer: case.buffer.name(),
            dtype: args.dtype.to_string(),
            size: case.size,
            ranks: args.ranks as usize,
            p10_us: microseconds(10.0),
            p50_us,
            p99_us: microseconds(99.0),
            algbw_GBps: rounded(algbw),
            busbw_GBps: rounded(algbw * args.operation.bus_factor(args.ranks as usize)),
            wrong: case.wrong,
        }
    }
}

/// What carries the bytes between ranks of one host.
fn transport(library: Library, choice: TransportChoice) -> &'static str {
    match (library, choice) {
        (Library::Gloo, _) | (_, TransportChoice::Tcp) => "tcp",
        (_, TransportChoice::Auto | TransportChoice::Shm) => "shm",
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

impl Report<'_> {
    pub(super) fn rows(&self) -> Vec<Row> {
        self.results.cases.iter().map(|case| Row::of(case, self.args)).collect()
    }

    pub(super) fn limits(&self) -> Vec<LimitRow> {
        let row = |one: &super::plan::Calibration| LimitRow {
            limit: one.limit.name(),
            size: one.size,
            GBps: rounded(median(&one.rounds)),
        };
        self.results.calibrations.iter().map(row).collect()
    }

    pub(super) fn wrong(&self) -> u64 {
        self.results.cases.iter().map(|case| case.wrong).sum()
    }

    /// Why the comparison says nothing, where it does not.
    pub(super) fn void(&self) -> Vec<String> {
        let slow = |case: &Case| {
            let (idle, p50) = (self.idle(case)?, Row::of(case, self.args).p50_us);
            (p50 > idle * reference::TOLERANCE).then(|| {
                let (library, size) = (case.library.name(), Bytes(case.size));
                format!(
                    "{library} took {} us for {size}, over 1.5 times its {} on an idle machine",
                    time(p50),
                    time(idle)
                )
            })
        };
        let copies_twice = self.libraries.iter().filter(|(library, about, _)| {
            *library == Library::Mpi && self.args.transport != TransportChoice::Tcp && !about.contains(SINGLE_COPY)
        });
        let mut reasons: Vec<String> = copies_twice
            .map(|_| {
                "mpi copies by way of a buffer: it may not read other processes' memory here (CMA, ptrace)".to_owned()
            })
            .collect();
        reasons.extend(self.results.cases.iter().filter_map(slow));
        reasons
    }

    fn idle(&self, case: &Case) -> Option<f64> {
        let BenchArgs { operation, dtype, op, transport, ranks, .. } = self.args;
        reference::idle(Point {
            library: case.library,
            operation: *operation,
            dtype: *dtype,
            op: *op,
            transport: *transport,
            ranks: *ranks as usize,
            size: case.size,
        })
    }

    pub(super) fn json(&self) -> Result<String> {
        let mut text = String::new();
        for row in self.rows() {
            text.push_str(&serde_json::to_string(&row)?);
            text.push('\n');
        }
        for row in self.limits() {
            text.push_str(&serde_json::to_string(&row)?);
            text.push('\n');
        }
        Ok(text)
    }

    /// Everything: the machine, the commands, the time of each iteration of each round in nanoseconds.
    pub(super) fn raw(&self) -> Result<String> {
        let libraries: Vec<_> = self
            .libraries
            .iter()
            .map(|(library, about, command)| json!({"lib": library.name(), "about": about, "command": command}))
            .collect();
        let head = json!({
            "date": muster_api::clock::Clock::system().now_rfc3339(),
            "version": env!("CARGO_PKG_VERSION"),
            "command": std::env::args().collect::<Vec<_>>().join(" "),
            "processor": self.machine.processor, "cores": self.machine.cores, "kernel": self.machine.kernel,
            "load_before": self.machine.load, "load_after": self.load_after,
            "bound_to": self.bound, "libraries": libraries,
        });
        let mut text = format!("{head}\n{}", self.json()?);
        for case in &self.results.cases {
            for (round, nanoseconds) in case.rounds.iter().enumerate() {
                let (library, buffer) = (case.library.name(), case.buffer.name());
                let turn =
                    json!({"lib": library, "buffer": buffer, "size": case.size, "round": round, "ns": nanoseconds});
                text.push_str(&format!("{turn}\n"));
            }
        }
        for one in &self.results.calibrations {
            let rounds: Vec<f64> = one.rounds.iter().map(|rate| rounded(*rate)).collect();
            text.push_str(&format!("{}\n", json!({"limit": one.limit.name(), "size": one.size, "rounds": rounds})));
        }
        Ok(text)
    }

    /// What was measured, on what, and how the rivals were set.
    pub(super) fn head(&self) -> String {
        let BenchArgs { operation, dtype, op, ranks, .. } = self.args;
        let reduction = if operation.reduces() { format!(", {op}") } else { String::new() };
        let binding = match self.bound {
            [] => "not bound to cores".to_owned(),
            cores => format!("bound to cores {}", cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
        };
        let Machine { processor, cores, kernel, load } = &self.machine;
        let mut text = format!("{} of {dtype}{reduction}; {ranks} ranks, {binding}\n", operation.name());
        text.push_str(&format!(
            "{processor}, {cores} cores, Linux {kernel}; load average {load} before, {} after\n",
            self.load_after
        ));
        for (library, about, _) in self.libraries.iter().filter(|(library, ..)| *library != Library::Muster) {
            text.push_str(&format!("{}: {about}\n", library.name()));
        }
        text
    }

    pub(super) fn table(&self) -> String {
        let ranks = self.args.ranks;
        let mut text = self.head();
        text.push_str("Times in microseconds, of the slowest rank. Bandwidths in GB/s.\n\n");
        text.push_str(&self.times().to_string());
        if !self.results.calibrations.is_empty() {
            text.push_str(&format!("\nMemory, {ranks} threads together, GB/s read and written:\n"));
            text.push_str(&self.memory().to_string());
        }
        for line in self.shares() {
            text.push_str(&line);
        }
        for reason in self.void() {
            text.push_str(&format!("\nVOID: {reason}\n"));
        }
        text
    }

    fn times(&self) -> Table {
        let rivals: Vec<Library> =
            self.libraries.iter().map(|(library, ..)| *library).filter(|library| *library != Library::Muster).collect();
        let mut table = Table::new([
            "SIZE", "COUNT", "TYPE", "REDOP", "LIBRARY", "BUFFER", "P10", "P50", "P99", "ALGBW", "BUSBW", "#WRONG",
        ]);
        table.headers.extend(rivals.iter().map(|rival| format!("/{}", rival.name().to_uppercase())));
        let rows = self.rows();
        for (row, case) in rows.iter().zip(&self.results.cases) {
            let redop = if self.args.operation.reduces() { self.args.op.to_string() } else { "none".to_owned() };
            let count = row.size / self.args.dtype.size();
            let mut cells = vec![Bytes(row.size).to_string(), count.to_string(), row.dtype.clone(), redop];
            cells.extend([row.lib.to_owned(), format!("{}/{}", row.transport, row.buffer)]);
            cells.extend([row.p10_us, row.p50_us, row.p99_us].map(time));
            cells.extend([row.algbw_GBps, row.busbw_GBps].map(|rate| format!("{rate:.3}")));
            cells.push(row.wrong.to_string());
            for rival in &rivals {
                let other = rows.iter().find(|other| other.lib == rival.name() && other.size == row.size);
                let ratio = other.filter(|_| case.library == Library::Muster).map(|other| other.p50_us / row.p50_us);
                cells.push(ratio.map_or(String::new(), |ratio| format!("{ratio:.2}x")));
            }
            table.rows.push(cells);
        }
        table
    }

    fn memory(&self) -> Table {
        let mut table = Table::new(["SIZE", "LIMIT", "GB/S"]);
        for row in self.limits() {
            table.push([Bytes(row.size).to_string(), row.limit.to_owned(), format!("{:.2}", row.GBps)]);
        }
        table
    }

    /// The least that an all-reduce in memory can take, at a size: every input is read once and every result written.
    pub(super) fn memory_limit(&self, size: usize) -> Option<f64> {
        let limits = self.limits();
        let add = limits.iter().find(|row| row.limit == "add" && row.size == size)?;
        let in_memory = self.args.operation == Operation::AllReduce && size >= IN_MEMORY && add.GBps > 0.0;
        in_memory.then(|| 2.0 * f64::from(self.args.ranks) * size as f64 / add.GBps / 1e3)
    }

    fn shares(&self) -> Vec<String> {
        let share = |row: &Row| {
            let limit = self.memory_limit(row.size)?;
            let (size, buffer) = (Bytes(row.size), row.buffer);
            let share = 100.0 * limit / row.p50_us;
            Some(format!(
                "{} in {buffer} memory at {size}: {share:.0} % of the memory's limit, {} us\n",
                row.lib,
                time(limit)
            ))
        };
        self.rows().iter().filter_map(share).collect()
    }
}

/// Microseconds with about three digits.
pub(super) fn time(microseconds: f64) -> String {
    match microseconds {
        us if us < 10.0 => format!("{us:.2}"),
        us if us < 100.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::calibration::Limit;
    use super::super::plan::Calibration;
    use super::*;
    use crate::cli::{BufferKind, Cli, Command};

    fn arguments(words: &str) -> BenchArgs {
        let words = ["muster", "bench"].into_iter().chain(words.split(' '));
        let Command::Bench(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not a bench") };
        args
    }

    fn report(args: &BenchArgs) -> Report<'_> {
        let case = |library, buffer, size, rounds: [&[u64]; 2]| Case {
            rounds: rounds.map(<[u64]>::to_vec).into(),
            ..Case::new(library, buffer, size)
        };
        let cases = vec![
            case(Library::Muster, BufferKind::Shared, 4096, [&[1000, 2000], &[3000]]),
            case(Library::Mpi, BufferKind::Private, 4096, [&[4000], &[7000, 5000]]),
            case(Library::Muster, BufferKind::Shared, 100_000_000, [&[10_000_000], &[12_500_000]]),
            case(Library::Mpi, BufferKind::Private, 100_000_000, [&[50_000_000], &[50_000_000]]),
        ];
        let limit = |size| Calibration { limit: Limit::Add, size, rounds: vec![50.0, 40.0, 41.0] };
        let machine = Machine { processor: "A".to_owned(), cores: 2, kernel: "6".to_owned(), load: 0.5 };
        let about = |library, about: &str| (library, about.to_owned(), String::new());
        Report {
            args,
            machine,
            load_after: 1.5,
            bound: &[0, 1],
            libraries: vec![about(Library::Muster, "muster"), about(Library::Mpi, "Open MPI, copies by cma")],
            results: Results { cases, calibrations: vec![limit(4096), limit(100_000_000)] },
        }
    }

    #[test]
    fn json_has_a_line_for_each_case_and_limit() {
        let args = arguments("allreduce --compare mpi");
        let json = report(&args).json().unwrap();
        let lines: Vec<&str> = json.lines().collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(
            lines[0],
            r#"{"lib":"muster","op":"all_reduce","transport":"shm","buffer":"shared","dtype":"f32","size":4096,"ranks":2,"p10_us":1.0,"p50_us":2.0,"p99_us":3.0,"algbw_GBps":2.048,"busbw_GBps":2.048,"wrong":0}"#
        );
        assert_eq!(lines[5], r#"{"limit":"add","size":100000000,"GBps":41.0}"#);
    }

    #[test]
    fn bus_bandwidth_is_of_the_ranks_and_the_operation() {
        let args = arguments("allreduce --ranks 4 --transport tcp");
        let row = &report(&args).rows()[0];
        assert_eq!((row.algbw_GBps, row.busbw_GBps, row.transport), (2.048, 3.072, "tcp"));
    }

    #[test]
    fn the_table_has_ratios_of_medians_and_the_share_of_the_limit() {
        let args = arguments("allreduce --compare mpi");
        let table = report(&args).table();
        let line =
            |begin: &str| table.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{table}"));
        assert!(line("SIZE").ends_with("#WRONG   /MPI"), "{table}");
        assert!(line("4KiB").contains("shm/shared") && line("4KiB").ends_with("2.50x"), "{table}");
        assert!(line("100MB").contains("25000000") && line("100MB").ends_with("5.00x"), "{table}");
        // 400 MB at 41 GB/s.
        assert!(line("muster in shared memory at 100MB").contains("98 % of the memory's limit, 9756 us"), "{table}");
        assert!(line("mpi:").contains("cma"), "{table}");
    }

    #[test]
    fn a_rival_much_slower_than_on_an_idle_machine_makes_a_run_void() {
        let args = arguments("allreduce --compare mpi");
        let mut report = report(&args);
        assert_eq!(report.void(), [""; 0]);
        report.results.cases[1].rounds = vec![vec![6_200]];
        report.libraries[1].1 = "Open MPI, copies by none".to_owned();
        let void = report.void();
        assert!(void[0].contains("CMA") && void[1].contains("mpi took 6.20 us for 4KiB"), "{void:?}");
        assert!(report.table().contains("VOID: mpi took"));
        let tcp = arguments("allreduce --compare mpi --transport tcp");
        report.args = &tcp;
        assert_eq!(report.void(), [""; 0], "nothing is known of MPI over TCP");
    }

    #[test]
    fn wrong_elements_are_told() {
        let args = arguments("allreduce");
        let mut report = report(&args);
        report.results.cases[0].wrong = 3;
        assert_eq!((report.wrong(), report.rows()[0].wrong), (3, 3));
        assert!(report.json().unwrap().lines().next().unwrap().ends_with(r#""wrong":3}"#));
    }
}
