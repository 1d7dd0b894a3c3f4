//! Pre-tokenizers: how byte-level vocabularies split a text into words, within which tokens are merged. One table has
//! those of Llama-shaped checkpoints, by llama.cpp's names (`tokenizer.ggml.pre`).
//!
//! The regular expressions are those of the original tokenizers, so the ids are what a model was trained on. llama.cpp
//! gives the same ids, except that it does not compose characters (NFC), recognises only Latin capitals and no marks
//! (`tekken`, `gpt-4o`), and keeps digits together (`deepseek-llm`, whose vocabulary has no multi-digit tokens anyway).

use serde_json::{Value, json};

/// A row of the table.
pub struct Split {
    /// llama.cpp's names, the most common first.
    pub names: &'static [&'static str],
    /// Regular expressions, applied one after the other: both a match and the text between two matches become words.
    steps: &'static [&'static str],
    /// Whether characters are composed first (Unicode NFC).
    nfc: bool,
    /// Whether a word that is a token is used as it is, regardless of the merges.
    pub ignore_merges: bool,
}

/// Llama-3's words.
pub const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Letters of alphabets with capitals.
const DEEPSEEK_LETTERS: &str = "\\s?[\
    A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\
    \u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\
    \u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\
    \u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\
    \u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\
    \u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\
    \u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\
    \u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\
    \u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\
    \u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+";
const DEEPSEEK_SIGNS: &str = "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
const DEEPSEEK_CJK: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const BLOOM: &str = " ?[^(\\s|[.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c}])]+";
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const THREE_DIGITS: &str = r"\p{N}{1,3}";

static TABLE: [Split; 18] = [
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        steps: &[LLAMA3],
        nfc: false,
        ignore_merges: true,
    },
    Split { names: &["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], steps: &[LLAMA3], nfc: false, ignore_merges: false },
    Split {
        names: &["gpt-2", "phi-2", "jais", "trillion", "gigachat", "a.x-4.0", "mellum", "exaone4", "granite-docling"],
        steps: &[GPT2],
        nfc: false,
        ignore_merges: false,
    },
    Split { names: &["mpt", "olmo"], steps: &[GPT2], nfc: true, ignore_merges: false },
    Split {
        names: &["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"],
        steps: &[DIGIT, GPT2],
        nfc: false,
        ignore_merges: false,
    },
    Split { names: &["command-r"], steps: &[DIGIT, GPT2], nfc: true, ignore_merges: false },
    Split { names: &["tekken"], steps: &[TEKKEN], nfc: false, ignore_merges: true },
    Split { names: &["qwen2"], steps: &[QWEN2], nfc: true, ignore_merges: false },
    Split {
        names: &["stablelm2", "deepseek-r1-qwen", "megrez", "kormo", "hunyuan", "solar-open", "grok-2"],
        steps: &[QWEN2],
        nfc: false,
        ignore_merges: false,
    },
    Split {
        names: &["deepseek-llm"],
        steps: &["[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_SIGNS, r"\s+$", DEEPSEEK_CJK, DIGIT],
        nfc: false,
        ignore_merges: false,
    },
    Split {
        names: &["deepseek-coder"],
        steps: &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT],
        nfc: false,
        ignore_merges: false,
    },
    Split {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        steps: &[THREE_DIGITS, "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+", DEEPSEEK_V3],
        nfc: false,
        ignore_merges: false,
    },
    Split { names: &["gpt-4o", "llama4", "kanana2"], steps: &[GPT4O], nfc: false, ignore_merges: false },
    Split { names: &["seed-coder"], steps: &[SEED_CODER], nfc: false, ignore_merges: false },
    Split { names: &["minicpm5"], steps: &[THREE_DIGITS, MINICPM5], nfc: false, ignore_merges: true },
    Split { names: &["poro-chat", "bloom", "gpt3-finnish"], steps: &[BLOOM], nfc: false, ignore_merges: false },
    Split { names: &["viking"], steps: &[BLOOM, DIGIT], nfc: false, ignore_merges: false },
    // llama.cpp's default, for files whose converter did not know the tokenizer.
    Split {
        names: &["default"],
        steps: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, DIGITS, "[0-9][0-9][0-9]"],
        nfc: false,
        ignore_merges: false,
    },
];

impl Split {
    /// The pre-tokenizer of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TABLE.iter().find(|split| split.names.contains(&name))
    }

    /// All names, for errors.
    pub fn names() -> String {
        let names: Vec<&str> = TABLE.iter().flat_map(|split| split.names).copied().collect();
        names.join(", ")
    }

    /// llama.cpp's name for the steps of a tokenizer.json, if it has one.
    pub fn name_of(normalizer: &Value, pre_tokenizer: &Value, ignore_merges: bool) -> Option<&'static str> {
        let mut steps = Vec::new();
        flatten(pre_tokenizer, &mut steps)?;
        let same = |split: &&Split| split.steps == steps && split.nfc == (normalizer["type"] == "NFC");
        // llama.cpp's name also implies whether merges are ignored, but the steps matter more.
        let found = TABLE.iter().filter(same).min_by_key(|split| split.ignore_merges != ignore_merges);
        found.map(|split| split.names[0])
    }

    /// The normalizer of a tokenizer.json.
    pub(super) fn normalizer(&self) -> Value {
        if self.nfc { json!({ "type": "NFC" }) } else { Value::Null }
    }

    /// The pre-tokenizer of a tokenizer.json: the splitting steps, then bytes as letters.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let step = |regex: &&str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        json!({ "type": "Sequence", "pretokenizers": self.steps.iter().map(step).chain([bytes]).collect::<Vec<_>>() })
    }
}

/// The expressions of a tokenizer.json's pre-tokenizer, however they are written; `None` if there is another kind of
/// step.
fn flatten<'a>(json: &'a Value, steps: &mut Vec<&'a str>) -> Option<()> {
    match json["type"].as_str()? {
        "Sequence" => json["pretokenizers"].as_array()?.iter().try_for_each(|step| flatten(step, steps))?,
        "Split" if json["behavior"] == "Isolated" && json["invert"] == false => {
            steps.push(json["pattern"]["Regex"].as_str()?);
        }
        "Digits" => steps.push(if json["individual_digits"] == true { DIGIT } else { DIGITS }),
        "ByteLevel" if json["add_prefix_space"] == true => return None,
        "ByteLevel" if json["use_regex"] != false => steps.push(GPT2),
        "ByteLevel" => {}
        _ => return None,
    }
    Some(())
}
