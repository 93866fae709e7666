//! Models beside PyTorch: equal start weights and equal batches lead to equal losses and equal end weights. Needs the
//! Python of `make python`, which trains the same models; `make test` makes it first.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use muster_worker::autograd::Store;
use muster_worker::models::config::ModelConfig;
use muster_worker::models::{Batch, DataSpec, Model, SampleKind, weights};
use muster_worker::optimizer::{Algorithm, Optimizer, Settings, Step};
use muster_worker::parameters::Parameters;
use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

/// How far a loss may be from PyTorch's, as a share of it: rounding, where the two add in another order.
const LOSS: f64 = 1e-4;
/// How far an end weight may be.
const WEIGHT: f64 = 2e-4;

/// The folder with what PyTorch came to, made once.
fn reference() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let python = repository.join(".venv/bin/python");
        assert!(python.exists(), "this test needs PyTorch in {}: run make python", python.display());
        let folder = tempfile::tempdir().unwrap();
        #[expect(clippy::disallowed_methods, reason = "PyTorch is another program")]
        let mut command = Command::new(&python);
        let output = command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pytorch/reference.py"))
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder
    })
    .path()
}

fn tensor(file: &SafeTensors<'_>, name: &str) -> Tensor {
    let view = file.tensor(name).unwrap();
    let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::I64 => Kind::Int64,
        other => panic!("{name} is {other:?}"),
    };
    Tensor::from_data_size(view.data(), &shape, kind)
}

/// A model with the weights that PyTorch began with.
fn start(folder: &Path, data: &DataSpec) -> (Box<dyn Model>, Parameters) {
    let script = folder.join("script.pt");
    let config = if script.exists() {
        ModelConfig::Script { path: script }
    } else {
        ModelConfig::read(&folder.join("model.toml")).unwrap()
    };
    let mut model = config.build(data, None).unwrap();
    // Other weights first, so that those of the file count.
    let mut parameters = Parameters::new(model.layout(), 99).unwrap();
    model.bind(&parameters.state(true)).unwrap();
    if !matches!(config, ModelConfig::Script { .. }) {
        weights::load(&folder.join("start.safetensors"), &mut parameters).unwrap();
    }
    (model, parameters)
}

/// Trains on PyTorch's batches, and holds each loss and each end weight against PyTorch's.
fn holds(case: &str, classes: i64) {
    tch::set_num_threads(1);
    let folder: PathBuf = reference().join(case);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let batches = read("batches.safetensors");
    let batches = SafeTensors::deserialize(&batches).unwrap();
    let (inputs, targets) = (tensor(&batches, "inputs"), tensor(&batches, "targets"));
    let losses: Vec<f64> = serde_json::from_slice(&read("losses.json")).unwrap();
    let kind = if inputs.kind() == Kind::Int64 { SampleKind::Tokens } else { SampleKind::Numbers };
    let (model, mut parameters) = start(&folder, &DataSpec { sample: inputs.size()[2..].to_vec(), kind, classes });

    let settings = Settings { algorithm: Algorithm::Sgd, momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let mut optimizer = Optimizer::new(settings, parameters.values());
    for (index, wanted) in losses.iter().enumerate() {
        let batch = Batch { inputs: inputs.get(index as i64), targets: targets.get(index as i64) };
        parameters.buffers_mut().begin();
        let loss = model.loss(&parameters.state(true), &batch).unwrap();
        let have = loss.double_value(&[]);
        assert!((have - wanted).abs() <= LOSS * wanted.abs(), "{case}, step {index}: {have}, PyTorch has {wanted}");
        parameters.backward(&loss, Store::Over, &mut |_| {}).unwrap();
        parameters.buffers_mut().keep();
        let (values, gradients) = parameters.values_and_gradients();
        optimizer.step(values, gradients, Step { lr: 0.05, step: index as u64 + 1, scale: 1.0, threads: 1 });
    }
    assert!(losses.last().unwrap() < &losses[0], "{case}: PyTorch itself has learned");

    let end = read("end.safetensors");
    let end = SafeTensors::deserialize(&end).unwrap();
    for (spec, have) in parameters.named().chain(parameters.buffers().named()) {
        let name = std::iter::once(&spec.name).chain(&spec.aliases).find(|name| end.tensor(name).is_ok()).unwrap();
        let difference = (have - tensor(&end, name)).abs().max().double_value(&[]);
        assert!(difference <= WEIGHT, "{case}: {name} ends {difference} from PyTorch's");
    }
}

#[test]
fn the_mlp_learns_as_in_pytorch() {
    holds("mlp", 10);
}

#[test]
fn the_cnn_learns_as_in_pytorch() {
    holds("cnn", 10);
}

#[test]
fn the_resnet_learns_as_in_pytorch_and_its_running_statistics_too() {
    holds("resnet18", 6);
}

#[test]
fn the_gpt_learns_as_in_pytorch_with_its_tied_embedding() {
    holds("gpt", 50);
}

#[test]
fn a_torchscript_file_learns_as_in_pytorch() {
    holds("script", 5);
}

#[test]
fn a_torchscript_file_with_a_loss_of_its_own_learns_as_in_pytorch() {
    holds("script-loss", 1);
}

#[test]
fn a_torchscript_files_tied_weight_is_one_parameter_and_a_frozen_one_none() {
    let data = DataSpec { sample: vec![20], kind: SampleKind::Numbers, classes: 5 };
    let (model, _) = start(&reference().join("script"), &data);
    let names: Vec<&str> = model.layout().parameters().iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names.iter().filter(|name| ["first.weight", "second.weight"].contains(name)).count(), 1, "{names:?}");
    assert!(!names.contains(&"scale") && names.len() == 7, "{names:?}");
    let buffers: Vec<&str> = model.layout().buffers().iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(buffers, ["norm.running_mean", "norm.running_var"]);
}
