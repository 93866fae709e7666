//! Which model, and how large: by name, or by a file in TOML or JSON.
//!
//! A file names an architecture and sizes it:
//!
//! ```toml
//! model = "gpt"
//! layers = 6
//! heads = 6
//! width = 384
//! context = 256
//! dropout = 0.1
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cnn::Cnn;
use super::gpt::Gpt;
use super::mlp::Mlp;
use super::resnet::Resnet;
use super::script::Script;
use super::{DataSpec, Model, ModelError};

/// A file that sizes a model has no more bytes.
const MAX_BYTES: u64 = 1 << 20;
/// No layer is wider.
const MAX_WIDTH: i64 = 1 << 16;

/// A model of the box, sized; or which other one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "lowercase")]
pub enum ModelConfig {
    Mlp(MlpConfig),
    Cnn(CnnConfig),
    Resnet18(ResnetConfig),
    Resnet50(ResnetConfig),
    Gpt(GptConfig),
    /// A TorchScript file.
    Script {
        path: PathBuf,
    },
    /// The model that the program brings itself.
    Own {
        name: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MlpConfig {
    /// The widths of the layers between the sample and the classes.
    pub hidden: Vec<i64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CnnConfig {
    /// Of each convolution.
    pub channels: Vec<i64>,
    /// The width of the linear layer between the convolutions and the classes.
    pub hidden: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResnetConfig {
    /// None: by the size of the pictures.
    pub stem: Option<Stem>,
}

/// How a residual network begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stem {
    /// A convolution of 3 x 3 that keeps the size.
    #[serde(rename = "cifar")]
    Small,
    /// A convolution of 7 x 7 and pooling, which make pictures four times smaller.
    #[serde(rename = "imagenet")]
    Large,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Eighteen,
    Fifty,
}

impl Depth {
    pub(super) fn name(self) -> &'static str {
        match self {
            Depth::Eighteen => "resnet18",
            Depth::Fifty => "resnet50",
        }
    }

    /// Of each of the four stages.
    pub(super) fn blocks(self) -> [usize; 4] {
        match self {
            Depth::Eighteen => [2, 2, 2, 2],
            Depth::Fifty => [3, 4, 6, 3],
        }
    }

    /// How many times a block has more channels at its end than within.
    pub(super) fn expansion(self) -> i64 {
        match self {
            Depth::Eighteen => 1,
            Depth::Fifty => 4,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GptConfig {
    pub layers: i64,
    pub heads: i64,
    /// Features of a token; a multiple of `heads`.
    pub width: i64,
    /// Tokens that it can look at.
    pub context: i64,
    /// None: that of the data.
    pub vocabulary: Option<i64>,
    pub dropout: f64,
    /// Whether linear layers and norms have biases.
    pub bias: bool,
}

const GPT_SMALL: GptConfig =
    GptConfig { layers: 6, heads: 6, width: 384, context: 256, vocabulary: None, dropout: 0.0, bias: true };
const GPT_2: GptConfig = GptConfig { layers: 12, heads: 12, width: 768, context: 1024, ..GPT_SMALL };

fn mlp(hidden: &[i64]) -> ModelConfig {
    ModelConfig::Mlp(MlpConfig { hidden: hidden.to_vec() })
}

/// Names and sizes of the models that need no file.
fn presets() -> [(&'static str, ModelConfig); 8] {
    [
        ("cnn", ModelConfig::small_cnn()),
        ("mlp-small", mlp(&[128])),
        ("mlp", mlp(&[256, 256])),
        ("mlp-large", mlp(&[1024, 1024])),
        ("resnet18", ModelConfig::Resnet18(ResnetConfig { stem: None })),
        ("resnet50", ModelConfig::Resnet50(ResnetConfig { stem: None })),
        ("gpt-small", ModelConfig::Gpt(GPT_SMALL)),
        ("gpt2", ModelConfig::Gpt(GPT_2)),
    ]
}

/// Builds a model that is not in the box, for the data at hand.
pub type Build<'a> = &'a dyn Fn(&DataSpec) -> Result<Box<dyn Model>, ModelError>;

impl ModelConfig {
    /// What is trained where nothing is chosen.
    pub fn small_cnn() -> ModelConfig {
        ModelConfig::Cnn(CnnConfig { channels: vec![16, 32], hidden: 128 })
    }

    /// The model, for the data at hand. `own` builds the program's own, if it has one.
    pub fn build(&self, data: &DataSpec, own: Option<Build<'_>>) -> Result<Box<dyn Model>, ModelError> {
        if data.classes < 1 || data.sample.is_empty() || data.sample.iter().any(|size| *size < 1) {
            let why = format!("samples of shape {:?} and {} classes", data.sample, data.classes);
            return Err(ModelError::Data { model: self.to_string(), why });
        }
        Ok(match (self, own) {
            (ModelConfig::Mlp(config), _) => Box::new(Mlp::new(config, data)?),
            (ModelConfig::Cnn(config), _) => Box::new(Cnn::new(config, data)?),
            (ModelConfig::Resnet18(config), _) => Box::new(Resnet::new(Depth::Eighteen, config, data)?),
            (ModelConfig::Resnet50(config), _) => Box::new(Resnet::new(Depth::Fifty, config, data)?),
            (ModelConfig::Gpt(config), _) => Box::new(Gpt::new(config, data)?),
            (ModelConfig::Script { path }, _) => Box::new(Script::load(path)?),
            (ModelConfig::Own { .. }, Some(own)) => own(data)?,
            (ModelConfig::Own { name }, None) => {
                let why = "it is the model of another program, which alone can build it".into();
                return Err(ModelError::Config { origin: name.clone(), why });
            }
        })
    }

    /// Reads a file in TOML, or in JSON if it is called so.
    pub fn read(path: &Path) -> Result<ModelConfig, ModelError> {
        let failed = |source| ModelError::Read { path: path.into(), source };
        let size = std::fs::metadata(path).map_err(failed)?.len();
        let wrong = |why: String| ModelError::Config { origin: path.display().to_string(), why };
        if size > MAX_BYTES {
            return Err(wrong(format!("it has more than {MAX_BYTES} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let value: Value = if path.extension().is_some_and(|extension| extension == "json") {
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?
        } else {
            toml::from_str(&text).map_err(|error| wrong(error.to_string()))?
        };
        parse(value).map_err(wrong)
    }
}

impl FromStr for ModelConfig {
    type Err = ModelError;

    /// What `--model` is given: a name, `script:FILE`, or a file that sizes a model.
    fn from_str(text: &str) -> Result<ModelConfig, ModelError> {
        if let Some(path) = text.strip_prefix("script:") {
            return Ok(ModelConfig::Script { path: path.into() });
        }
        let path = Path::new(text);
        if path.extension().is_some_and(|extension| extension == "toml" || extension == "json") {
            return ModelConfig::read(path);
        }
        let known = presets();
        if let Some((_, config)) = known.iter().find(|(name, _)| *name == text) {
            return Ok(config.clone());
        }
        let names = known.map(|(name, _)| name).join(", ");
        let why = format!("no model has this name; there are {names}, FILE.toml, FILE.json and script:FILE");
        Err(ModelError::Config { origin: text.into(), why })
    }
}

impl fmt::Display for ModelConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ModelConfig::Mlp(_) => "mlp",
            ModelConfig::Cnn(_) => "cnn",
            ModelConfig::Resnet18(_) => "resnet18",
            ModelConfig::Resnet50(_) => "resnet50",
            ModelConfig::Gpt(_) => "gpt",
            ModelConfig::Script { path } => return write!(f, "script:{}", path.display()),
            ModelConfig::Own { name } => name,
        })
    }
}

/// The keys of a file; each is taken once, and what is left at the end is unknown.
struct Keys {
    model: String,
    rest: serde_json::Map<String, Value>,
    known: Vec<&'static str>,
}

fn parse(value: Value) -> Result<ModelConfig, String> {
    let Value::Object(mut rest) = value else { return Err("it is no table of keys and values".into()) };
    const NAMES: &str = "mlp, cnn, resnet18, resnet50 or gpt";
    let model = match rest.remove("model") {
        Some(Value::String(model)) => model,
        Some(other) => return Err(format!("model is {other}, not one of {NAMES} in quotes")),
        None => return Err(format!("model is missing: give one of {NAMES}")),
    };
    let mut keys = Keys { model, rest, known: vec!["model"] };
    let widths = |layers: Vec<Value>, key: &str| -> Result<Vec<i64>, String> {
        layers.iter().map(|width| integer(key, width, MAX_WIDTH)).collect()
    };
    let config = match keys.model.as_str() {
        "mlp" => {
            let hidden = keys.required("hidden", "the widths of its hidden layers, as in hidden = [256, 256]")?;
            ModelConfig::Mlp(MlpConfig { hidden: widths(list("hidden", hidden, 64)?, "hidden")? })
        }
        "cnn" => {
            let channels = match keys.take("channels") {
                Some(value) => widths(list("channels", value, 16)?, "channels")?,
                None => vec![16, 32],
            };
            ModelConfig::Cnn(CnnConfig { channels, hidden: keys.integer("hidden", MAX_WIDTH)?.unwrap_or(128) })
        }
        "resnet18" => ModelConfig::Resnet18(ResnetConfig { stem: keys.stem()? }),
        "resnet50" => ModelConfig::Resnet50(ResnetConfig { stem: keys.stem()? }),
        "gpt" => ModelConfig::Gpt(keys.gpt()?),
        other => return Err(format!("model is {other:?}, not one of {NAMES}")),
    };
    match keys.rest.keys().next() {
        None => Ok(config),
        Some(unknown) => Err(format!("{unknown} is no key of {}: it has {}", keys.model, keys.known.join(", "))),
    }
}

fn integer(key: &str, value: &Value, most: i64) -> Result<i64, String> {
    value
        .as_i64()
        .filter(|number| (1..=most).contains(number))
        .ok_or_else(|| format!("{key} is {value}, not a whole number from 1 to {most}"))
}

fn list(key: &str, value: Value, most: usize) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(list) if list.len() <= most => Ok(list),
        Value::Array(list) => Err(format!("{key} has {} entries, more than {most}", list.len())),
        other => Err(format!("{key} is {other}, not a list of whole numbers in brackets")),
    }
}

impl Keys {
    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.rest.remove(key)
    }

    fn required(&mut self, key: &'static str, what: &str) -> Result<Value, String> {
        self.take(key).ok_or_else(|| format!("{key} is missing: give {what}"))
    }

    fn integer(&mut self, key: &'static str, most: i64) -> Result<Option<i64>, String> {
        self.take(key).map(|value| integer(key, &value, most)).transpose()
    }

    fn stem(&mut self) -> Result<Option<Stem>, String> {
        match self.take("stem") {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some("cifar") => Ok(Some(Stem::Small)),
                Some("imagenet") => Ok(Some(Stem::Large)),
                _ => Err(format!("stem is {value}, not \"cifar\" or \"imagenet\"")),
            },
        }
    }

    fn gpt(&mut self) -> Result<GptConfig, String> {
        let mut required = |key: &'static str, most: i64| -> Result<i64, String> {
            match self.integer(key, most)? {
                Some(number) => Ok(number),
                None => Err(format!("{key} is missing: give a whole number from 1 to {most}")),
            }
        };
        let layers = required("layers", 1024)?;
        let heads = required("heads", MAX_WIDTH)?;
        let width = required("width", MAX_WIDTH)?;
        let context = required("context", 1 << 20)?;
        if width % heads != 0 {
            return Err(format!("width is {width}, which {heads} heads cannot share: give a multiple of heads"));
        }
        let vocabulary = self.integer("vocabulary", 1 << 24)?;
        let dropout = match self.take("dropout") {
            None => 0.0,
            Some(value) => match value.as_f64() {
                Some(share) if (0.0..1.0).contains(&share) => share,
                _ => return Err(format!("dropout is {value}, not a number from 0 to below 1")),
            },
        };
        let bias = match self.take("bias") {
            None => true,
            Some(Value::Bool(bias)) => bias,
            Some(value) => return Err(format!("bias is {value}, not true or false")),
        };
        Ok(GptConfig { layers, heads, width, context, vocabulary, dropout, bias })
    }
}
