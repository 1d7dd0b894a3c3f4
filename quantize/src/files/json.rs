//! JSON as editors and Python write it: after a byte-order mark, in UTF-16, with numbers that JSON does not allow.

use llama3med::{Error, Result};
use serde_json::Value;

const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";
const UTF16_LITTLE: &[u8] = b"\xff\xfe";
const UTF16_BIG: &[u8] = b"\xfe\xff";

/// What Python's `json` writes for non-finite floats. JSON parsers need not accept them.
const NOT_FINITE: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// A file's text without its byte-order mark, UTF-16 converted to UTF-8. Whether UTF-8 is valid is left to the parser,
/// which knows the line.
pub fn decoded(file: &str, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    let to_unit = match () {
        _ if bytes.starts_with(UTF8_MARK) => return Ok(bytes.split_off(UTF8_MARK.len())),
        _ if bytes.starts_with(UTF16_LITTLE) => u16::from_le_bytes,
        _ if bytes.starts_with(UTF16_BIG) => u16::from_be_bytes,
        _ => return Ok(bytes),
    };
    let (pairs, rest) = bytes.as_chunks::<2>();
    let units: Vec<u16> = pairs.iter().skip(1).map(|&pair| to_unit(pair)).collect();
    let text = String::from_utf16(&units).ok().filter(|_| rest.is_empty());
    let text = text.ok_or_else(|| Error::corrupt(file, "text", "its byte-order mark says UTF-16, but it is not"))?;
    Ok(text.into_bytes())
}

/// Whether a file starts as UTF-16: then UTF-8 must not be appended to it.
pub fn is_utf16(bytes: &[u8]) -> bool {
    bytes.starts_with(UTF16_LITTLE) || bytes.starts_with(UTF16_BIG)
}

/// A file's JSON in a form that parsers accept: [`decoded`], with each NaN and Infinity replaced by an object of that
/// name. If such a value is not used, it does no harm; if it is, it is neither number nor text nor null, and [`shown`]
/// says what it was.
pub fn cleaned(file: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let json = decoded(file, bytes)?;
    let (mut clean, mut n_copied, mut at, mut is_text) = (Vec::new(), 0, 0, false);
    while at < json.len() {
        match json[at] {
            b'\\' if is_text => at += 1,
            b'"' => is_text = !is_text,
            // No string crosses the end of a line: a truncated one must not hide what follows.
            b'\n' => is_text = false,
            b'-' | b'I' | b'N' if !is_text => {
                if let Some(word) = NOT_FINITE.iter().find(|word| json[at..].starts_with(word.as_bytes())) {
                    clean.extend_from_slice(&json[n_copied..at]);
                    clean.extend_from_slice(stand_in(word).as_bytes());
                    at += word.len();
                    n_copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if n_copied == 0 {
        return Ok(json);
    }
    clean.extend_from_slice(&json[n_copied..]);
    Ok(clean)
}

/// A whole file as JSON.
pub fn parse(file: &str, bytes: Vec<u8>) -> Result<Value> {
    let json = cleaned(file, bytes)?;
    serde_json::from_slice(&json).map_err(|error| Error::corrupt(file, "JSON", error.to_string()))
}

/// A value as written in the file, abbreviated.
pub fn shown(value: &Value) -> String {
    let text = NOT_FINITE.iter().fold(value.to_string(), |text, word| text.replace(&stand_in(word), word));
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn stand_in(word: &str) -> String {
    format!("{{\"{word}\":null}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(to_bytes).collect()
    }

    #[test]
    fn byte_order_marks_make_no_difference() {
        let text = r#"{"finding": "Rundherd 肺 🩻"}"#;
        let expected: Value = serde_json::from_str(text).unwrap();
        let files = [
            text.as_bytes().to_vec(),
            format!("\u{feff}{text}").into_bytes(),
            wide(text, u16::to_le_bytes),
            wide(text, u16::to_be_bytes),
        ];
        for bytes in files {
            assert_eq!(parse("x", bytes).unwrap(), expected);
        }
        for bytes in [&b"\xff\xfe{"[..], b"\xfe\xff\xd8\x00\x00{", b"\xff\xfe\x00\xd8"] {
            let error = parse("x.json", bytes.to_vec()).unwrap_err().to_string();
            assert!(error.contains("x.json: text: its byte-order mark says UTF-16"), "{error}");
        }
    }

    #[test]
    fn pythons_numbers_are_neither_lost_nor_believed() {
        let json =
            br#"{"a": NaN, "b": [1, -Infinity, Infinity], "c": "NaN \" Infinity", "d": -1.5, "e": "\\", "f": NaN}"#;
        let value = parse("x", json.to_vec()).unwrap();
        assert_eq!((shown(&value["a"]), shown(&value["b"])), ("NaN".into(), "[1,-Infinity,Infinity]".into()));
        assert_eq!((&value["c"], &value["d"], &value["e"]), (&"NaN \" Infinity".into(), &(-1.5).into(), &"\\".into()));
        for key in ["a", "f"] {
            assert!(value[key].as_f64().is_none() && value[key].as_str().is_none() && !value[key].is_null());
        }
        // A truncated line, then a complete one.
        let lines = cleaned("x", b"{\"a\": \"torn\n{\"a\": NaN}".to_vec()).unwrap();
        assert!(lines.ends_with(br#"{"a": {"NaN":null}}"#));
        for wrong in ["Nan", "-Inf", "{\"a\": NaNs}", "Infinity"] {
            assert_eq!(parse("x", wrong.into()).is_ok(), wrong == "Infinity", "{wrong}");
        }
    }
}
