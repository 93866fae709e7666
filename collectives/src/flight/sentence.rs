//! What is said about a culprit: who, why, and what to do.

use std::fmt;
use std::time::Duration;

use crate::flight::analysis::{Cause, Culprit};
use crate::flight::ranks::RankSet;
use crate::flight::read::Operation;

/// A time span as people write it: `250ms`, `12.3s`, `5m3s`, `2h10m`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0.as_secs(), self.0.as_millis());
        let text = match seconds {
            0 if millis == 0 => format!("{}us", self.0.as_micros()),
            0 => format!("{millis}ms"),
            1..100 => format!("{seconds}.{}s", millis % 1000 / 100),
            100..6000 => format!("{}m{}s", seconds / 60, seconds % 60),
            _ => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        };
        f.pad(&text)
    }
}

struct Ranks<'a>(&'a RankSet);

impl fmt::Display for Ranks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(f, "rank{plural} {}", self.0)
    }
}

struct Numbered<'a>(&'a Operation);

impl fmt::Display for Numbered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} {})",
            self.0.call(),
            if self.0.is_message() { "message" } else { "operation" },
            self.0.sequence()
        )
    }
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Culprit { ranks, pid, cause, waiting } = self;
        write!(f, "{}", Ranks(ranks))?;
        if let Some(pid) = pid {
            write!(f, " (pid {pid})")?;
        }
        let are = if ranks.len() == 1 { "is" } else { "are" };
        let have = if ranks.len() == 1 { "has" } else { "have" };
        let pid = pid.map_or("PID".to_owned(), |pid| pid.to_string());
        match cause {
            Cause::Stopped { inside: Some(operation), since } => {
                write!(f, " is stopped by a signal inside {}, begun {} ago", Numbered(operation), Span(*since))
            }
            Cause::Stopped { inside: None, .. } => write!(f, " is stopped by a signal"),
            Cause::Traced => write!(f, " is held by a debugger"),
            Cause::Ended => write!(f, " has ended, and its parent has not taken note"),
            Cause::Absent { wanted, last, since, blocked } => {
                write!(f, " has not called {}", Numbered(wanted))?;
                match last {
                    Some(last) => write!(f, "; it left {} {} ago", Numbered(last), Span(*since)),
                    None => write!(f, ", nor anything else for {}", Span(*since)),
                }?;
                if *blocked { write!(f, " and its process is blocked in the kernel") } else { Ok(()) }
            }
            Cause::Inside { operation, since } => {
                write!(
                    f,
                    " {have} been inside {} for {}, which every rank here has begun",
                    Numbered(operation),
                    Span(*since)
                )
            }
            Cause::Deadlock { operations } => {
                write!(f, " wait for each other:")?;
                for (index, (rank, operation)) in operations.iter().take(4).enumerate() {
                    write!(f, "{} {rank} in {}", if index > 0 { "," } else { "" }, Numbered(operation))?;
                }
                if operations.len() > 4 { write!(f, " and so on") } else { Ok(()) }
            }
            Cause::Mismatch { theirs, expected } => {
                write!(f, " called {} where the others called {}", Numbered(theirs), expected.call())
            }
            Cause::Failed { text, told_by } if told_by == ranks => write!(f, " ended the communicator: {text}"),
            Cause::Failed { text, told_by } => {
                write!(f, " {are} blamed by {} for the end of the communicator: {text}", Ranks(told_by))
            }
            Cause::Missing { here: 0 } => write!(f, " {are} not on this machine"),
            Cause::Missing { here } if *here == ranks.len() => {
                write!(
                    f,
                    " {are} missing: no process of this machine has {} record",
                    if ranks.len() == 1 { "its" } else { "their" }
                )
            }
            Cause::Missing { here } => write!(f, " {are} not here; {here} of them should be"),
        }?;
        // Whoever has the error waits no more, and the others will have it soon.
        if !waiting.is_empty() && !matches!(cause, Cause::Failed { .. } | Cause::Deadlock { .. }) {
            let wait = if waiting.len() == 1 { "waits" } else { "wait" };
            write!(f, "; {} {wait} for {}", Ranks(waiting), if ranks.len() == 1 { "it" } else { "them" })?;
        }
        match cause {
            Cause::Stopped { .. } => write!(f, ". Let it go on: kill -CONT {pid}"),
            Cause::Traced => write!(f, ". Let it go on in the debugger, or detach it"),
            Cause::Ended => write!(f, ". Look at its log for the reason"),
            Cause::Absent { blocked: true, .. } => {
                write!(f, ". Look at what it waits for: cat /proc/{pid}/wchan; often it is a file system")
            }
            Cause::Absent { .. } => {
                write!(
                    f,
                    ". Look at what it does instead: py-spy dump --pid {pid}, or \
                     gdb -p {pid} -batch -ex 'thread apply all bt'"
                )
            }
            Cause::Inside { .. } => write!(f, ". Look at the load of the hosts and at the network between them"),
            Cause::Deadlock { .. } => write!(f, ". Let one of them call its operations in another order"),
            Cause::Mismatch { .. } => {
                write!(
                    f,
                    ". All ranks have to call the same operations in the same order: \
                     look for a branch on the rank or the data"
                )
            }
            Cause::Failed { .. } => write!(f, ". Look at its log for the reason"),
            Cause::Missing { here: 0 } => write!(f, ". Call muster flight on their hosts as well"),
            Cause::Missing { .. } => {
                write!(f, ". Look at the logs: the processes have ended, or never came to connect")
            }
        }
    }
}
