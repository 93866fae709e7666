use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tch::Kind;

use super::*;

const CONTEXT: usize = 4;

/// Where files of a data set are put, for a moment.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(format: Format, folder: &Path) -> Result<Dataset, DataError> {
    Dataset::open(&Source { format, folder: folder.into(), context: CONTEXT }, Split::Train)
}

/// A data set of 20 samples.
pub(super) fn tokens() -> Dataset {
    let bytes: Vec<u8> = (0..20 * CONTEXT as u16 + 1).flat_map(u16::to_le_bytes).collect();
    open(Format::Tokens, folder(&[("train.bin", &bytes)]).path()).unwrap()
}

fn idx(shape: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    bytes.extend(shape.iter().flat_map(|size| size.to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn safetensors(inputs: &[f32], targets: &[i64]) -> Vec<u8> {
    use safetensors::{Dtype, tensor::TensorView};
    let input_bytes: Vec<u8> = inputs.iter().flat_map(|number| number.to_le_bytes()).collect();
    let target_bytes: Vec<u8> = targets.iter().flat_map(|number| number.to_le_bytes()).collect();
    let rows = targets.len();
    let views = [
        ("inputs", TensorView::new(Dtype::F32, vec![rows, inputs.len() / rows], &input_bytes).unwrap()),
        ("targets", TensorView::new(Dtype::I64, vec![rows], &target_bytes).unwrap()),
    ];
    safetensors::serialize(views, None).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.kind(), Kind::Float);
    tensor.contiguous().view(-1).try_into().unwrap()
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    assert_eq!(tensor.kind(), Kind::Int64);
    tensor.contiguous().view(-1).try_into().unwrap()
}

#[test]
fn pictures_come_from_idx_files_packed_or_plain() {
    let images = idx(&[3, 1, 2], &[0, 255, 10, 20, 30, 40]);
    let labels = idx(&[3], &[2, 0, 1]);
    let packed = folder(&[("train-images-idx3-ubyte.gz", &gzip(&images)), ("train-labels-idx1-ubyte.gz", &gzip(&labels))]);
    let plain = folder(&[("train-images-idx3-ubyte", &images), ("train-labels-idx1-ubyte", &labels)]);
    for folder in [packed, plain] {
        let data = open(Format::FashionMnist, folder.path()).unwrap();
        assert_eq!((data.len(), data.shape()), (3, vec![1, 1, 2]));
        assert_eq!(data.targets(), Targets::Classes { classes: 3, shape: vec![] });
        let batch = data.batch(&[2, 0]).unwrap();
        assert_eq!(batch.inputs.size(), [2, 1, 1, 2]);
        let normal = |pixel: f64| ((pixel / 255.0 - 0.2860) / 0.3530) as f32;
        for (have, want) in floats(&batch.inputs).iter().zip([30.0, 40.0, 0.0, 255.0].map(normal)) {
            assert!((have - want).abs() < 1e-6);
        }
        assert_eq!(integers(&batch.targets), [1, 2]);
    }
}

#[test]
fn pictures_come_from_cifar_files() {
    let record = |labels: &[u8], pixel: u8| -> Vec<u8> {
        let planes = (0..3).flat_map(|plane| vec![pixel + plane; 1024]);
        labels.iter().copied().chain(planes).collect()
    };
    let names = (1..=5).map(|number| format!("data_batch_{number}.bin")).collect::<Vec<_>>();
    let ten: Vec<Vec<u8>> = (0..5).map(|number| [record(&[number], number), record(&[9], 50)].concat()).collect();
    let files: Vec<(&str, &[u8])> = names.iter().zip(&ten).map(|(name, bytes)| (&name[..], &bytes[..])).collect();
    let data = open(Format::Cifar10, folder(&files).path()).unwrap();
    assert_eq!((data.len(), data.shape()), (10, vec![3, 32, 32]));
    let batch = data.batch(&[8, 1]).unwrap();
    assert_eq!(integers(&batch.targets), [4, 9]);
    let pixels = floats(&batch.inputs);
    for (channel, (mean, deviation)) in [(0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)].into_iter().enumerate() {
        let want = ((4.0 + channel as f64) / 255.0 - mean) / deviation;
        assert!((f64::from(pixels[channel * 1024 + 1000]) - want).abs() < 1e-5);
    }

    // As the archive unpacks.
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("cifar-100-binary")).unwrap();
    fs::write(root.path().join("cifar-100-binary/train.bin"), record(&[3, 77], 1)).unwrap();
    let data = open(Format::Cifar100, root.path()).unwrap();
    assert_eq!(integers(&data.batch(&[0]).unwrap().targets), [77]);
    assert_eq!(data.targets(), Targets::Classes { classes: 100, shape: vec![] });
}

#[test]
fn a_sample_of_tokens_is_a_window() {
    let two: Vec<u8> = (100..112u16).flat_map(u16::to_le_bytes).collect();
    let four: Vec<u8> = (70_000..70_012u32).flat_map(u32::to_le_bytes).collect();
    let meta = br#"{"dtype": "uint32", "vocab_size": 80000}"#;
    let table = [
        (folder(&[("train.bin", &two)]), 100, 112),
        (folder(&[("train.bin", &four), ("meta.json", meta)]), 70_000, 80_000),
    ];
    for (folder, first, vocabulary) in table {
        let data = open(Format::Tokens, folder.path()).unwrap();
        assert_eq!((data.len(), data.shape()), (2, vec![4]));
        assert_eq!(data.targets(), Targets::Classes { classes: vocabulary, shape: vec![4] });
        let batch = data.batch(&[1, 0]).unwrap();
        assert_eq!(batch.inputs.size(), [2, 4]);
        assert_eq!(integers(&batch.inputs), [4, 5, 6, 7, 0, 1, 2, 3].map(|number| number + first));
        assert_eq!(integers(&batch.targets), [5, 6, 7, 8, 1, 2, 3, 4].map(|number| number + first));
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error_that_names_the_file() {
    let bytes: Vec<u8> = (0..9u16).flat_map(u16::to_le_bytes).collect();
    let folder = folder(&[("train.bin", &bytes), ("meta.json", br#"{"vocab_size": 8}"#)]);
    let data = open(Format::Tokens, folder.path()).unwrap();
    assert!(data.batch(&[0]).is_ok());
    let error = data.batch(&[1]).unwrap_err().to_string();
    assert!(error.contains("train.bin") && error.contains("token 8"), "{error}");
}

#[test]
fn arrays_come_from_npy_files() {
    let bytes = |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|number| number.to_le_bytes()).collect() };
    let inputs = npy("<f4", "(2, 3)", &bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let half: Vec<u8> = [0.5, -2.0].iter().flat_map(|number| half::f16::from_f32(*number).to_le_bytes()).collect();
    let table = [
        (npy("<i4", "(2,)", &[7, 0, 0, 0, 5, 0, 0, 0]), Targets::Classes { classes: 8, shape: vec![] }),
        (npy("|u1", "(2, 1)", &[7, 5]), Targets::Classes { classes: 8, shape: vec![1] }),
        (npy("<f2", "(2,)", &half), Targets::Values { shape: vec![] }),
        (npy("<f8", "(2,)", &[0.5f64, -2.0].map(f64::to_le_bytes).concat()), Targets::Values { shape: vec![] }),
    ];
    for (targets, kind) in table {
        let folder = folder(&[("train-inputs.npy", &inputs), ("train-targets.npy", &targets)]);
        let data = open(Format::Npy, folder.path()).unwrap();
        assert_eq!((data.len(), data.shape(), data.targets()), (2, vec![3], kind.clone()));
        let batch = data.batch(&[1]).unwrap();
        assert_eq!(floats(&batch.inputs), [4.0, 5.0, 6.0]);
        match kind {
            Targets::Classes { .. } => assert_eq!(integers(&batch.targets), [5]),
            Targets::Values { .. } => assert_eq!(floats(&batch.targets), [-2.0]),
        }
    }
    // Bytes are pixels, wider whole numbers are not.
    for (inputs, pixels) in [(npy("|u1", "(1, 2)", &[0, 255]), true), (npy("<i2", "(1, 2)", &[0, 1, 255, 255]), false)] {
        let folder = folder(&[("train-inputs.npy", &inputs), ("train-targets.npy", &npy("|u1", "(1,)", &[0]))]);
        let batch = open(Format::Npy, folder.path()).unwrap().batch(&[0]).unwrap();
        if pixels {
            assert_eq!(floats(&batch.inputs), [0.0, 1.0]);
        } else {
            assert_eq!(integers(&batch.inputs), [256, -1]);
        }
    }
}

#[test]
fn arrays_come_from_safetensors_files() {
    let folder = folder(&[("train.safetensors", &safetensors(&[1.0, 2.0, 3.0, 4.0], &[1, 0]))]);
    let data = open(Format::Safetensors, folder.path()).unwrap();
    let batch = data.batch(&[1, 0]).unwrap();
    assert_eq!(floats(&batch.inputs), [3.0, 4.0, 1.0, 2.0]);
    assert_eq!(integers(&batch.targets), [0, 1]);
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let labels = idx(&[2], &[0, 1]);
    let labels = ("train-labels-idx1-ubyte", &labels[..]);
    let images = |bytes: &[u8]| folder(&[("train-images-idx3-ubyte", bytes), labels]);
    let npy_pair = |inputs: &[u8], targets: &[u8]| folder(&[("train-inputs.npy", inputs), ("train-targets.npy", targets)]);
    let ok = npy("|u1", "(2, 1)", &[1, 2]);
    let fortran = String::from_utf8_lossy(&npy("|u1", "(2, 1)", &[1, 2])).into_owned();
    let fortran: Vec<u8> = [&b"\x93"[..], &fortran.replace("False", "True ").as_bytes()[3..]].concat();
    let table = [
        (Format::FashionMnist, folder(&[]), "run make data"),
        (Format::FashionMnist, images(&idx(&[2, 1, 3], &[1, 2, 3])), "needs 6 bytes, it has 3"),
        (Format::FashionMnist, images(&idx(&[2, 1, 3], &[0; 7])), "needs 6 bytes, it has more"),
        (Format::FashionMnist, images(&idx(&[u32::MAX; 3], &[])), "more than"),
        (Format::FashionMnist, images(&idx(&[6], &[0; 6])), "instead of [0, 0, 8, 3]"),
        (Format::FashionMnist, images(&idx(&[2, 0, 3], &[])), "there is nothing in [2, 0, 3]"),
        (Format::FashionMnist, images(&idx(&[3, 1, 1], &[0; 3])), "2 labels for 3 images"),
        (Format::FashionMnist, images(&[0, 0]), "cut short or damaged"),
        (Format::Cifar100, folder(&[("train.bin", &[0; 3074 + 1])]), "not a whole number of records"),
        (Format::Cifar100, folder(&[("train.bin", &[100; 3074])]), "record 0 has the class 100"),
        (Format::Tokens, folder(&[("train.bin", &[0; 8])]), "4 tokens make no sample of 4"),
        (Format::Tokens, folder(&[("train.bin", &[0; 11])]), "not a whole number of tokens"),
        (Format::Tokens, folder(&[("train.bin", &[])]), "it is empty"),
        (Format::Tokens, folder(&[("train.bin", &[0; 20]), ("meta.json", b"{\"dtype\": \"int9\"}")]), "meta.json"),
        (Format::Tokens, folder(&[("train.bin", &[0; 20]), ("meta.json", b"{\"vocab_size\": -1}")]), "-1 tokens"),
        (Format::Npy, npy_pair(b"PK", &ok), "train-inputs.npy"),
        (Format::Npy, npy_pair(&ok, &npy("|u1", "(3,)", &[1, 2, 3])), "3 targets for 2 inputs"),
        (Format::Npy, npy_pair(&ok, &npy("|i1", "(2,)", &[0, 255])), "-1 is no class"),
        (Format::Npy, npy_pair(&ok, &npy(">f4", "(2,)", &[0; 8])), "astype"),
        (Format::Npy, npy_pair(&ok, &npy("|O", "(2,)", &[0; 8])), "\"|O\" cannot be read"),
        (Format::Npy, npy_pair(&ok, &npy("|u1", "(2, 9)", &[0; 8])), "[2, 9] U8"),
        (Format::Npy, npy_pair(&ok, &npy("<i8", "(4294967296, 4294967296)", &[0; 8])), "I64 does not have"),
        (Format::Npy, npy_pair(&ok, &npy("|u1", "()", &[0])), "no samples"),
        (Format::Npy, npy_pair(&fortran, &ok), "ascontiguousarray"),
        (Format::Safetensors, folder(&[("train.safetensors", &[255; 40])]), "train.safetensors"),
    ];
    for (format, folder, message) in table {
        let error = open(format, folder.path()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}, not {message}");
        assert!(error.contains(&*folder.path().to_string_lossy()), "{error} names no file");
    }
}

#[test]
fn a_test_set_of_another_kind_is_refused() {
    let images = |height: u8| idx(&[2, height.into(), 1], &vec![0; 2 * height as usize]);
    let files = |height: u8, class: u8| {
        folder(&[
            ("train-images-idx3-ubyte", &images(2)),
            ("train-labels-idx1-ubyte", &idx(&[2], &[0, 3])),
            ("t10k-images-idx3-ubyte", &images(height)),
            ("t10k-labels-idx1-ubyte", &idx(&[2], &[class, 0])),
        ])
    };
    for (height, class, fits) in [(2, 3, true), (2, 1, true), (2, 4, false), (3, 3, false)] {
        let folder = files(height, class);
        let both = Dataset::open_both(&Source { format: Format::Mnist, folder: folder.path().into(), context: CONTEXT });
        assert_eq!(both.is_ok(), fits, "{both:?}");
    }
}

#[test]
fn a_sample_that_is_not_there_is_an_error() {
    let mut data = tokens();
    data.truncate(10);
    assert_eq!(data.range(8..10).unwrap().inputs.size(), [2, 4]);
    assert_eq!(data.batch(&[]).unwrap().inputs.size(), [0, 4]);
    for sample in [10, -1, i64::MAX, i64::MIN] {
        assert!(matches!(data.batch(&[0, sample]), Err(DataError::Absent { .. })));
    }
}

/// Sound files of each format, to be damaged.
fn sound(format: Format) -> Vec<(&'static str, Vec<u8>)> {
    let record = |label: u8| [vec![label], vec![7; 3072]].concat();
    match format {
        Format::FashionMnist => vec![
            ("train-images-idx3-ubyte.gz", gzip(&idx(&[4, 2, 2], &[9; 16]))),
            ("train-labels-idx1-ubyte.gz", gzip(&idx(&[4], &[0, 1, 2, 3]))),
        ],
        Format::Mnist => vec![
            ("train-images-idx3-ubyte", idx(&[4, 2, 2], &[9; 16])),
            ("train-labels-idx1-ubyte", idx(&[4], &[0, 1, 2, 3])),
        ],
        Format::Cifar10 => TEN_FILES.iter().map(|name| (*name, record(1))).collect(),
        Format::Cifar100 => vec![("train.bin", [vec![1], record(2)].concat())],
        Format::Tokens => vec![("train.bin", vec![1; 40]), ("meta.json", br#"{"dtype": "uint32"}"#.to_vec())],
        Format::Npy => vec![
            ("train-inputs.npy", npy("<f8", "(2, 2)", &[7; 32])),
            ("train-targets.npy", npy("<i4", "(2,)", &[1; 8])),
        ],
        Format::Safetensors => vec![("train.safetensors", safetensors(&[1.0, 2.0, 3.0, 4.0], &[1, 0]))],
    }
}

const TEN_FILES: [&str; 5] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];

/// What happens to a file on its way.
#[derive(Debug, Clone)]
enum Damage {
    Set { at: prop::sample::Index, byte: u8 },
    Cut { at: prop::sample::Index },
    Add { bytes: Vec<u8> },
    Replace { bytes: Vec<u8> },
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            // Headers are where it hurts.
            Damage::Set { at, byte } if !bytes.is_empty() => {
                let at = at.index(bytes.len().min(150));
                bytes[at] = *byte;
            }
            Damage::Set { .. } => {}
            Damage::Cut { at } => bytes.truncate(at.index(bytes.len() + 1)),
            Damage::Add { bytes: more } => bytes.extend(more),
            Damage::Replace { bytes: other } => *bytes = other.clone(),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..80);
    prop_oneof![
        6 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set { at, byte }),
        2 => any::<prop::sample::Index>().prop_map(|at| Damage::Cut { at }),
        1 => bytes().prop_map(|bytes| Damage::Add { bytes }),
        1 => bytes().prop_map(|bytes| Damage::Replace { bytes }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever is in the files: an error that names one of them, or a data set whose samples can all be taken and are
    /// what it says that they are.
    #[test]
    fn damaged_files_are_an_error_or_a_data_set(
        format in prop::sample::select(<Format as clap::ValueEnum>::value_variants().to_vec()),
        damages in proptest::collection::vec((any::<prop::sample::Index>(), damage()), 0..5),
    ) {
        let mut files = sound(format);
        for (file, damage) in &damages {
            let file = file.index(files.len());
            damage.apply(&mut files[file].1);
        }
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
        let folder = folder(&files);
        match open(format, folder.path()) {
            Err(error) => {
                prop_assert!(!damages.is_empty(), "{}", error);
                prop_assert!(error.to_string().contains(&*folder.path().to_string_lossy()), "{}", error);
            }
            Ok(data) => {
                let batch = match data.range(0..data.len()) {
                    Ok(batch) => batch,
                    Err(error) => {
                        prop_assert_eq!(format, Format::Tokens, "{}", error);
                        return Ok(());
                    }
                };
                let count = data.len() as i64;
                prop_assert_eq!(batch.inputs.size(), [vec![count], data.shape()].concat());
                match data.targets() {
                    Targets::Classes { classes, shape } => {
                        prop_assert_eq!(batch.targets.size(), [vec![count], shape].concat());
                        prop_assert!(integers(&batch.targets).iter().all(|class| (0..classes).contains(class)));
                    }
                    Targets::Values { shape } => prop_assert_eq!(batch.targets.size(), [vec![count], shape].concat()),
                }
            }
        }
    }
}
