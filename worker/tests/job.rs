//! Whole jobs: a rendezvous in this process, ranks as processes of the real program, a small data set.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use muster_rendezvous::TokenKey;
use muster_rendezvous::quorum;
use muster_rendezvous::server;
use muster_worker::sampler::SplitMix64;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(300);

/// A process under test. What it writes goes to a file, which is never full.
struct Rank {
    child: Child,
    log: tempfile::NamedTempFile,
}

struct Ended {
    status: ExitStatus,
    text: String,
}

impl Rank {
    fn start(mut command: Command) -> Rank {
        let log = tempfile::NamedTempFile::new().unwrap();
        let output = log.reopen().unwrap();
        let child = command.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
        Rank { child, log }
    }

    fn finish(mut self) -> Ended {
        let start = Instant::now();
        loop {
            let status = self.child.try_wait().unwrap();
            let text = std::fs::read_to_string(self.log.path()).unwrap();
            match status {
                Some(status) => return Ended { status, text },
                None if start.elapsed() > DEADLINE => {
                    self.signal(libc::SIGKILL);
                    panic!("a rank does not end: {}", tail(&text));
                }
                None => pause(),
            }
        }
    }

    fn signal(&self, number: i32) {
        #[allow(unsafe_code)]
        // SAFETY: a signal to a child of ours that has not been waited for.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, number) };
        assert_eq!(sent, 0);
    }

    fn kill(mut self) {
        self.signal(libc::SIGKILL);
        self.child.wait().unwrap();
    }
}

fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(3000);
    &text[(start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())..]
}

/// A rendezvous, a data set, and a folder for all that a job writes.
struct Stage {
    runtime: tokio::runtime::Runtime,
    address: String,
    token: String,
    folder: tempfile::TempDir,
    config: quorum::Config,
    shutdown: tokio_util::sync::CancellationToken,
}

fn key() -> TokenKey {
    TokenKey::from_bytes([9; 32])
}

impl Stage {
    fn new(job: &str) -> Stage {
        Stage::with(job, quorum::Config { settle: Duration::from_millis(300), ..quorum::Config::default() })
    }

    fn with(job: &str, config: quorum::Config) -> Stage {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_data(&folder.path().join("data"));
        let token = key().job_token("default", job, "uid");
        let mut stage =
            Stage { runtime, address: "127.0.0.1:0".into(), token, folder, config, shutdown: Default::default() };
        stage.start_server();
        stage
    }

    fn start_server(&mut self) {
        let address = self.address.clone();
        let listener = self.runtime.block_on(async {
            loop {
                match tokio::net::TcpListener::bind(&address).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        self.address = listener.local_addr().unwrap().to_string();
        self.shutdown = tokio_util::sync::CancellationToken::new();
        self.runtime.spawn(server::serve(listener, key(), self.config, self.shutdown.clone()));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One rank, not started.
    fn rank(&self, rank: usize, world: usize, run: &str, arguments: &str) -> Command {
        let mut command = worker(arguments, &self.path("data"));
        command
            .args(["--checkpoint-dir".as_ref(), self.path(run).as_os_str()])
            .args(["--metrics".as_ref(), self.path(&format!("{run}.jsonl")).as_os_str()])
            .env("MUSTER_RENDEZVOUS", &self.address)
            .env("MUSTER_JOB_TOKEN", &self.token)
            .env("WORLD_SIZE", world.to_string())
            .env("RANK", rank.to_string())
            .env("HOSTNAME", format!("job-{rank}"));
        command
    }

    fn metrics(&self, run: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(&format!("{run}.jsonl"))).unwrap_or_default();
        // The last line may not be whole yet.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn wait_for_step(&self, run: &str, step: u64) {
        wait(&format!("step {step} of {run}"), || {
            self.metrics(run).iter().filter_map(|record| record["step"].as_u64()).any(|at| at >= step)
        });
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests start the program under test")]
fn worker(arguments: &str, data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-worker"));
    command
        .args(["train", "--threads", "1", "--log-every", "1", "--data"])
        .arg(data)
        .args(arguments.split_whitespace());
    for name in ["WORLD_SIZE", "RANK", "PET_NNODES", "PET_NODE_RANK", "MUSTER_RENDEZVOUS", "MUSTER_JOB_TOKEN"] {
        command.env_remove(name);
    }
    command
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "waited too long for {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "a process tells nobody here what it does")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// The hash that a rank prints at its end.
fn digest(ended: &Ended) -> String {
    assert!(ended.status.success(), "{}: {}", ended.status, tail(&ended.text));
    let line = ended.text.lines().find(|line| line.contains("parameters sha256:"));
    let digest = line.and_then(|line| line.split("sha256:").nth(1));
    digest.unwrap_or_else(|| panic!("no hash: {}", tail(&ended.text))).to_owned()
}

/// Pictures of three classes that a model can tell apart: bars at different heights, with noise.
fn write_data(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let mut random = SplitMix64::new(5);
    for (prefix, count) in [("train", 480u32), ("t10k", 90)] {
        let labels: Vec<u8> = (0..count).map(|_| random.below(3) as u8).collect();
        let mut pixels = Vec::new();
        for label in &labels {
            for row in 0..12u64 {
                for _ in 0..12 {
                    let bar = row / 4 == u64::from(*label);
                    pixels.push(random.below(120) as u8 + if bar { 90 } else { 0 });
                }
            }
        }
        let write = |name: String, shape: &[u32], data: &[u8]| {
            let mut file = GzEncoder::new(std::fs::File::create(folder.join(name)).unwrap(), Compression::fast());
            file.write_all(&[0, 0, 8, shape.len() as u8]).unwrap();
            for size in shape {
                file.write_all(&size.to_be_bytes()).unwrap();
            }
            file.write_all(data).unwrap();
            file.finish().unwrap();
        };
        write(format!("{prefix}-images-idx3-ubyte.gz"), &[count, 12, 12], &pixels);
        write(format!("{prefix}-labels-idx1-ubyte.gz"), &[count], &labels);
    }
}

fn start_ranks(stage: &Stage, run: &str, arguments: &str) -> Vec<Rank> {
    (0..2).map(|rank| Rank::start(stage.rank(rank, 2, run, arguments))).collect()
}

/// The hash that all ranks end with.
fn common_digest(ranks: impl IntoIterator<Item = Rank>) -> String {
    let digests: Vec<String> = ranks.into_iter().map(|rank| digest(&rank.finish())).collect();
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "the ranks hold different parameters: {digests:?}");
    digests[0].clone()
}

/// What the same arguments lead to in a job of its own that nothing disturbs.
fn calm(arguments: &str) -> String {
    common_digest(start_ranks(&Stage::new("calm"), "run", arguments))
}

#[test]
fn one_process_trains_alone() {
    let folder = tempfile::tempdir().unwrap();
    write_data(folder.path());
    let run = || {
        let ended = Rank::start(worker("--model cnn --epochs 4 --batch-size 16", folder.path())).finish();
        assert!(ended.text.contains("accuracy=1.0000"), "{}", ended.text);
        digest(&ended)
    };
    assert_eq!(run(), run(), "equal runs end with equal parameters");
}

#[test]
fn two_ranks_train_one_model() {
    for arguments in [
        "--model mlp --epochs 3 --batch-size 16",
        "--model cnn --epochs 3 --batch-size 16 --optimizer adam --bucket-bytes 64",
    ] {
        let stage = Stage::new("pair");
        let one = common_digest(start_ranks(&stage, "run", arguments));
        let records = stage.metrics("run");
        let finish = records.iter().find(|record| record["event"] == "finish").unwrap();
        assert!(finish["accuracy"].as_f64().unwrap() > 0.95, "{finish}");
        assert_eq!(finish["parameters"], one.as_str());
        // 480 samples, 2 x 16 a step, 3 epochs.
        assert_eq!(finish["step"], 45);
        assert_eq!(one, calm(arguments), "equal jobs end with equal parameters");
    }
}

#[test]
fn a_killed_rank_is_replaced_and_the_result_is_the_same() {
    let arguments = "--model mlp --epochs 40 --batch-size 8 --resume";
    let wanted = calm(arguments);
    for victim in [1, 0] {
        let stage = Stage::new("killed");
        let mut ranks = start_ranks(&stage, "run", arguments);
        for step in [40, 200] {
            stage.wait_for_step("run", step);
            let replacement = stage.rank(victim, 2, "run", arguments);
            ranks.remove(victim).kill();
            ranks.insert(victim, Rank::start(replacement));
        }
        assert_eq!(common_digest(ranks), wanted, "after rank {victim} was killed");
    }
}

#[test]
fn a_stopped_job_saves_its_state_and_goes_on_from_there() {
    let arguments = "--model mlp --epochs 30 --batch-size 8 --resume";
    let wanted = calm(arguments);
    let stage = Stage::new("stopped");
    let ranks = start_ranks(&stage, "run", arguments);
    stage.wait_for_step("run", 100);
    ranks.iter().for_each(|rank| rank.signal(libc::SIGTERM));
    for rank in ranks {
        let ended = rank.finish();
        assert_eq!(ended.status.code(), Some(143), "{}", tail(&ended.text));
    }
    let saved = muster_worker::checkpoint::latest(&stage.path("run")).unwrap().sidecar.progress;
    assert!(saved.step >= 100 && saved.step < 900, "{saved:?}");
    assert_eq!(common_digest(start_ranks(&stage, "run", arguments)), wanted);
}

/// 480 samples make 34 steps of 14 and one of 4.
const UNEVEN: &str = "--model mlp --epochs 6 --batch-size 7";
const UNEVEN_STEPS: u64 = 6 * 35;

#[test]
fn ranks_that_divide_a_batch_unevenly_take_the_steps_of_one() {
    let losses = |world: usize, arguments: &str| -> Vec<f64> {
        let stage = Stage::new("uneven");
        let ranks = (0..world).map(|rank| Rank::start(stage.rank(rank, world, "run", arguments)));
        common_digest(ranks.collect::<Vec<_>>());
        let of_step = |record: &Value| (record["event"] == "step").then(|| record["loss"].as_f64().unwrap());
        stage.metrics("run").iter().filter_map(of_step).collect()
    };
    let one = losses(1, "--model mlp --epochs 6 --batch-size 14");
    let two = losses(2, UNEVEN);
    assert_eq!((one.len() as u64, two.len() as u64), (UNEVEN_STEPS, UNEVEN_STEPS));
    for (step, (one, two)) in one.iter().zip(&two).enumerate() {
        assert!((one - two).abs() <= 1e-4 + 1e-3 * one.abs(), "at step {step}: {one} and {two}");
    }
}

#[test]
fn a_checkpoint_of_two_ranks_is_taken_up_by_one_and_by_three() {
    let arguments = format!("{UNEVEN} --checkpoint-every 20 --resume");
    let stage = Stage::new("two");
    let ranks = start_ranks(&stage, "run", &arguments);
    stage.wait_for_step("run", 100);
    ranks.into_iter().for_each(Rank::kill);
    let saved = muster_worker::checkpoint::latest(&stage.path("run")).unwrap().sidecar;
    assert_eq!(saved.shards.len(), 2);
    for world in [1, 3] {
        let next = Stage::new("next");
        std::fs::create_dir(next.path("run")).unwrap();
        for file in std::fs::read_dir(stage.path("run")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), next.path("run").join(file.file_name())).unwrap();
        }
        common_digest((0..world).map(|rank| Rank::start(next.rank(rank, world, "run", &arguments))).collect::<Vec<_>>());
        let records = next.metrics("run");
        let event = |name: &str| records.iter().find(|record| record["event"] == name).unwrap();
        assert_eq!(event("start")["step"], saved.progress.step);
        assert_eq!(event("finish")["step"], UNEVEN_STEPS, "the batch of all ranks together is kept");
        assert_eq!(muster_worker::checkpoint::latest(&next.path("run")).unwrap().sidecar.shards.len(), world);
    }
}

#[test]
fn training_goes_on_while_the_rendezvous_is_away() {
    let arguments = "--model mlp --epochs 40 --batch-size 8";
    let wanted = calm(arguments);
    let mut stage = Stage::new("away");
    let ranks = start_ranks(&stage, "run", arguments);
    stage.wait_for_step("run", 50);
    stage.shutdown.cancel();
    stage.wait_for_step("run", 300);
    stage.start_server();
    assert_eq!(common_digest(ranks), wanted);
    let interrupted = stage.metrics("run").iter().filter(|record| record["event"] == "interrupted").count();
    assert_eq!(interrupted, 0, "the death of the server must end no epoch");
}

#[test]
fn a_rank_that_hangs_is_given_up_and_taken_back_when_it_wakes() {
    let arguments = "--model mlp --epochs 40 --batch-size 8";
    let wanted = calm(arguments);
    let stage = Stage::with("hangs", quorum::Config { deadline: Duration::from_secs(1), ..quorum::Config::default() });
    let ranks = start_ranks(&stage, "run", arguments);
    stage.wait_for_step("run", 50);
    ranks[1].signal(libc::SIGSTOP);
    wait("the loss of the rank", || {
        stage.metrics("run").iter().any(|record| {
            record["event"] == "interrupted" && record["cause"].as_str().unwrap().contains("sent no heartbeat")
        })
    });
    ranks[1].signal(libc::SIGCONT);
    assert_eq!(common_digest(ranks), wanted);
}

#[test]
fn an_elastic_job_goes_on_smaller() {
    let stage = Stage::new("elastic");
    let arguments = "--model mlp --epochs 60 --batch-size 8";
    let mut ranks: Vec<Rank> = (0..3)
        .map(|rank| {
            let mut command = stage.rank(rank, 3, "run", arguments);
            command.env("PET_NNODES", "2:3").env_remove("WORLD_SIZE");
            Rank::start(command)
        })
        .collect();
    stage.wait_for_step("run", 50);
    ranks.pop().unwrap().kill();
    common_digest(ranks);
    let worlds: Vec<u64> = stage.metrics("run").iter().filter_map(|record| record["world"].as_u64()).collect();
    assert_eq!(worlds, [3, 2]);
}

#[test]
fn a_rank_without_its_job_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    write_data(folder.path());
    let mut homeless = worker("--epochs 1", folder.path());
    homeless.env("WORLD_SIZE", "2").env("RANK", "0");
    let mut stage = Stage::new("alone");
    let lonely = stage.rank(0, 2, "run", "--epochs 1 --join-timeout 0.5");
    let mut stranger = stage.rank(0, 2, "run", "--epochs 1");
    stage.token = TokenKey::from_bytes([1; 32]).job_token("default", "alone", "uid");
    stranger.env("MUSTER_JOB_TOKEN", &stage.token);
    let table = [
        (homeless, 1, "MUSTER_RENDEZVOUS is not set"),
        (lonely, 138, "1 of 2 members are here"),
        (stranger, 1, "the job token was not issued by this server"),
    ];
    for (command, code, message) in table {
        let ended = Rank::start(command).finish();
        assert_eq!(ended.status.code(), Some(code), "{}", ended.text);
        assert!(ended.text.contains(message), "{}", ended.text);
    }
}
