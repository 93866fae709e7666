//! What holds for all models, and what a run does with them.

use tch::{Device, Kind};

use super::config::ModelConfig;
use super::layers::Linear;
use super::*;
use crate::autograd::Store;
use crate::parameters::Parameters;

/// A model by its name.
pub(crate) fn build(name: &str, data: &DataSpec) -> Box<dyn Model> {
    name.parse::<ModelConfig>().unwrap().build(data, None).unwrap()
}

fn config(text: &str) -> Result<ModelConfig, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(if text.trim_start().starts_with('{') { "m.json" } else { "m.toml" });
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().parse()
}

fn sized(text: &str, data: &DataSpec) -> Box<dyn Model> {
    config(text).unwrap().build(data, None).unwrap()
}

const TINY_GPT: &str = "model = 'gpt'\nlayers = 2\nheads = 2\nwidth = 8\ncontext = 6\nvocabulary = 11\n";

fn pictures(data: &DataSpec, samples: i64) -> Batch {
    tch::manual_seed(1);
    let shape: Vec<i64> = std::iter::once(samples).chain(data.sample.iter().copied()).collect();
    let targets = Tensor::arange(samples, (Kind::Int64, Device::Cpu)).remainder(data.classes);
    Batch { inputs: Tensor::randn(shape, (Kind::Float, Device::Cpu)), targets }
}

fn tokens(data: &DataSpec, samples: i64) -> Batch {
    let length = data.sample[0];
    let row = Tensor::arange(samples * (length + 1), (Kind::Int64, Device::Cpu)).remainder(data.classes);
    let rows = row.view([samples, length + 1]);
    Batch { inputs: rows.narrow(1, 0, length), targets: rows.narrow(1, 1, length) }
}

fn number(tensor: &Tensor) -> f64 {
    tensor.double_value(&[])
}

/// Figures of torchvision (resnet18, resnet50), of OpenAI's GPT-2, and sums of products.
#[test]
fn models_have_as_many_parameters_as_elsewhere() {
    let fashion = DataSpec::pictures(1, 28, 28, 10);
    let imagenet = DataSpec::pictures(3, 224, 224, 1000);
    let table = [
        ("mlp-small", &fashion, 784 * 128 + 128 + 1290),
        ("mlp", &fashion, 784 * 256 + 256 + 256 * 257 + 2570),
        ("mlp-large", &fashion, 1_863_690),
        ("cnn", &fashion, 206_922),
        ("resnet18", &imagenet, 11_689_512),
        ("resnet50", &imagenet, 25_557_032),
        ("gpt2", &DataSpec::tokens(1024, 50257), 124_439_808),
    ];
    for (name, data, count) in table {
        let model = build(name, data);
        assert_eq!(model.layout().parameters().iter().map(TensorSpec::count).sum::<usize>(), count, "{name}");
    }
}

#[test]
fn names_are_those_of_a_state_dict() {
    let imagenet = DataSpec::pictures(3, 224, 224, 1000);
    let table: [(&str, &DataSpec, &str, &[i64]); 7] = [
        ("mlp-small", &DataSpec::pictures(1, 28, 28, 10), "fc2.weight", &[10, 128]),
        ("cnn", &DataSpec::pictures(1, 28, 28, 10), "conv2.weight", &[32, 16, 3, 3]),
        ("resnet18", &imagenet, "layer2.0.downsample.1.bias", &[128]),
        ("resnet50", &imagenet, "layer4.2.conv3.weight", &[2048, 512, 1, 1]),
        ("resnet50", &imagenet, "conv1.weight", &[64, 3, 7, 7]),
        ("resnet18", &DataSpec::pictures(3, 32, 32, 10), "conv1.weight", &[64, 3, 3, 3]),
        ("gpt-small", &DataSpec::tokens(256, 65), "transformer.h.5.attn.c_attn.weight", &[1152, 384]),
    ];
    for (model, data, name, shape) in table {
        let model = build(model, data);
        let spec = model.layout().parameters().iter().find(|spec| spec.name == name);
        assert_eq!(spec.map(|spec| &spec.shape[..]), Some(shape), "{name}");
    }
    let model = build("resnet18", &imagenet);
    assert!(model.layout().buffers().iter().any(|spec| spec.name == "layer1.0.bn2.running_var"));
}

#[test]
fn every_model_starts_at_chance_and_learns_a_batch() {
    let (small, rows) = (DataSpec::pictures(3, 32, 32, 4), DataSpec::tokens(6, 11));
    let resnet50 = "model = 'resnet50'\nstem = 'imagenet'\n";
    let table = [
        ("model = 'mlp'\nhidden = [32]\n", pictures(&small, 8), &small),
        ("model = 'cnn'\nchannels = [4, 8]\nhidden = 16\n", pictures(&small, 8), &small),
        ("model = 'resnet18'\nstem = 'imagenet'\n", pictures(&small, 8), &small),
        (resnet50, pictures(&small, 8), &small),
        (TINY_GPT, tokens(&rows, 8), &rows),
    ];
    for (text, batch, data) in table {
        let model = sized(text, data);
        let mut parameters = Parameters::new(model.layout(), 3).unwrap();
        let mut losses = Vec::new();
        for _ in 0..4 {
            let loss = model.loss(&parameters.state(true), &batch).unwrap();
            losses.push(number(&loss));
            parameters.backward(&loss, Store::Over, &mut |_| {}).unwrap();
            let (values, gradients) = parameters.values_and_gradients();
            values.iter_mut().zip(gradients).for_each(|(value, gradient)| *value -= 0.02 * *gradient);
        }
        let chance = (data.classes as f64).ln();
        assert!(losses[0] > chance * 0.5 && losses[0] < chance * 2.0, "{text}: {losses:?}");
        assert!(losses[3] < losses[0], "{text}: {losses:?}");

        let measured = model.measure(&parameters.state(false), &batch).unwrap();
        assert_eq!(measured.items, batch.targets.numel() as i64);
        assert_eq!(measured.metrics.len(), model.metrics().len());
        assert!((0.0..=measured.items as f64).contains(&measured.metrics[0]), "{measured:?}");
    }
}

#[test]
fn running_statistics_move_with_a_step_and_only_with_it() {
    let data = DataSpec::pictures(3, 32, 32, 4);
    let model = build("resnet18", &data);
    let mut parameters = Parameters::new(model.layout(), 1).unwrap();
    let batch = pictures(&data, 4);
    let (start, fresh) = (parameters.digest(), parameters.buffers().kept().copy());
    // A step that is interrupted after its pass.
    model.loss(&parameters.state(true), &batch).unwrap();
    assert!(!parameters.buffers().used().equal(&fresh), "a pass moves the statistics");
    assert_eq!(parameters.digest(), start, "what is saved and sent has not moved");
    parameters.buffers_mut().begin();
    assert!(parameters.buffers().used().equal(&fresh), "the next pass begins where that one did");
    // Evaluations look only.
    model.measure(&parameters.state(false), &batch).unwrap();
    assert!(parameters.buffers().used().equal(&fresh));
    // A step that is done.
    model.loss(&parameters.state(true), &batch).unwrap();
    parameters.buffers_mut().keep();
    assert_ne!(parameters.digest(), start);
}

/// A model of somebody's own, with one parameter in two places.
#[derive(Debug)]
struct Tied {
    layout: Layout,
    layer: Linear,
}

impl Tied {
    fn new() -> Tied {
        let mut layout = Layout::default();
        let layer = Linear::with(&mut layout, "layer", [4, 4], false, Initial::Normal(1.0));
        Tied { layout, layer }
    }
}

impl Model for Tied {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn loss(&self, state: &State<'_>, batch: &Batch) -> Result<Tensor, ModelError> {
        let once = self.layer.forward(state, &batch.inputs)?;
        Ok(self.layer.forward(state, &once)?.f_mean(Kind::Float)?)
    }

    fn measure(&self, state: &State<'_>, batch: &Batch) -> Result<Measured, ModelError> {
        let items = batch.inputs.size()[0];
        Ok(Measured { items, loss: number(&self.loss(state, batch)?) * items as f64, metrics: Vec::new() })
    }
}

#[test]
fn a_parameter_in_two_places_gets_the_sum_of_its_gradients() {
    let model = Tied::new();
    let mut parameters = Parameters::new(model.layout(), 1).unwrap();
    let inputs = Tensor::randn([3, 4], (Kind::Float, Device::Cpu));
    let batch = Batch { inputs: inputs.copy(), targets: Tensor::zeros([3], (Kind::Int64, Device::Cpu)) };
    let loss = model.loss(&parameters.state(true), &batch).unwrap();
    parameters.backward(&loss, Store::Over, &mut |_| {}).unwrap();

    let apart: Vec<Tensor> = (0..2).map(|_| parameters.leaves()[0].detach().copy().set_requires_grad(true)).collect();
    let none = None::<&Tensor>;
    inputs.linear(&apart[0], none).linear(&apart[1], none).mean(Kind::Float).backward();
    let sum = (apart[0].grad() + apart[1].grad()).view([-1]);
    let have = Tensor::from_slice(&parameters.values_and_gradients().1[..16]);
    assert!(have.allclose(&sum, 1e-5, 1e-6, false), "{have:?} {sum:?}");
}

#[test]
fn a_gpt_has_its_token_embedding_once() {
    let model = sized(TINY_GPT, &DataSpec::tokens(6, 11));
    let with: Vec<_> = model.layout().parameters().iter().filter(|spec| spec.shape == [11, 8]).collect();
    assert_eq!(with.len(), 1);
    assert_eq!((&with[0].name[..], &with[0].aliases[..]), ("transformer.wte.weight", &["lm_head.weight".into()][..]));
}

#[test]
fn a_gpt_does_not_look_ahead() {
    let data = DataSpec::tokens(6, 11);
    let model = sized(TINY_GPT, &data);
    let parameters = Parameters::new(model.layout(), 5).unwrap();
    let batch = tokens(&data, 1);
    // The loss at the first places alone: what comes later must not change it.
    let loss = |batch: &Batch| {
        let targets = batch.targets.copy();
        let _ = targets.narrow(1, 3, 3).fill_(-100);
        let inputs = batch.inputs.shallow_clone();
        number(&model.loss(&parameters.state(false), &Batch { inputs, targets }).unwrap())
    };
    let before = loss(&batch);
    let inputs = batch.inputs.copy();
    let _ = inputs.narrow(1, 3, 3).fill_(7);
    let changed = Batch { inputs, targets: batch.targets.copy() };
    assert_eq!(before, loss(&changed));
    let _ = changed.inputs.narrow(1, 2, 1).fill_(7);
    assert_ne!(before, loss(&changed));
}

#[test]
fn dropout_is_that_of_the_seed_and_of_training_alone() {
    let data = DataSpec::tokens(6, 11);
    let model = sized(&format!("{TINY_GPT}dropout = 0.5\n"), &data);
    let parameters = Parameters::new(model.layout(), 5).unwrap();
    let batch = tokens(&data, 4);
    let loss = |training, seed| {
        tch::manual_seed(seed);
        number(&model.loss(&parameters.state(training), &batch).unwrap())
    };
    assert_eq!(loss(true, 1), loss(true, 1));
    assert_ne!(loss(true, 1), loss(true, 2));
    assert_eq!(loss(false, 1), loss(false, 2));
}

#[test]
fn first_values_are_pytorchs_defaults() {
    let data = DataSpec::pictures(1, 28, 28, 10);
    let parameters = Parameters::new(build("mlp-small", &data).layout(), 1).unwrap();
    let (_, weight) = parameters.named().next().unwrap();
    let bound = 1.0 / 28.0;
    assert!(number(&weight.abs().max()) <= bound && number(&weight.abs().max()) > bound * 0.99);
    assert!((number(&weight.std(true)) - bound / 3f64.sqrt()).abs() < bound * 0.01);

    let gpt = Parameters::new(sized(TINY_GPT, &DataSpec::tokens(6, 11)).layout(), 1).unwrap();
    let all = Tensor::cat(&gpt.named().filter(|(spec, _)| spec.shape.len() == 2).map(|(_, view)| view.view([-1])).collect::<Vec<_>>(), 0);
    assert!(number(&all.mean(Kind::Float)).abs() < 0.002 && (number(&all.std(true)) - 0.018).abs() < 0.003);
}

#[test]
fn bad_configurations_are_refused_with_the_key_and_what_to_do() {
    let gpt = |rest: &str| format!("model = 'gpt'\nlayers = 2\nheads = 2\nwidth = 8\ncontext = 6\n{rest}");
    let table = [
        ("hidden = [1]".into(), "model is missing: give one of mlp, cnn"),
        ("model = 'lstm'".into(), "model is \"lstm\", not one of mlp, cnn"),
        ("model = 3".into(), "model is 3"),
        ("model = 'mlp'".into(), "hidden is missing: give the widths"),
        ("model = 'mlp'\nhidden = 256".into(), "hidden is 256, not a list"),
        ("model = 'mlp'\nhidden = [256, 'x']".into(), "hidden is \"x\", not a whole number from 1 to"),
        ("model = 'mlp'\nhidden = [0]".into(), "hidden is 0, not a whole number from 1 to"),
        ("model = 'mlp'\nhidden = [1]\ndepth = 2".into(), "depth is no key of mlp: it has model, hidden"),
        ("model = 'cnn'\nchannels = [16, -1]".into(), "channels is -1"),
        ("model = 'resnet18'\nstem = 'big'".into(), "stem is \"big\", not \"cifar\" or \"imagenet\""),
        (gpt("heads = 2"), "duplicate key"),
        (gpt("dropout = 1.0"), "dropout is 1.0, not a number from 0 to below 1"),
        (gpt("bias = 'no'"), "bias is \"no\", not true or false"),
        (gpt("vocabulary = 1e9"), "vocabulary is 1000000000.0"),
        ("model = 'gpt'\nlayers = 2\nheads = 3\nwidth = 8\ncontext = 6".into(), "3 heads cannot share"),
        ("model = 'gpt'\nlayers = 2\nheads = 2\nwidth = 8".into(), "context is missing"),
        ("model = ".into(), "line 1, column"),
        ("{\"model\": \"mlp\", \"hidden\": [1.5]}".into(), "hidden is 1.5"),
        ("{\"model\": ".into(), "EOF while parsing"),
        ("{\"model\": {\"a\": [1]}}".into(), "model is {"),
    ];
    for (text, wanted) in table {
        let text: String = text;
        let error = config(&text).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains("/m."), "{text}: {error}");
    }
    let unknown = "transformer".parse::<ModelConfig>().unwrap_err().to_string();
    assert!(unknown.contains("there are cnn, mlp-small"), "{unknown}");
    assert!(matches!("absent.toml".parse::<ModelConfig>(), Err(ModelError::Read { .. })));
}

#[test]
fn the_files_of_the_examples_are_good() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 4);
    for file in files {
        ModelConfig::read(&file).unwrap();
    }
}

#[test]
fn a_model_that_does_not_fit_the_data_says_why() {
    let (small, rows) = (DataSpec::pictures(1, 4, 4, 3), DataSpec::tokens(8, 11));
    let table = [
        ("model = 'cnn'\nchannels = [4, 4, 4]", &small, "cannot be halved 3 times"),
        ("model = 'cnn'", &rows, "it learns from pictures"),
        ("model = 'mlp'\nhidden = []", &rows, "use gpt"),
        ("model = 'resnet50'", &rows, "it learns from pictures"),
        (TINY_GPT, &small, "it learns from rows of tokens"),
        (TINY_GPT, &rows, "raise context"),
        ("model = 'gpt'\nlayers = 1\nheads = 1\nwidth = 8\ncontext = 8\nvocabulary = 10", &rows, "raise vocabulary"),
        ("model = 'mlp'\nhidden = [65536, 65536, 65536, 65536, 65536]", &small, "make it smaller"),
    ];
    for (text, data, wanted) in table {
        let built = config(text).unwrap().build(data, None);
        let error = built.and_then(|model| Parameters::new(model.layout(), 1)).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
    let own = ModelConfig::Own { name: "mine".into() };
    let error = own.build(&small, None).unwrap_err().to_string();
    assert!(error.contains("mine") && error.contains("another program"), "{error}");
}

#[test]
fn files_that_are_no_torchscript_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let script = ModelConfig::Script { path: path.clone() };
    let data = DataSpec::pictures(1, 4, 4, 3);
    assert!(matches!(script.build(&data, None), Err(ModelError::Read { .. })));
    for bytes in [&b""[..], b"PK\x03\x04 not an archive", &[0x80; 4096]] {
        std::fs::write(&path, bytes).unwrap();
        let error = script.build(&data, None).unwrap_err().to_string();
        assert!(error.contains("it is no TorchScript file") && error.contains("torch.jit.script"), "{error}");
    }
}

#[test]
fn start_weights_are_taken_whole_or_not_at_all() {
    use safetensors::tensor::TensorView;
    use safetensors::{Dtype, serialize};

    let (folder, data) = (tempfile::tempdir().unwrap(), DataSpec::tokens(6, 11));
    let path = folder.path().join("start.safetensors");
    let model = sized(TINY_GPT, &data);
    let ones: Vec<u8> = std::iter::repeat_n(1f32.to_le_bytes(), 4096).flatten().collect();
    let all: Vec<(String, Vec<usize>)> = model
        .layout()
        .parameters()
        .iter()
        .map(|spec| (spec.name.clone(), spec.shape.iter().map(|size| *size as usize).collect()))
        .collect();
    let load = |change: &dyn Fn(&mut Vec<(String, Vec<usize>)>)| {
        let mut tensors = all.clone();
        change(&mut tensors);
        let views = tensors.into_iter().map(|(name, shape)| {
            let bytes = &ones[..shape.iter().product::<usize>() * 4];
            (name, TensorView::new(Dtype::F32, shape, bytes).unwrap())
        });
        std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
        let mut parameters = Parameters::new(model.layout(), 1).unwrap();
        let before = parameters.digest();
        let result = weights::load(&path, &mut parameters);
        if result.is_err() {
            assert_eq!(parameters.digest(), before, "a file that is refused changes nothing");
        } else {
            assert!(parameters.named().all(|(_, view)| number(&view.min()) == 1.0 && number(&view.max()) == 1.0));
        }
        result.map_err(|error| error.to_string())
    };
    load(&|_| {}).unwrap();
    // As safetensors.torch.save_model writes a tied embedding.
    load(&|tensors| tensors[0].0 = "lm_head.weight".into()).unwrap();
    load(&|tensors| tensors.push(("bn1.num_batches_tracked".into(), vec![1]))).unwrap();
    let error = load(&|tensors| drop(tensors.remove(0))).unwrap_err();
    assert!(error.contains("it lacks transformer.wte.weight"), "{error}");
    let error = load(&|tensors| tensors.push(("extra".into(), vec![1]))).unwrap_err();
    assert!(error.contains("it has besides extra"), "{error}");
    let error = load(&|tensors| tensors[1].1 = vec![8, 6]).unwrap_err();
    assert!(error.contains("transformer.wpe.weight is F32 [8, 6], not F32 [6, 8]"), "{error}");
    std::fs::write(&path, [255; 100]).unwrap();
    let error = weights::load(&path, &mut Parameters::new(model.layout(), 1).unwrap()).unwrap_err().to_string();
    assert!(error.contains("no safetensors file"), "{error}");
}
