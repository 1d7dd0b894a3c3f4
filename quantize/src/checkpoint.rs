//! A checkpoint folder: configuration, tokenizer and tensors, wherever the reference code has put them.
//!
//! Tensors are in `model.safetensors`, in shards listed by `model.safetensors.index.json`, or in such files within the folders `language_model`,
//! `vision_tower` and `connector`.

pub mod config;
pub mod names;
pub mod safetensors;

use crate::checkpoint::config::Json;
use crate::checkpoint::names::Part;
use crate::checkpoint::safetensors::Tensor;
use crate::model_folder::read_small;
use llama3med::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// No model has a dimension above this; sums and products of a few such numbers cannot overflow.
const MAX_DIM: usize = 1 << 24;

const MAX_CONFIG_BYTES: usize = 4 << 20;
const MAX_INDEX_BYTES: usize = 64 << 20;
const MAX_TOKENIZER_BYTES: usize = 256 << 20;

/// What a folder holds.
pub struct Checkpoint {
    /// The folder.
    pub folder: PathBuf,
    /// `config.json`.
    pub config: Json,
    /// `generation_config.json`, if it is there.
    pub generation: Option<Json>,
    /// `preprocessor_config.json`, if it is there.
    pub preprocessor: Option<Json>,
    /// Tensors by part and name.
    pub tensors: BTreeMap<(Part, String), Tensor>,
}

impl Checkpoint {
    /// Reads all headers; no weight is read yet.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = Json::read(&folder.join("config.json"), MAX_CONFIG_BYTES)?;
        let optional = |name: &str| {
            let path = folder.join(name);
            path.exists().then(|| Json::read(&path, MAX_CONFIG_BYTES)).transpose()
        };
        let mut checkpoint = Self {
            folder: folder.into(),
            config,
            generation: optional("generation_config.json")?,
            preprocessor: optional("preprocessor_config.json")?,
            tensors: BTreeMap::new(),
        };
        if folder.join("adapter_model.safetensors").exists() || folder.join("adapter_model.bin").exists() {
            let what = "LoRA adapters are not merged here; save the merged model first";
            return Err(Error::Unsupported(format!("{}: {what}", folder.join("adapter_model").display())));
        }
        checkpoint.add_folder(folder, "")?;
        for part in ["language_model", "vision_tower", "connector"] {
            checkpoint.add_folder(&folder.join(part), &format!("{part}."))?;
        }
        if checkpoint.tensors.is_empty() {
            return Err(checkpoint.no_tensors());
        }
        Ok(checkpoint)
    }

    /// The text of `tokenizer.json`.
    pub fn tokenizer(&self) -> Result<String> {
        let path = self.folder.join("tokenizer.json");
        let bytes = read_small(&path, MAX_TOKENIZER_BYTES)?;
        String::from_utf8(bytes).map_err(|error| Error::corrupt("tokenizer.json", "text", error.to_string()))
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, part: Part, name: &str) -> Option<&[usize]> {
        self.tensors.get(&(part, name.into())).map(|tensor| tensor.shape.as_slice())
    }

    /// The shape of a tensor that must be there.
    pub fn required_shape(&self, part: Part, name: &str) -> Result<&[usize]> {
        self.shape(part, name).ok_or_else(|| self.missing(part, name))
    }

    /// A tensor that must be there, in this shape, as weights.
    pub fn tensor(&self, part: Part, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.tensors.get(&(part, name.into())).ok_or_else(|| self.missing(part, name))?;
        if tensor.shape != shape {
            return Err(Error::Shape {
                tensor: tensor.name.clone(),
                expected: format!("{shape:?}"),
                found: format!("{:?}", tensor.shape),
            });
        }
        tensor.check_dtype()?;
        Ok(tensor.clone())
    }

    fn missing(&self, part: Part, name: &str) -> Error {
        let name = match part {
            Part::Decoder if name.starts_with("lm_head") => format!("language_model.{name}"),
            Part::Decoder => format!("language_model.model.{name}"),
            Part::Tower => format!("vision_tower._vision_tower.{name}"),
            Part::Connector => format!("connector._connector.{name}"),
        };
        Error::MissingTensor { file: self.folder.display().to_string(), tensor: name }
    }

    fn no_tensors(&self) -> Error {
        let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "checkpoint.pth"];
        match pickles.iter().find(|name| self.folder.join(name).exists()) {
            Some(name) => Error::Unsupported(format!("{name}: torch pickles are not read; save as safetensors")),
            None => Error::corrupt(
                self.folder.display().to_string(),
                "tensors",
                "expected model.safetensors, model.safetensors.index.json or language_model/model.safetensors, found none",
            ),
        }
    }

    fn add_folder(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        let (index, single) = (folder.join("model.safetensors.index.json"), folder.join("model.safetensors"));
        if index.exists() {
            return self.add_shards(folder, &index, prefix);
        }
        if single.exists() {
            for (name, tensor) in safetensors::open(&single)? {
                self.add(prefix, &name, tensor)?;
            }
        }
        Ok(())
    }

    fn add_shards(&mut self, folder: &Path, index: &Path, prefix: &str) -> Result<()> {
        let json = Json::read(index, MAX_INDEX_BYTES)?;
        let map = json.value["weight_map"].as_object();
        let map = map.ok_or_else(|| json.error("weight_map", "expected an object of tensors and files".into()))?;
        let mut shards: BTreeMap<&str, BTreeMap<String, Tensor>> = BTreeMap::new();
        for (name, file) in map {
            let plain = |file: &&str| !file.contains(['/', '\\']) && !file.starts_with('.');
            let Some(file) = file.as_str().filter(plain) else {
                return Err(json.error(name, format!("expected a file name, found {file}")));
            };
            if !shards.contains_key(file) {
                shards.insert(file, safetensors::open(&folder.join(file))?);
            }
            let shard = shards.get_mut(file).expect("it was just opened");
            let Some(tensor) = shard.remove(name) else {
                return Err(json.error(name, format!("the tensor is not in {file}, where the index has it")));
            };
            self.add(prefix, name, tensor)?;
        }
        for (file, left) in shards {
            if let Some(name) = left.keys().next() {
                return Err(json.error(name, format!("the tensor is in {file} but not in the index")));
            }
        }
        Ok(())
    }

    fn add(&mut self, prefix: &str, name: &str, tensor: Tensor) -> Result<()> {
        let full = if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") };
        let Some(key) = names::split(&full) else {
            if names::is_unused_outside(&full) {
                return Ok(());
            }
            return Err(Error::corrupt(
                &tensor.file_name,
                name,
                "no part of a Llama3-Med model has a tensor of this name",
            ));
        };
        if tensor.shape.iter().any(|dim| !(1..=MAX_DIM).contains(dim)) {
            let problem = format!("expected dimensions from 1 to {MAX_DIM}, found {:?}", tensor.shape);
            return Err(Error::corrupt(&tensor.file_name, name, problem));
        }
        if let Some(other) = self.tensors.get(&key) {
            return Err(Error::corrupt(&tensor.file_name, name, format!("the tensor is also in {}", other.file_name)));
        }
        self.tensors.insert(key, tensor);
        Ok(())
    }
}
