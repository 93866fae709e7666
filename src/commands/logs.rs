//! `muster logs`: of a pod as it is, of a job with the rank before each line.

use crate::cli::LogsArgs;
use crate::client::{Connection, Kind, Kinds};
use crate::exit::ExitStatus;
use crate::jobs::{self, Follow, LogOptions, show_log};
use crate::output::Lines;
use anyhow::{Result, bail};
use futures::AsyncReadExt;
use serde_json::Value;
use std::io::Write;

/// Whose logs are meant.
enum Whose {
    Job(Kind, String),
    Pod(Value),
}

pub(crate) async fn run(args: &LogsArgs) -> Result<ExitStatus> {
    let connection = Connection::open(&args.target).await?;
    let options = LogOptions {
        container: args.container.clone(),
        previous: args.previous,
        tail: args.tail,
        since: args.since,
        timestamps: args.timestamps,
    };
    match whose(&connection, &args.what).await? {
        Whose::Pod(pod) => raw(&connection, &options.path(&connection.namespace, &pod, args.follow)).await,
        Whose::Job(kind, name) if args.follow => {
            let follow = Follow {
                connection: &connection,
                kind: &kind,
                namespace: &connection.namespace,
                job: &name,
                options,
                lines: &Lines::new(),
                progress: false,
            };
            follow.to_the_end().await?;
            Ok(ExitStatus::Success)
        }
        Whose::Job(kind, name) => all_ranks(&connection, &kind, &name, &options).await,
    }
}

async fn whose(connection: &Connection, what: &str) -> Result<Whose> {
    let kinds = Kinds::discover(connection).await?;
    let (kind, name) = match what.split_once('/') {
        Some((kind, name)) => (Some(kinds.find(kind)?.clone()), name),
        None => (None, what),
    };
    if let Some(kind) = &kind
        && kind.is_training_job()
    {
        connection.get(&kind.object(&connection.namespace, name), crate::client::JSON).await?;
        return Ok(Whose::Job(kind.clone(), name.to_owned()));
    }
    if kind.is_none()
        && let Some((kind, _)) = jobs::find(connection, &kinds, name).await?
    {
        return Ok(Whose::Job(kind, name.to_owned()));
    }
    if kind.as_ref().is_some_and(|kind| kind.plural != "pods") {
        bail!("{what:?} has no logs; name a job or a pod");
    }
    match connection.find(&format!("/api/v1/namespaces/{}/pods/{name}", connection.namespace)).await? {
        Some(pod) => Ok(Whose::Pod(pod)),
        None => bail!(
            "there is no job and no pod {name:?} in namespace {:?}; `muster get pytorchjobs,tfjobs,mxjobs,pods` shows what there is",
            connection.namespace
        ),
    }
}

/// The log of one pod, byte for byte.
async fn raw(connection: &Connection, path: &str) -> Result<ExitStatus> {
    let mut log = std::pin::pin!(connection.stream(path, "*/*").await.map_err(|e| connection.explain(e))?);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = log.read(&mut buffer).await?;
        let mut out = std::io::stdout().lock();
        if n == 0 || out.write_all(&buffer[..n]).and_then(|()| out.flush()).is_err() {
            return Ok(ExitStatus::Success);
        }
    }
}

async fn all_ranks(connection: &Connection, kind: &Kind, job: &str, options: &LogOptions) -> Result<ExitStatus> {
    let lines = Lines::new();
    let pods = jobs::pods(connection, &connection.namespace, job).await?;
    let width = pods.iter().map(|pod| jobs::short_name(pod).len()).max().unwrap_or(0);
    let mut shown = false;
    let mut problem = None;
    for (index, pod) in pods.iter().enumerate() {
        let prefix = lines.prefix(&jobs::short_name(pod), width, index);
        match show_log(connection, &options.path(&connection.namespace, pod, false), &prefix, &lines).await {
            Ok(()) => shown = true,
            // A rank that has not started yet has no log; the others have.
            Err(error) => problem = Some(error),
        }
    }
    let more = format!("`muster describe {}/{job}` tells more", kind.singular);
    match problem {
        Some(problem) if !shown => bail!("{problem:#}; {more}"),
        Some(problem) => {
            eprintln!("error: {problem:#}; {more}");
            Ok(ExitStatus::Failure)
        }
        None => {
            if pods.is_empty() {
                eprintln!("job {job:?} has no pods now; {more}");
            }
            Ok(ExitStatus::Success)
        }
    }
}
