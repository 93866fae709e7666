use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::*;
use crate::ddp::group::Group;

const LONG: Duration = Duration::from_secs(60);

/// A state of several kinds of tensors: views of a flat memory, of which one lies in it as a convolution's filters do,
/// and buffers of their own.
struct Weights {
    flat: Tensor,
    steps: Tensor,
    half: Tensor,
}

impl Weights {
    fn new(first: f32) -> Weights {
        let flat = Tensor::arange(200, (Kind::Float, Device::Cpu)) + f64::from(first);
        Weights { flat, steps: Tensor::from(first as i64), half: Tensor::full([3], f64::from(first), (Kind::Half, Device::Cpu)) }
    }

    fn views(&self) -> Vec<(&'static str, Tensor)> {
        let filters = self.flat.narrow(0, 100, 24).view([2, 2, 2, 3]).permute([0, 3, 1, 2]);
        vec![
            ("conv.weight", filters),
            ("fc.weight", self.flat.narrow(0, 10, 60).view([6, 10])),
            ("fc.bias", self.flat.narrow(0, 80, 6)),
        ]
    }

    fn state(&self) -> State {
        let mut state = State::new();
        state.views("model", &self.flat, self.views());
        state.tensor("buffers.steps", &self.steps);
        state.tensor("buffers.half", &self.half);
        state.section("scale", &json!({"scale": 65536.0, "steps": 3}));
        state
    }

    fn restore(&self, loaded: &Loaded) -> Result<(), CheckpointError> {
        loaded.restore_views("model", self.views())?;
        let buffers = [("buffers.steps", &self.steps), ("buffers.half", &self.half)];
        loaded.restore(buffers.map(|(name, tensor)| (name, tensor.shallow_clone())))
    }

    fn equal(&self, other: &Weights) -> bool {
        let pairs = self.views().into_iter().zip(other.views()).all(|((_, left), (_, right))| left.equal(&right));
        pairs && self.steps.equal(&other.steps) && self.half.equal(&other.half)
    }
}

fn at(step: u64) -> Progress {
    Progress { step, epoch: 1, offset: step * 10 }
}

/// Saves by so many ranks, all but some of them.
fn save_without(folder: &Path, keep: usize, step: u64, world: usize, absent: &[usize]) -> Option<Saved> {
    let weights = Weights::new(step as f32);
    let attempt = saver::unique();
    let mut savers: Vec<Saver> = (0..world).map(|_| Saver::new(folder, keep).unwrap()).collect();
    for (rank, saver) in savers.iter_mut().enumerate().filter(|(rank, _)| !absent.contains(rank)) {
        saver.save(weights.state(), at(step), Part { rank, world }, attempt).unwrap();
    }
    savers.iter_mut().for_each(|saver| saver.finish_part().unwrap());
    let limit = if absent.is_empty() { LONG } else { Duration::ZERO };
    savers[0].finish(limit).unwrap().ok().flatten()
}

fn save(folder: &Path, keep: usize, step: u64, world: usize) -> PathBuf {
    let saved = save_without(folder, keep, step, world, &[]).unwrap();
    assert_eq!(saved.progress, at(step));
    saved.path
}

fn shards(folder: &Path, step: u64) -> Vec<PathBuf> {
    let prefix = format!("step-{step:09}-");
    let ours = |name: &String| name.starts_with(&prefix) && name.ends_with(".safetensors");
    let mut paths: Vec<PathBuf> =
        names(folder).unwrap().into_iter().filter(ours).map(|name| folder.join(name)).collect();
    paths.sort();
    paths
}

#[test]
fn what_any_number_of_ranks_saved_is_restored_bit_by_bit() {
    for world in [1, 2, 3, 9] {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), 3, 5, world);
        let loaded = latest(folder.path()).unwrap();
        let weights = Weights::new(0.0);
        weights.restore(&loaded).unwrap();
        assert!(weights.equal(&Weights::new(5.0)));
        assert_eq!(loaded.sidecar.progress, at(5));
        assert_eq!(loaded.sidecar.shards.len(), world);
        assert_eq!(loaded.require::<Value>("scale").unwrap()["steps"], 3);
        assert!(loaded.section::<Value>("absent").unwrap().is_none());
        assert!(matches!(loaded.require::<u8>("scale"), Err(CheckpointError::Foreign { .. })));
    }
}

/// As `safetensors.torch.load_file` reads it: the library is the same.
#[test]
fn files_are_plain_safetensors_with_names_and_shapes_of_parameters() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), 3, 5, 2);
    let mut shapes = std::collections::BTreeMap::new();
    for path in shards(folder.path(), 5) {
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in tensors.tensors() {
            if name == "model.conv.weight" {
                let wanted: Vec<f32> = Weights::new(5.0).views()[0].1.contiguous().view(-1).try_into().unwrap();
                let wanted: Vec<u8> = wanted.iter().flat_map(|number| number.to_le_bytes()).collect();
                assert_eq!(view.data(), wanted);
            }
            assert!(shapes.insert(name, view.shape().to_vec()).is_none(), "a tensor is in one file");
        }
    }
    let wanted: [(&str, &[usize]); 5] = [
        ("buffers.half", &[3]),
        ("buffers.steps", &[]),
        ("model.conv.weight", &[2, 3, 2, 2]),
        ("model.fc.bias", &[6]),
        ("model.fc.weight", &[6, 10]),
    ];
    assert!(shapes.iter().map(|(name, shape)| (&name[..], &shape[..])).eq(wanted));
}

#[test]
fn the_state_is_that_of_the_moment_of_the_copy() {
    let folder = tempfile::tempdir().unwrap();
    let weights = Weights::new(1.0);
    let mut saver = Saver::new(folder.path(), 3).unwrap();
    saver.reserve(&weights.state(), Part::WHOLE);
    saver.save(weights.state(), at(1), Part::WHOLE, 1).unwrap();
    let _ = weights.flat.shallow_clone().fill_(-1.0);
    saver.finish(LONG).unwrap().unwrap();
    let restored = Weights::new(0.0);
    restored.restore(&latest(folder.path()).unwrap()).unwrap();
    assert!(restored.equal(&Weights::new(1.0)));
}

#[test]
fn one_saver_saves_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut saver = Saver::new(folder.path(), 2).unwrap();
    let mut seen = Vec::new();
    for step in 1..=5 {
        let outcomes = saver.save_together(&Group::Alone, Weights::new(step as f32).state(), at(step)).unwrap();
        seen.extend(outcomes.into_iter().map(|outcome| outcome.unwrap().unwrap().progress.step));
    }
    let last = saver.finish_together(&Group::Alone).unwrap();
    seen.extend(last.into_iter().map(|outcome| outcome.unwrap().unwrap().progress.step));
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    assert!(saver.poll().is_none() && saver.finish(LONG).is_none());
    assert_eq!(steps(folder.path()).unwrap(), [5, 4]);
}

#[test]
fn only_the_latest_are_kept_and_no_leftovers() {
    let folder = tempfile::tempdir().unwrap();
    save_without(folder.path(), 2, 1, 3, &[2]);
    fs::write(folder.path().join("step-000000001-0000000000000001-0-of-2.part"), "torn").unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    for step in [2, 10, 100] {
        save(folder.path(), 2, step, 2);
    }
    // The same step once more, by another world.
    save(folder.path(), 2, 100, 3);
    assert_eq!(steps(folder.path()).unwrap(), [100, 10]);
    assert_eq!((shards(folder.path(), 10).len(), shards(folder.path(), 100).len()), (2, 3));
    assert_eq!(names(folder.path()).unwrap().len(), 2 + 2 + 3 + 1);
    assert_eq!(latest(folder.path()).unwrap().sidecar.progress.step, 100);
}

#[test]
fn going_back_to_an_earlier_checkpoint_removes_neither_the_new_ones_nor_the_later_ones() {
    let folder = tempfile::tempdir().unwrap();
    for step in [50, 100] {
        save(folder.path(), 1, step, 1);
    }
    // That of step 100 is damaged, and the run goes on from an earlier one.
    fs::write(&shards(folder.path(), 100)[0], "torn").unwrap();
    for step in [60, 70] {
        save(folder.path(), 1, step, 1);
    }
    assert_eq!(steps(folder.path()).unwrap(), [100, 70]);
    assert_eq!(latest(folder.path()).unwrap().sidecar.progress.step, 70);
    save(folder.path(), 1, 100, 1);
    assert_eq!(latest(folder.path()).unwrap().sidecar.progress.step, 100);
    assert_eq!(shards(folder.path(), 100).len(), 1);
}

#[test]
fn an_attempt_without_all_parts_does_not_count() {
    for absent in [0, 1, 2] {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), 3, 1, 2);
        if absent == 0 {
            let mut saver = Saver::new(folder.path(), 3).unwrap();
            saver.save(Weights::new(2.0).state(), at(2), Part { rank: 1, world: 2 }, 7).unwrap();
            assert_eq!(saver.finish(LONG).unwrap().unwrap(), None);
        } else {
            assert!(save_without(folder.path(), 3, 2, 3, &[absent]).is_none());
        }
        assert_eq!(latest(folder.path()).unwrap().sidecar.progress.step, 1);
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_and_the_next_attempt_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "in the way").unwrap();
    let mut saver = Saver::new(&path, 3).unwrap();
    for attempt in 1..3 {
        saver.save(Weights::new(1.0).state(), at(1), Part::WHOLE, attempt).unwrap();
        let error = saver.finish(LONG).unwrap().unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
    fs::remove_file(&path).unwrap();
    saver.save(Weights::new(1.0).state(), at(1), Part::WHOLE, 3).unwrap();
    assert!(saver.finish(LONG).unwrap().is_ok());
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut saver = Saver::new(folder.path(), 3).unwrap();
    let mut state = State::new();
    (0..2).for_each(|_| state.tensor("tied", &Tensor::from(1.0)));
    saver.save(state, at(1), Part::WHOLE, 1).unwrap();
    let error = saver.finish(LONG).unwrap().unwrap_err();
    assert!(error.to_string().contains("two tensors are named tied"), "{error}");
    assert!(names(folder.path()).unwrap().is_empty(), "nothing is left of it");
}

#[test]
fn a_checkpoint_of_another_model_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), 3, 1, 2);
    let loaded = latest(folder.path()).unwrap();
    let weight = Tensor::zeros([6, 10], (Kind::Float, Device::Cpu));
    let table = [
        ("model.fc.bias", Tensor::zeros([7], (Kind::Float, Device::Cpu)), "not Float [7]"),
        ("model.fc.bias", Tensor::zeros([6], (Kind::Double, Device::Cpu)), "not Double"),
        ("model.fc.other", Tensor::zeros([6], (Kind::Float, Device::Cpu)), "no tensor model.fc.other"),
    ];
    for (name, tensor, message) in table {
        let error = loaded.restore([("model.fc.weight", weight.shallow_clone()), (name, tensor)]).unwrap_err();
        assert!(matches!(error, CheckpointError::Foreign { .. }) && error.to_string().contains(message), "{error}");
        assert_eq!(weight.abs().sum(Kind::Float).double_value(&[]), 0.0);
    }
}

#[test]
fn an_empty_folder_has_none() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(latest(&folder.path().join("absent")), Err(CheckpointError::None { .. })));
}

#[test]
fn a_json_file_that_names_other_files_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), 3, 1, 1);
    let sidecar = latest(folder.path()).unwrap().sidecar;
    for file in ["../secret", "/etc/passwd", "step-000000001.json", ""] {
        let other = Sidecar { shards: vec![load::Shard { file: file.into(), bytes: 1 }], ..sidecar.clone() };
        fs::write(&path, other.to_text()).unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("is not a name of a file of a checkpoint"), "{error}");
    }
    fs::write(&path, Sidecar { format: 9, ..sidecar }.to_text()).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, CheckpointError::Foreign { .. }), "{error}");
}

/// What happens to a file on a disk.
#[derive(Debug, Clone)]
enum Damage {
    Flip { at: prop::sample::Index, bit: u8 },
    Cut { at: prop::sample::Index },
    Add { bytes: Vec<u8> },
    Remove,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        2 => any::<prop::sample::Index>().prop_map(|at| Damage::Cut { at }),
        1 => proptest::collection::vec(any::<u8>(), 1..50).prop_map(|bytes| Damage::Add { bytes }),
        1 => Just(Damage::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn a_damaged_checkpoint_is_named_and_the_one_before_is_used(
        damage in damage(), file in any::<prop::sample::Index>(), world in 1..4usize,
    ) {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), 3, 1, 2);
        let json = save(folder.path(), 3, 2, world);
        let mut files = shards(folder.path(), 2);
        files.push(json.clone());
        let path = &files[file.index(files.len())];
        let mut bytes = fs::read(path).unwrap();
        match &damage {
            Damage::Flip { at, bit } => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1u8 << *bit;
            }
            Damage::Cut { at } => bytes.truncate(at.index(bytes.len())),
            Damage::Add { bytes: more } => bytes.extend(more),
            Damage::Remove => {}
        }
        if matches!(damage, Damage::Remove) {
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, &bytes).unwrap();
        }
        match open(&json) {
            // A blank more or less around the JSON says the same.
            Ok(loaded) => {
                prop_assert_eq!(path, &json);
                prop_assert_eq!(loaded.sidecar.progress, at(2));
            }
            Err(error) => {
                prop_assert!(error.to_string().contains(&*path.file_name().unwrap().to_string_lossy()), "{}", error);
                let loaded = latest(folder.path()).unwrap();
                prop_assert_eq!(loaded.sidecar.progress, at(1));
                let weights = Weights::new(0.0);
                weights.restore(&loaded).unwrap();
                prop_assert!(weights.equal(&Weights::new(1.0)));
            }
        }
    }

    #[test]
    fn no_text_is_read_with_a_panic(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step-000000001.json");
        for text in [text.as_bytes(), &bytes] {
            fs::write(&path, text).unwrap();
            prop_assert!(open(&path).is_err());
        }
    }
}
