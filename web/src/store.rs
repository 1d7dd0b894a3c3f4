//! What the store worker needs from Rust: the only manifest parser, and SHA-256 for browsers without `crypto.subtle`
//! (plain http).

use crate::{js_error, object, to_js};
use js_sys::{Array, Object, Uint8Array};
use llama3med::file::gguf::{Gguf, part_names};
use llama3med::file::manifest::{DECODER, ENCODER, Manifest};
use llama3med::file::pair::{Member, Whole, members};
use llama3med::model::memory::{Held, least_ranks};
use llama3med::spec::file_of;
use llama3med::text::conversation::TEMPLATES;
use serde::Serialize;
use serde_wasm_bindgen::Serializer;
use sha2::Digest;
use std::ops::Range;
use wasm_bindgen::prelude::*;

// Bytes copied into wasm memory at a time, because that memory never shrinks.
const PIECE_BYTES: u32 = 1 << 20;

/// Checks a manifest and returns it as a plain object, with the field names of the file.
#[wasm_bindgen(js_name = parseManifest)]
pub fn parse_manifest(bytes: &[u8]) -> Result<JsValue, JsValue> {
    let manifest = Manifest::parse(bytes).map_err(to_js)?;
    let serialized = manifest.serialize(&Serializer::json_compatible());
    serialized.map_err(|error| js_error("corrupt", &format!("manifest.json: {error}")))
}

/// Whether the first bytes of a GGUF file contain its whole header.
#[wasm_bindgen(js_name = hasHeader)]
pub fn has_header(name: &str, prefix: &[u8], size: f64) -> Result<bool, JsValue> {
    Ok(Gguf::parse(name, prefix, size as u64).map_err(to_js)?.is_some())
}

/// Names of all parts of a split file, from that of one; undefined if it is not named as a part.
#[wasm_bindgen(js_name = partNames)]
pub fn names_of_parts(name: &str) -> Option<Vec<String>> {
    part_names(name)
}

/// Names of the known chat templates.
#[wasm_bindgen(js_name = templateNames)]
pub fn template_names() -> Vec<String> {
    TEMPLATES.map(String::from).to_vec()
}

/// The model that GGUF files in any order make, from their first bytes: `{ name, files }`, with files as a manifest has
/// them, but `ranges`, `[source, start, end]` each, in place of chunks. If `header` is not empty, it precedes the ranges.
#[wasm_bindgen(js_name = describePair)]
pub fn describe_pair(names: Vec<String>, headers: Vec<Uint8Array>, sizes: Vec<f64>) -> Result<Object, JsValue> {
    let members = members(parsed(&names, headers, &sizes)?, file_of).map_err(to_js)?;
    let file = |member: &Member| {
        let Whole { header_size, size, header, ranges } = &member.whole;
        let range = |(&source, range): (&usize, &Range<u64>)| {
            Array::of3(&source.into(), &(range.start as f64).into(), &(range.end as f64).into())
        };
        object(&[
            ("name", member.name.into()),
            ("size", (*size as f64).into()),
            ("header_size", (*header_size as f64).into()),
            ("header", Uint8Array::from(header.as_deref().unwrap_or_default()).into()),
            ("ranges", member.sources.iter().zip(ranges).map(range).collect::<Array>().into()),
        ])
    };
    let files = members.iter().map(file).collect::<Result<Array, _>>()?;
    object(&[("name", members[0].title.as_str().into()), ("files", files.into())])
}

fn parsed(names: &[String], headers: Vec<Uint8Array>, sizes: &[f64]) -> Result<Vec<Gguf>, JsValue> {
    let parse = |((name, header), size): ((&String, Uint8Array), &f64)| {
        let gguf = Gguf::parse(name, header.to_vec().as_slice(), *size as u64).map_err(to_js)?;
        gguf.ok_or_else(|| js_error("corrupt", &format!("{name}: the header is not whole")))
    };
    names.iter().zip(headers).zip(sizes).map(parse).collect()
}

/// The memory that a model needs, from the headers of its files in any order: `{ bytes, leastRanks }`; `bytes` counts
/// all weights. `context` limits the tokens of a conversation.
#[wasm_bindgen(js_name = memoryOf)]
pub fn memory_of(
    names: Vec<String>,
    headers: Vec<Uint8Array>,
    sizes: Vec<f64>,
    context: Option<usize>,
) -> Result<Object, JsValue> {
    let files = parsed(&names, headers, &sizes)?;
    let file = |name: &str| files.iter().find(|gguf| gguf.file == name);
    let (decoder, encoder) = (file(DECODER), file(ENCODER));
    let held = Held::most(decoder, encoder, 1).map_err(to_js)?;
    let least = least_ranks(decoder, encoder, context).map_err(to_js)?;
    object(&[("bytes", (held.weights as f64).into()), ("leastRanks", least.into())])
}

/// SHA-256 of bytes that arrive in pieces.
#[wasm_bindgen]
#[derive(Default)]
pub struct Sha256(sha2::Sha256);

#[wasm_bindgen]
impl Sha256 {
    /// The hash of no bytes yet.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes more bytes.
    pub fn update(&mut self, bytes: &Uint8Array) {
        in_pieces(bytes, |_, piece| {
            self.0.update(piece);
            Ok::<_, ()>(())
        })
        .ok();
    }

    /// The digest as 64 lower-case hexadecimal digits; then starts over.
    pub fn finish(&mut self) -> String {
        self.0.finalize_reset().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Copies `bytes` into wasm memory piece by piece; `take` receives each piece with its offset.
fn in_pieces<E>(bytes: &Uint8Array, mut take: impl FnMut(u32, &[u8]) -> Result<(), E>) -> Result<(), E> {
    let mut buffer = vec![0; bytes.length().min(PIECE_BYTES) as usize];
    let mut offset = 0;
    while offset < bytes.length() {
        let n_bytes = (bytes.length() - offset).min(PIECE_BYTES);
        let piece = &mut buffer[..n_bytes as usize];
        bytes.subarray(offset, offset + n_bytes).copy_to(piece);
        take(offset, piece)?;
        offset += n_bytes;
    }
    Ok(())
}
