//! `muster run`: submits a job, shows the logs of all its ranks, ends with its exit code.

use crate::cli::{RunArgs, Target, UpArgs};
use crate::client::{Connection, JSON, Kind, Kinds, Manifest, read_manifests};
use crate::commands::apply;
use crate::env;
use crate::exit::ExitStatus;
use crate::jobs::{self, Follow, LogOptions, Outcome};
use crate::logging;
use crate::output::Lines;
use crate::roles::Server;
use crate::settings::ServerSettings;
use crate::signals::Signals;
use anyhow::{Context, Result, bail};
use http::Method;
use muster_api::random::Random;
use serde_json::{Value, json};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

/// What of the caller's environment a command gets when a server runs it that was started elsewhere.
const PASSED_ON: [&str; 5] = [env::PATH, "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "PYTHONPATH"];
/// How long the pods of a cancelled job are waited for.
const CANCELLATION: Duration = Duration::from_secs(40);

pub(crate) fn run(args: &RunArgs) -> Result<ExitStatus> {
    show(args, &Lines::new())
}

/// The same, with the lines of the ranks shown as is said.
pub(crate) fn show(args: &RunArgs, lines: &Lines) -> Result<ExitStatus> {
    // Anything wrong with the job is said before a server starts.
    let manifests = match &args.file {
        Some(file) => read_manifests(std::slice::from_ref(file))?,
        None => vec![Manifest { object: job_of_command(args)?, source: "the command line".to_owned() }],
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("failed to start the runtime")?;
    let status = runtime.block_on(with_server(args, &manifests, lines));
    runtime.shutdown_timeout(Duration::from_secs(1));
    status
}

/// On the server that runs, or on one of its own that ends with the job.
async fn with_server(args: &RunArgs, manifests: &[Manifest], lines: &Lines) -> Result<ExitStatus> {
    let mut signals = Signals::new()?;
    if let Some(connection) = running_server(&args.target).await? {
        return on(&connection, args, manifests, lines, &mut signals).await;
    }
    let home = scratch_folder()?;
    logging::init("info", crate::cli::LogFormat::Text, Some(&home.join("log")))?;
    let settings = ServerSettings::resolve(&UpArgs {
        data_dir: Some(home.join("data")),
        listen: None,
        kubeconfig: Some(home.join("kubeconfig")),
        roles: None,
        addressing: None,
        images: args.images.clone(),
        simulated_gpus: None,
        log_level: None,
        log_format: None,
        dump_config: false,
    })?;
    let mut server = tokio::select! {
        biased;
        () = signals.received() => return Ok(ExitStatus::Interrupted),
        server = Server::start(settings) => server.context("failed to start a server for the job")?,
    };
    lines.say(&format!(
        "started a server for this job; to look at it meanwhile: KUBECONFIG={}",
        server.kubeconfig().display()
    ));
    let connection = Connection::embedded(server.client(), args.target.namespace.as_deref());
    let status = on(&connection, args, manifests, lines, &mut signals).await;
    // The second signal ends what the first has asked to end, and so does one when the job is over.
    let impatient = signals.count() > 1
        || tokio::select! {
            biased;
            () = signals.received() => true,
            () = server.drain() => false,
        };
    if impatient {
        server.kill().await;
    }
    if matches!(status, Ok(ExitStatus::Success | ExitStatus::Interrupted)) {
        // Nothing in there is of use any more; what cannot be removed is only a leftover.
        let _ = std::fs::remove_dir_all(&home);
    } else {
        lines.say(&format!("the server's log and the pods' files are kept in {}", home.display()));
    }
    status
}

/// The server that the flags or the environment name, if it answers. One that was named by hand must answer.
async fn running_server(target: &Target) -> Result<Option<Connection>> {
    let named = target.kubeconfig.is_some() || env::read(env::KUBECONFIG).is_some();
    let connection = match Connection::open(target).await {
        Ok(connection) => connection,
        Err(error) if named => return Err(error),
        Err(_) => return Ok(None),
    };
    match connection.get("/version", JSON).await {
        Ok(_) => Ok(Some(connection)),
        Err(error) if named => Err(error),
        Err(_) => Ok(None),
    }
}

/// A folder of its own for a server that lives as long as one job.
fn scratch_folder() -> Result<std::path::PathBuf> {
    let base = crate::settings::Folders::resolve()?.data.join("runs");
    let home = base.join(Random::system().suffix(8));
    // The first of them makes the data folder, which is nobody else's business.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&home);
    made.with_context(|| format!("failed to create {}", home.display()))?;
    Ok(home)
}

/// Submits and follows.
async fn on(
    connection: &Connection,
    args: &RunArgs,
    manifests: &[Manifest],
    lines: &Lines,
    signals: &mut Signals,
) -> Result<ExitStatus> {
    let kinds = Kinds::discover(connection).await?;
    let job = submit(connection, &kinds, manifests, args).await?;
    let kind = kinds.of(job["apiVersion"].as_str().unwrap_or_default(), job["kind"].as_str().unwrap_or_default())?;
    let namespace = job["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = jobs::name(&job);
    lines.say(&format!("{} {name} submitted", kind.kind));
    let follow =
        Follow { connection, kind, namespace, job: name, options: LogOptions::default(), lines, progress: true };
    let mut following = std::pin::pin!(follow.to_the_end());
    let outcome = tokio::select! {
        biased;
        () = signals.received() => None,
        outcome = &mut following => Some(outcome?),
    };
    lines.clear_status();
    let Some(outcome) = outcome else {
        lines.say(&format!("cancelling {name}; once more to end at once"));
        // What ranks write while they end is shown, too: that a checkpoint was kept, say.
        let last_words = async {
            let _ = following.await;
            Ok(())
        };
        tokio::select! {
            biased;
            () = signals.received() => {}
            result = async { tokio::try_join!(remove(connection, kind, namespace, name), last_words) } => drop(result?),
        }
        lines.clear_status();
        return Ok(ExitStatus::Interrupted);
    };
    if args.rm && outcome != Outcome::Deleted {
        remove(connection, kind, namespace, name).await?;
    }
    Ok(match outcome {
        Outcome::Succeeded => ExitStatus::Success,
        Outcome::Failed { message, exit_code } => {
            lines.say(&format!("error: {message}"));
            exit_code.map_or(ExitStatus::Failure, ExitStatus::Job)
        }
        Outcome::Deleted => bail!("the job {name} was deleted while it ran"),
    })
}

/// Creates the one job of the manifests, after what it may need.
async fn submit(connection: &Connection, kinds: &Kinds, manifests: &[Manifest], args: &RunArgs) -> Result<Value> {
    let is_job = |m: &&Manifest| kinds.of(m.text("/apiVersion"), m.text("/kind")).is_ok_and(Kind::is_training_job);
    let jobs: Vec<&Manifest> = manifests.iter().filter(is_job).collect();
    let [job] = jobs[..] else {
        bail!(
            "`muster run` takes one training job, here are {}; `muster apply -f` takes any objects",
            if jobs.is_empty() { "none".to_owned() } else { jobs.len().to_string() }
        );
    };
    for other in manifests.iter().filter(|m| !is_job(m)) {
        apply::create(connection, kinds, other, &args.target).await?;
    }
    let mut job = job.clone();
    if let Some(name) = &args.name {
        job.object["metadata"]["name"] = name.clone().into();
    }
    apply::create(connection, kinds, &job, &args.target).await
}

/// Deletes a job and waits until its pods are gone.
async fn remove(connection: &Connection, kind: &Kind, namespace: &str, name: &str) -> Result<()> {
    let body = serde_json::to_vec(&json!({"propagationPolicy": "Background"}))?;
    match connection.try_send(Method::DELETE, &kind.object(namespace, name), JSON, JSON, body).await {
        Ok(_) => {}
        Err(error) if crate::client::is_not_found(&error) => {}
        Err(error) => return Err(connection.explain(error)),
    }
    let gone = async {
        while !jobs::pods(connection, namespace, name).await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    match tokio::time::timeout(CANCELLATION, gone).await {
        Ok(result) => result,
        Err(_) => bail!("the pods of {name} are still there; `muster get pods -l {}` shows them", jobs::selector(name)),
    }
}

/// The PyTorchJob that runs a command as so many processes: its environment is what any framework's launcher knows.
fn job_of_command(args: &RunArgs) -> Result<Value> {
    let directory = std::env::current_dir().context("the current folder is gone")?;
    let mut variables: Vec<Value> = PASSED_ON
        .iter()
        .filter_map(|name| Some(json!({"name": name, "value": env::read(name)?.into_string().ok()?})))
        .collect();
    variables.extend(args.env.iter().map(|(name, value)| json!({"name": name, "value": value})));
    for variable in &mut variables {
        variable["value"] = literal(variable["value"].as_str().unwrap_or_default()).into();
    }
    let mut container = json!({
        "name": "pytorch",
        "image": args.image,
        "command": args.command.iter().map(|word| literal(word)).collect::<Vec<_>>(),
        "workingDir": directory,
        "env": variables,
    });
    if args.gpus_per_worker > 0 {
        container["resources"] = json!({"limits": {"nvidia.com/gpu": args.gpus_per_worker}});
    }
    let replica = |replicas: u32| {
        json!({"replicas": replicas, "restartPolicy": "Never",
               "template": {"spec": {"containers": [container]}}})
    };
    let mut replicas = json!({"Master": replica(1)});
    if args.workers > 1 {
        replicas["Worker"] = replica(args.workers - 1);
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => format!("{}-{}", name_of_command(&args.command), Random::system().suffix(5)),
    };
    Ok(json!({
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name,},
        "spec": {"pytorchReplicaSpecs": replicas},
    }))
}

/// A text that stays what it is where `$(NAME)` is replaced and `$$` stands for `$`.
fn literal(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        escaped.push(letter);
        if letter == '$' && matches!(letters.peek(), Some('$' | '(')) {
            escaped.push('$');
        }
    }
    escaped
}

/// A name for people: the script's, else the program's, as far as object names allow.
fn name_of_command(command: &[String]) -> String {
    let stem =
        |word: &String| Path::new(word).file_stem().map(|s| s.to_string_lossy().to_lowercase()).unwrap_or_default();
    let is_file = |word: &&String| !word.contains(char::is_whitespace) && Path::new(word).extension().is_some();
    let script = command.iter().skip(1).filter(|word| !word.starts_with('-')).find(is_file);
    let words = script.or(command.first()).map(stem).unwrap_or_default();
    let name: String = words.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(30).collect();
    let name = name.trim_matches('-');
    match name.chars().next() {
        Some(first) if first.is_ascii_alphabetic() => name.to_owned(),
        _ => "job".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_named_after_its_script() {
        for (command, want) in [
            ("python train.py --lr 0.1", "train"),
            ("python -u examples/Fashion_MNIST.py", "fashion-mnist"),
            ("/usr/bin/true", "true"),
            ("torchrun --nproc-per-node=2 -m pkg.train", "pkg"),
            ("./7zip", "job"),
        ] {
            let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
            assert_eq!(name_of_command(&words), want, "{command}");
        }
        let shell = ["sh", "-c", "sleep 0.5; true"].map(str::to_owned);
        assert_eq!(name_of_command(&shell), "sh", "a text with a dot in it is no script");
    }

    #[test]
    fn a_literal_text_needs_no_more_than_its_dollars_doubled() {
        for (text, want) in
            [("$RANK of 2", "$RANK of 2"), ("$$", "$$$"), ("$(date)", "$$(date)"), ("$$(x) $", "$$$$(x) $"), ("", "")]
        {
            assert_eq!(literal(text), want);
        }
    }
}
