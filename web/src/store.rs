//! What the store worker needs from Rust: the one parser of manifests, and SHA-256 where the browser has no `crypto.subtle` (plain http).

use crate::{js_error, to_js};
use js_sys::Uint8Array;
use llama3med::manifest::Manifest;
use serde::Serialize;
use serde_wasm_bindgen::Serializer;
use sha2::Digest;
use wasm_bindgen::prelude::*;

// Bytes that cross into wasm memory at once: the memory never shrinks again.
const PIECE_BYTES: u32 = 1 << 20;

/// Checks a manifest and returns it as a plain object, with the field names of the file.
#[wasm_bindgen(js_name = parseManifest)]
pub fn parse_manifest(bytes: &[u8]) -> Result<JsValue, JsValue> {
    let manifest = Manifest::parse(bytes).map_err(to_js)?;
    let serialized = manifest.serialize(&Serializer::json_compatible());
    serialized.map_err(|error| js_error("corrupt", &format!("manifest.json: {error}")))
}

/// SHA-256 of bytes that come in pieces.
#[wasm_bindgen]
#[derive(Default)]
pub struct Sha256(sha2::Sha256);

#[wasm_bindgen]
impl Sha256 {
    /// Of nothing so far.
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

    /// The digest as 64 lower-case hexadecimal digits; starts afresh.
    pub fn finish(&mut self) -> String {
        self.0.finalize_reset().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Copies `bytes` into wasm memory piece by piece; `take` gets each with its offset.
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
