//! The exit codes of `muster`, in one table.

use std::process::ExitCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    Success,
    /// The command could not do what was asked.
    Failure,
    /// A wait ended without what it waited for.
    TimedOut,
    /// The code of the job's failed process (`muster run`).
    Job(u8),
    /// Ended by Ctrl-C or SIGTERM before the work was done.
    Interrupted,
}

impl ExitStatus {
    pub(crate) fn code(self) -> u8 {
        match self {
            ExitStatus::Success => 0,
            ExitStatus::Failure => 1,
            ExitStatus::TimedOut => 124,
            ExitStatus::Job(code) => code,
            ExitStatus::Interrupted => 130,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> ExitCode {
        ExitCode::from(status.code())
    }
}
