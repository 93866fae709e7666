//! The thread that carries out started operations, in the order in which they were started.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Dropping it waits for all that was given to it.
pub(crate) struct Background {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    pub(crate) fn start() -> std::io::Result<Background> {
        let (jobs, receiver) = channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("collectives-run".to_owned())
            .spawn(move || receiver.into_iter().for_each(|job| job()))?;
        Ok(Background { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(crate) fn run(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread ends with the channel only, or with a panic, which ends the job's `Pending` as well.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
