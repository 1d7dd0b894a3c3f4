//! A checkpoint folder: configuration, tokenizer and tensors, wherever the training code has put them.
//!
//! Tensors are in `model.safetensors` or `pytorch_model.bin`, in shards listed by an index, or in such files in the
//! folders `language_model`, `vision_tower` and `connector`. A part may be in another folder, and an adapter may modify
//! tensors: see [`Parts`].

pub mod adapter;
pub mod chat_template;
pub mod config;
pub mod family;
pub mod fields;
pub mod pickle;
pub mod prefixes;
pub mod safetensors;
pub mod sentencepiece;
pub mod tensor;

use crate::checkpoint::family::Family;
use crate::checkpoint::fields::Json;
use crate::checkpoint::tensor::Tensor;
use crate::files::folder::read_small;
use crate::files::json;
use clap::Args;
use llama3med::spec::watch::Part;
use llama3med::text::conversation::TEMPLATES;
use llama3med::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// No model has a larger dimension; sums and products of a few such numbers cannot overflow.
const MAX_DIM: usize = 1 << 24;

const MAX_CONFIG_BYTES: usize = 4 << 20;
const MAX_INDEX_BYTES: usize = 64 << 20;
const MAX_TOKENIZER_BYTES: usize = 256 << 20;

/// What a checkpoint's folder does not contain or specify; each is `None` if it does.
#[derive(Args, Debug, Clone, Default)]
pub struct Parts {
    /// Take the language model from here: a folder, or one file of weights.
    #[arg(long, value_name = "PATH")]
    pub decoder: Option<PathBuf>,
    /// Take the image tower from here: a folder such as that of openai/clip-vit-large-patch14-336, or a file such as H-optimus-0's checkpoint.pth.
    #[arg(long, value_name = "PATH")]
    pub encoder: Option<PathBuf>,
    /// Take the connector from here: a folder, or a file such as mm_projector.bin.
    #[arg(long, value_name = "PATH")]
    pub connector: Option<PathBuf>,
    /// Merge a LoRA adapter: a folder with adapter_config.json. An adapter in the checkpoint's own folder is merged without this option.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// The chat template that it was trained with, if configuration and tokenizer do not specify it.
    #[arg(long, value_parser = TEMPLATES)]
    pub template: Option<String>,
}

/// The contents of a folder.
pub struct Checkpoint {
    /// The folder.
    pub folder: PathBuf,
    /// Which project trained it.
    pub family: Family,
    /// `config.json`.
    pub config: Json,
    /// `generation_config.json`, if present.
    pub generation: Option<Json>,
    /// `preprocessor_config.json`, if present.
    pub preprocessor: Option<Json>,
    /// Where a tokenizer may be, most likely place first.
    tokenizer_folders: Vec<PathBuf>,
    /// Tensors by part and name.
    pub tensors: BTreeMap<(Part, String), Tensor>,
}

impl Checkpoint {
    /// Reads all headers; no weight is read yet.
    pub fn open(folder: &Path, parts: &Parts) -> Result<Self> {
        let optional = |folder: &Path, name: &str| {
            let path = folder.join(name);
            path.exists().then(|| Json::read(&path, MAX_CONFIG_BYTES)).transpose()
        };
        let mut checkpoint = Self {
            folder: folder.into(),
            family: Family::Llama3Med,
            config: Json::read(&folder.join("config.json"), MAX_CONFIG_BYTES)?,
            generation: optional(folder, "generation_config.json")?,
            preprocessor: optional(folder, "preprocessor_config.json")?,
            tokenizer_folders: [Some(folder), parts.decoder.as_deref()]
                .into_iter()
                .flatten()
                .map(PathBuf::from)
                .collect(),
            tensors: BTreeMap::new(),
        };
        for (name, tensor) in tensors_in(folder)? {
            checkpoint.add(&name, tensor)?;
        }
        for part in [Part::Decoder, Part::Tower, Part::Connector] {
            for (name, tensor) in tensors_in(&folder.join(prefixes::folder(part)))? {
                let prefix = format!("{}.", prefixes::folder(part));
                let full = if name.starts_with(&prefix) { name } else { prefix + &name };
                checkpoint.add(&full, tensor)?;
            }
        }
        for (part, place) in
            [(Part::Decoder, &parts.decoder), (Part::Tower, &parts.encoder), (Part::Connector, &parts.connector)]
        {
            if let Some(place) = place {
                checkpoint.replace(part, place)?;
            }
        }
        if let Some(tower) = &parts.encoder {
            if let Some(config) = optional(tower, "config.json")? {
                checkpoint.config.complete_vision(config.value);
            }
            checkpoint.preprocessor = checkpoint.preprocessor.or(optional(tower, "preprocessor_config.json")?);
        }
        for place in [Some(folder), parts.adapter.as_deref()].into_iter().flatten() {
            adapter::apply(&mut checkpoint, place, parts.adapter.as_deref() == Some(place))?;
        }
        if checkpoint.tensors.is_empty() {
            let expected =
                format!("expected {}, in the folder or in its language_model, found none", FILES.join(" or "));
            return Err(Error::corrupt(folder.display().to_string(), "tensors", expected));
        }
        checkpoint.family = family::recognise(&checkpoint)?;
        Ok(checkpoint)
    }

    /// The text of `tokenizer.json`, or `tokenizer.model` converted to it, from the first folder that has one of them.
    pub fn tokenizer(&self) -> Result<String> {
        if let Some(text) = self.text("tokenizer.json", MAX_TOKENIZER_BYTES)? {
            return Ok(text);
        }
        let Some(path) = self.tokenizer_file("tokenizer.model") else {
            // The error names the expected file.
            return read_small(&self.folder.join("tokenizer.json"), MAX_TOKENIZER_BYTES).map(|_| String::new());
        };
        let added = match self.json("added_tokens.json")? {
            Some(json) => {
                let entry = |(text, id): (&String, &Value)| Some((text.clone(), u32::try_from(id.as_u64()?).ok()?));
                let tokens: Option<BTreeMap<String, u32>> =
                    json.value.as_object().into_iter().flatten().map(entry).collect();
                tokens.ok_or_else(|| json.error("added_tokens", "expected ids by token".into()))?
            }
            None => BTreeMap::new(),
        };
        let adds_bos = match self.tokenizer_config() {
            Some(config) => config.flag("add_bos_token")?.unwrap_or(true),
            None => true,
        };
        sentencepiece::tokenizer_json(&read_small(&path, MAX_TOKENIZER_BYTES)?, &added, adds_bos)
    }

    /// The tokenizer's file, for error messages.
    pub fn tokenizer_name(&self) -> String {
        let path = self.tokenizer_file("tokenizer.json").or_else(|| self.tokenizer_file("tokenizer.model"));
        path.map_or_else(|| "tokenizer.json".into(), |path| path.display().to_string())
    }

    /// A tokenizer-related file, from the first folder that has it.
    fn tokenizer_file(&self, name: &str) -> Option<PathBuf> {
        self.tokenizer_folders.iter().map(|folder| folder.join(name)).find(|path| path.exists())
    }

    /// Such a file's text, if present.
    fn text(&self, name: &str, max: usize) -> Result<Option<String>> {
        let Some(path) = self.tokenizer_file(name) else { return Ok(None) };
        let text = String::from_utf8(json::decoded(name, read_small(&path, max)?)?);
        text.map(Some).map_err(|error| Error::corrupt(name, "text", error.to_string()))
    }

    /// Such a file as JSON, if present.
    fn json(&self, name: &str) -> Result<Option<Json>> {
        self.tokenizer_file(name).map(|path| Json::read(&path, MAX_TOKENIZER_BYTES)).transpose()
    }

    /// `tokenizer_config.json`, if present and readable: nothing in it is required.
    fn tokenizer_config(&self) -> Option<Json> {
        self.json("tokenizer_config.json").ok().flatten()
    }

    /// The shape of a tensor, if present.
    pub fn shape(&self, part: Part, name: &str) -> Option<&[usize]> {
        self.tensors.get(&(part, name.into())).map(|tensor| tensor.shape.as_slice())
    }

    /// The shape of a required tensor.
    pub fn required_shape(&self, part: Part, name: &str) -> Result<&[usize]> {
        self.shape(part, name).ok_or_else(|| self.missing(part, name))
    }

    /// A required tensor of this shape, as weights.
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

    /// Takes one part from another place, replacing what the folder has of it. Names there may lack the part's prefix.
    fn replace(&mut self, part: Part, place: &Path) -> Result<()> {
        self.tensors.retain(|&(other, _), _| other != part);
        let tensors = tensors_in(place)?;
        let of_part = |name: &str| prefixes::split(name).is_some_and(|(found, _)| found == part);
        // A tower's norm.weight looks like a decoder's: if one name identifies its part, all names belong to that part.
        let is_whole = part == Part::Decoder || tensors.keys().any(|name| of_part(name));
        for (name, tensor) in tensors {
            let full = if is_whole { name } else { format!("{}.{name}", prefixes::folder(part)) };
            if of_part(&full) && !prefixes::is_unused_outside(&tensor.name) {
                self.add(&full, tensor)?;
            }
        }
        if !self.tensors.keys().any(|(found, _)| *found == part) {
            let problem = format!(
                "there is no {} in it: expected a file or a folder with {}",
                prefixes::folder(part),
                FILES.join(" or ")
            );
            return Err(Error::corrupt(place.display().to_string(), "tensors", problem));
        }
        Ok(())
    }

    fn add(&mut self, full: &str, tensor: Tensor) -> Result<()> {
        let Some(key) = prefixes::split(full) else {
            if prefixes::is_unused_outside(full) {
                return Ok(());
            }
            let problem = "no part of a Llama3-Med model has a tensor of this name";
            return Err(Error::corrupt(&tensor.file_name, &tensor.name, problem));
        };
        if tensor.shape.iter().any(|dim| !(1..=MAX_DIM).contains(dim)) {
            let problem = format!("expected dimensions from 1 to {MAX_DIM}, found {:?}", tensor.shape);
            return Err(Error::corrupt(&tensor.file_name, &tensor.name, problem));
        }
        if let Some(other) = self.tensors.get(&key) {
            let problem = format!("the tensor is also in {}", other.file_name);
            return Err(Error::corrupt(&tensor.file_name, &tensor.name, problem));
        }
        self.tensors.insert(key, tensor);
        Ok(())
    }
}

/// Files that hold tensors, in order of preference; an index lists several more.
const FILES: [&str; 6] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "checkpoint.pth",
    "mm_projector.bin",
];

/// All tensors of a file or a folder, by their names there; `None` if it does not exist.
fn tensors_in(place: &Path) -> Result<BTreeMap<String, Tensor>> {
    if place.is_file() {
        return open(place);
    }
    match FILES.map(|name| place.join(name)).iter().find(|path| path.exists()) {
        Some(index) if index.extension().is_some_and(|extension| extension == "json") => shards(place, index),
        Some(single) => open(single),
        None => Ok(BTreeMap::new()),
    }
}

/// A file's tensors; the file name tells the format.
fn open(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("bin" | "pth" | "pt") => pickle::open(path),
        _ => safetensors::open(path),
    }
}

/// The tensors of all files that an index names; they must match the index exactly.
fn shards(folder: &Path, index: &Path) -> Result<BTreeMap<String, Tensor>> {
    let json = Json::read(index, MAX_INDEX_BYTES)?;
    let map = json.value["weight_map"].as_object();
    let map = map.ok_or_else(|| json.error("weight_map", "expected an object of tensors and files".into()))?;
    let mut shards: BTreeMap<&str, BTreeMap<String, Tensor>> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, file) in map {
        let plain = |file: &&str| !file.contains(['/', '\\']) && !file.starts_with('.');
        let Some(file) = file.as_str().filter(plain) else {
            return Err(json.error(name, format!("expected a file name, found {file}")));
        };
        if !shards.contains_key(file) {
            shards.insert(file, open(&folder.join(file))?);
        }
        let shard = shards.get_mut(file).expect("it was just opened");
        let Some(tensor) = shard.remove(name) else {
            return Err(json.error(name, format!("the tensor is not in {file}, where the index has it")));
        };
        tensors.insert(name.clone(), tensor);
    }
    for (file, left) in shards {
        if let Some(name) = left.keys().next() {
            return Err(json.error(name, format!("the tensor is in {file} but not in the index")));
        }
    }
    Ok(tensors)
}
