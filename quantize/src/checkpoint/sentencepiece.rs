//! Converts `tokenizer.model`, SentencePiece's own file, to an equivalent `tokenizer.json`.
//!
//! Supports only what Llama-2, Vicuna, TinyLlama and Mistral use: pairs merged by score, bytes for text without a
//! piece, spaces as ▁, no normalisation. The file is a protocol buffer (`sentencepiece_model.proto`), of which only a
//! few fields matter.

use llama3med::text::tokenizer::ggml::{MAX_PIECE_BYTES, merges_by_score};
use llama3med::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The largest number of ids that the engine accepts.
const MAX_PIECES: usize = 1 << 20;

/// Types of pieces.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

struct Piece<'a> {
    text: &'a str,
    score: f32,
    kind: u64,
}

/// The file as `tokenizer.json`, with further control tokens by id, as in `added_tokens.json`, and a beginning-of-text
/// token if it `adds_bos`.
pub fn tokenizer_json(file: &[u8], added: &BTreeMap<String, u32>, adds_bos: bool) -> Result<String> {
    let Model { pieces, bos, dummy_prefix } = Model::read(file)?;
    let mut vocab = BTreeMap::new();
    for (id, piece) in pieces.iter().enumerate() {
        if let Some(other) = vocab.insert(piece.text, id) {
            return Err(corrupt("pieces", format!("{:?} occurs twice, as {other} and {id}", piece.text)));
        }
    }
    let special = pieces.iter().enumerate().filter(|(_, piece)| matches!(piece.kind, UNKNOWN | CONTROL | USER_DEFINED));
    let mut tokens: Vec<Value> = special.map(|(id, piece)| token(piece.text, id, piece.kind != USER_DEFINED)).collect();
    let new = added.iter().filter(|(text, _)| !vocab.contains_key(text.as_str()));
    tokens.extend(new.map(|(text, &id)| token(text, id as usize, true)));
    let texts = pieces.iter().filter(|piece| matches!(piece.kind, NORMAL | USER_DEFINED));
    let texts = texts.map(|piece| (piece.text, piece.score)).collect();
    let unknown = pieces.iter().find(|piece| piece.kind == UNKNOWN).map(|piece| piece.text);
    let mut normalizers = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
    if dummy_prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
    }
    let bos = pieces.get(bos).filter(|_| adds_bos).map(|piece| (piece.text, bos));
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens,
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "post_processor": bos.map_or(Value::Null, |(text, id)| post_processor(text, id)),
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab.iter().map(|(&text, &id)| (text.to_owned(), id.into())).collect::<serde_json::Map<_, _>>(),
            "merges": merges_by_score(&texts),
        },
    })
    .to_string())
}

/// What the file says, checked to be of the form that Llama-2 and Mistral have.
struct Model<'a> {
    pieces: Vec<Piece<'a>>,
    /// Id of the token of the beginning.
    bos: usize,
    /// Whether a blank is put before each text.
    dummy_prefix: bool,
}

impl<'a> Model<'a> {
    fn read(file: &'a [u8]) -> Result<Self> {
        let (mut pieces, mut trainer, mut normalizer) = (Vec::new(), &[][..], &[][..]);
        for field in fields(file) {
            match field? {
                (1, Field::Bytes(bytes)) => pieces.push(piece(pieces.len(), bytes)?),
                (2, Field::Bytes(bytes)) => trainer = bytes,
                (3, Field::Bytes(bytes)) => normalizer = bytes,
                _ => {}
            }
            if pieces.len() > MAX_PIECES {
                return Err(corrupt("pieces", format!("more than {MAX_PIECES}")));
            }
        }
        let (mut model_type, mut byte_fallback, mut bos) = (1, 0, 1);
        for field in fields(trainer) {
            match field? {
                (3, Field::Number(n)) => model_type = n,
                (35, Field::Number(n)) => byte_fallback = n,
                (41, Field::Number(n)) => bos = n,
                _ => {}
            }
        }
        let (mut has_map, mut dummy_prefix, mut removes, mut escapes) = (false, 1, 1, 1);
        for field in fields(normalizer) {
            match field? {
                (2, Field::Bytes(map)) => has_map = !map.is_empty(),
                (3, Field::Number(n)) => dummy_prefix = n,
                (4, Field::Number(n)) => removes = n,
                (5, Field::Number(n)) => escapes = n,
                _ => {}
            }
        }
        let expectations = [
            (model_type == 2, "trainer_spec.model_type", "expected 2, pairs merged by score"),
            (byte_fallback == 1, "trainer_spec.byte_fallback", "expected true"),
            (!has_map && removes == 0 && escapes == 1, "normalizer_spec", "expected unchanged text with spaces as ▁"),
            (!pieces.is_empty(), "pieces", "there are none"),
        ];
        if let Some((_, field, problem)) = expectations.into_iter().find(|(holds, ..)| !holds) {
            return Err(corrupt(field, format!("{problem}, as Llama-2 and Mistral have it")));
        }
        Ok(Self { pieces, bos: bos as usize, dummy_prefix: dummy_prefix == 1 })
    }
}

/// Puts the token of the beginning before every text.
fn post_processor(text: &str, id: usize) -> Value {
    let special = json!({ "SpecialToken": { "id": text, "type_id": 0 } });
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    json!({
        "type": "TemplateProcessing",
        "single": [special, sequence("A")],
        "pair": [special, sequence("A"), special, sequence("B")],
        "special_tokens": { text: { "id": text, "ids": [id], "tokens": [text] } },
    })
}

fn token(text: &str, id: usize, is_special: bool) -> Value {
    json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": is_special })
}

fn piece(id: usize, bytes: &[u8]) -> Result<Piece<'_>> {
    let mut piece = Piece { text: "", score: 0.0, kind: NORMAL };
    for field in fields(bytes) {
        match field? {
            (1, Field::Bytes(text)) => {
                piece.text = std::str::from_utf8(text).map_err(|error| corrupt("pieces", format!("{id}: {error}")))?;
            }
            (2, Field::Fixed(score)) => piece.score = f32::from_le_bytes(score),
            (3, Field::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    if piece.text.is_empty()
        || piece.text.len() > MAX_PIECE_BYTES
        || !piece.score.is_finite()
        || !(NORMAL..=BYTE).contains(&piece.kind)
    {
        let found = format!("text of {} bytes, score {}, type {}", piece.text.len(), piece.score, piece.kind);
        return Err(corrupt("pieces", format!("{id}: absurd: {found}")));
    }
    Ok(piece)
}

fn corrupt(field: &str, problem: String) -> Error {
    Error::corrupt("tokenizer.model", field, problem)
}

enum Field<'a> {
    Number(u64),
    Fixed([u8; 4]),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message with their numbers; iteration ends after an error.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Field<'_>)>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes);
        if field.is_none() {
            bytes = &[];
        }
        Some(field.ok_or_else(|| corrupt("protocol buffer", "a field is cut off or of an unknown type".into())))
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = varint(bytes)?;
    let field = match key & 7 {
        0 => Field::Number(varint(bytes)?),
        1 => take(bytes, 8).map(|_| Field::Other)?,
        5 => Field::Fixed(take(bytes, 4)?.try_into().ok()?),
        2 => {
            let n = varint(bytes)?;
            Field::Bytes(take(bytes, n)?)
        }
        _ => return None,
    };
    Some((key >> 3, field))
}

fn take<'a>(bytes: &mut &'a [u8], n: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(n).ok()?)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
