//! wasm-bindgen bindings of `llama3med`: one [`Rank`] per worker, and what the store worker needs. No mathematics here.
//!
//! `www/llama3med/rank.js` creates one [`Rank`], passes it the bytes of its tensors and calls its operations;
//! `www/llama3med/store.js` parses manifests and hashes chunks. The ranks exchange messages directly over message ports
//! (`ports.rs`), without JavaScript in between. On native targets this crate is empty.
#![cfg(target_arch = "wasm32")]

#[cfg(not(target_feature = "simd128"))]
compile_error!("the kernels need SIMD: build with RUSTFLAGS -C target-feature=+simd128, as .cargo/config.toml has it");

mod bench;
mod ports;
mod rank;
mod store;

pub use bench::{Product, Stretch, multiply};
pub use rank::Rank;
pub use store::{Sha256, describe_pair, has_header, names_of_parts, parse_manifest, template_names};

use js_sys::Array;
use llama3med::Error;
use std::cell::RefCell;
use wasm_bindgen::prelude::*;

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Stores a panic's message: in wasm a panic ends in a trap, whose own message is only "unreachable".
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|info| {
        let message = info.to_string();
        PANIC.with(|panic| panic.replace(Some(message)));
    }));
}

/// The message of the panic that caused a trap; none if the trap was not caused by a panic, which usually means that
/// memory has run out.
#[wasm_bindgen(js_name = takePanic)]
pub fn take_panic() -> Option<String> {
    PANIC.with(RefCell::take)
}

/// A plain object with these fields.
fn object(fields: &[(&str, JsValue)]) -> Result<js_sys::Object, JsValue> {
    let object = js_sys::Object::new();
    for (name, value) in fields {
        js_sys::Reflect::set(&object, &(*name).into(), value)?;
    }
    Ok(object)
}

/// An error as a JavaScript `Error`: its message, and the variant's name in kebab case as `kind`.
fn to_js(error: Error) -> JsValue {
    let kind = match &error {
        Error::Corrupt { .. } | Error::MissingTensor { .. } | Error::Shape { .. } => "corrupt",
        Error::Unsupported(_) => "unsupported",
        Error::Image(_) => "image",
        Error::NotKept { .. } => "not-encoded",
        Error::Pair { .. } => "pair",
        Error::NoVision => "no-vision",
        Error::Format(_) => "format",
        Error::Tokenizer(_) => "tokenizer",
        Error::Invalid(_) => "invalid",
        Error::ContextFull { .. } => "context-full",
        Error::OutOfMemory { .. } => "out-of-memory",
        Error::RankLost(_) => "rank-lost",
        Error::Cancelled => "cancelled",
    };
    let (detail, value) = match &error {
        Error::NotKept { images } => ("images", images.iter().map(|&key| JsValue::from(key)).collect::<Array>().into()),
        Error::Pair { found, .. } => ("detail", found.into()),
        _ => return js_error(kind, &error.to_string()),
    };
    let error = js_error(kind, &error.to_string());
    let _ = js_sys::Reflect::set(&error, &detail.into(), &value);
    error
}

fn js_error(kind: &str, message: &str) -> JsValue {
    let error = js_sys::Error::new(message);
    // A plain object accepts any property; if it did not, the message alone would still be correct.
    let _ = js_sys::Reflect::set(&error, &"kind".into(), &kind.into());
    error.into()
}
