//! Lines of several ranks on one terminal: each with its coloured prefix, and below them, on a terminal, one status
//! line that stays last.

use crate::env;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

const COLOURS: [u8; 8] = [36, 33, 32, 35, 34, 96, 93, 92];

/// Where lines and the status line go. Clones share the terminal.
#[derive(Clone)]
pub(crate) struct Lines {
    screen: Arc<Mutex<Screen>>,
    colour: bool,
    /// Lines of ranks stand without their names.
    bare: bool,
}

struct Screen {
    /// The status line that is shown, on a terminal.
    status: String,
    /// Standard error is a terminal: the status line lives there.
    live: bool,
}

/// The name before each line of one rank.
#[derive(Clone, Debug)]
pub(crate) struct Prefix(String);

impl Lines {
    pub(crate) fn new() -> Lines {
        let plain = env::read(env::NO_COLOR).is_some();
        Lines {
            screen: Arc::new(Mutex::new(Screen {
                status: String::new(),
                live: std::io::stderr().is_terminal() && !plain,
            })),
            colour: std::io::stdout().is_terminal() && !plain,
            bare: false,
        }
    }

    /// Lines of ranks as they wrote them, for what another program shall read.
    pub(crate) fn bare() -> Lines {
        Lines { bare: true, ..Lines::new() }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.lock().live
    }

    /// A prefix in the colour of the index, padded to `width`.
    pub(crate) fn prefix(&self, name: &str, width: usize, index: usize) -> Prefix {
        Prefix(if self.bare {
            String::new()
        } else if self.colour {
            format!("\x1b[{}m{name:<width$}\x1b[0m | ", COLOURS[index % COLOURS.len()])
        } else {
            format!("{name:<width$} | ")
        })
    }

    /// A line of a rank, to standard output.
    pub(crate) fn log(&self, prefix: &Prefix, line: &str) {
        self.above_status(|| {
            let mut out = std::io::stdout().lock();
            // A reader that went away (`| head`) is no reason to fail.
            let _ = writeln!(out, "{}{line}", prefix.0);
            let _ = out.flush();
        });
    }

    /// A line of our own, to standard error.
    pub(crate) fn say(&self, line: &str) {
        self.above_status(|| eprintln!("{line}"));
    }

    /// Replaces the status line; where there is no terminal, nothing is shown.
    pub(crate) fn status(&self, text: &str) {
        let mut screen = self.lock();
        if screen.live && screen.status != text {
            screen.status = text.to_owned();
            eprint!("\r\x1b[K{text}");
            let _ = std::io::stderr().flush();
        }
    }

    pub(crate) fn clear_status(&self) {
        self.status("");
    }

    fn above_status(&self, print: impl FnOnce()) {
        let screen = self.lock();
        if screen.status.is_empty() {
            return print();
        }
        eprint!("\r\x1b[K");
        let _ = std::io::stderr().flush();
        print();
        eprint!("{}", screen.status);
        let _ = std::io::stderr().flush();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
