//! The command as users and scripts see it: exit codes, one line per error, a streamed answer, Ctrl-C.
#![cfg(unix)]

use safetensors::{Dtype, SafeTensors};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn quantize(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quantize")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn tiny(test: &str, dtype: &str) -> PathBuf {
    let folder = path(&format!("command_{test}"));
    let _ = fs::remove_dir_all(&folder);
    let made = quantize(&["random", "--shape", "tiny", "--type", dtype, "-o", folder.to_str().unwrap()]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    folder
}

/// Writes a small picture without a library: a binary PPM could not be read, but a BMP can.
fn picture(name: &str) -> PathBuf {
    let (width, height) = (40u32, 30u32);
    let n_bytes = 54 + width * height * 3;
    let mut bytes = b"BM".to_vec();
    let header = [n_bytes, 0, 54, 40, width, height, 1 | 24 << 16, 0, 0, 0, 0, 0, 0];
    bytes.extend(header.into_iter().flat_map(u32::to_le_bytes));
    bytes.extend((0..width * height * 3).map(|i| (i * 7 % 251) as u8));
    fs::write(path(name), bytes).unwrap();
    path(name)
}

fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = quantize(args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    // `ask` may have printed progress; the error itself is one line.
    assert!(code != 1 || error.lines().last().is_some_and(|line| line.starts_with("quantize: ")), "{error}");
}

#[test]
fn wrong_arguments_are_explained() {
    fails(&[], 2, &["Usage"]);
    fails(&["convert"], 2, &["CHECKPOINT"]);
    fails(&["random", "--shape", "giant", "-o", "x"], 2, &["giant", "8b-clip-s2"]);
    fails(&["random", "--shape", "tiny", "-o", "x", "--chunk-size", "2G"], 2, &["1 byte to 1G"]);
    fails(&["ask", "x", "--prompt", "x", "--ranks", "0"], 2, &["whole number from 1"]);
    fails(&["random", "--shape", "tiny", "-o", "x", "--type", "q3_k_m"], 2, &["q3_k_m", "q4_k_m"]);
    fails(&["random", "--shape", "tiny", "-o", "x", "--tensor", "(=q8_0"], 2, &["unclosed group"]);
    fails(
        &["random", "--shape", "tiny", "-o", "x", "--tensor", "ffn_dwn=q8_0"],
        1,
        &["no large matrix has such a name"],
    );
    fails(&["convert", "/nowhere", "-o", "x"], 1, &["/nowhere/config.json: cannot open"]);
    fails(&["inspect", "/nowhere"], 1, &["/nowhere: cannot open"]);
    fails(&["ask", "/nowhere", "--prompt", "x"], 1, &["/nowhere/manifest.json: cannot open"]);
    for command in ["convert", "inspect", "ask", "random"] {
        let help = quantize(&[command, "--help"]);
        assert!(help.status.success() && text(&help.stdout).contains("Example"), "{command}");
    }
}

#[test]
fn bad_pictures_and_options_are_named() {
    let folder = tiny("bad_pictures", "q4_0");
    let folder = folder.to_str().unwrap();
    fails(&["ask", folder, "--prompt", "x", "--image", "/nowhere.png"], 1, &["/nowhere.png: cannot open"]);
    let manifest = format!("{folder}/manifest.json");
    fails(&["ask", folder, "--prompt", "x", "--image", &manifest], 1, &[&manifest]);
    fails(&["ask", folder, "--prompt", "x", "--temperature", "NaN"], 1, &["temperature", "NaN"]);
    fails(&["ask", folder, "--prompt", "x", "--context", "10"], 1, &["the context holds 10"]);
}

#[test]
fn a_decoder_alone_can_be_asked() {
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/pair").join(name);
    let (decoder, mmproj) = (file("decoder.gguf"), file("mmproj.gguf"));
    let (decoder, mmproj) = (decoder.to_str().unwrap(), mmproj.to_str().unwrap());
    let ask = ["ask", "--decoder", decoder, "--prompt", "What is this?", "--max-tokens", "8"];
    let alone = quantize(&ask);
    let with_encoder = quantize(&[&ask[..], &["--encoder", mmproj]].concat());
    assert!(alone.status.success() && !alone.stdout.is_empty(), "{}", text(&alone.stderr));
    assert_eq!(alone.stdout, with_encoder.stdout);
    let picture = picture("alone.bmp");
    fails(&[&ask[..], &["--image", picture.to_str().unwrap()]].concat(), 1, &["this model sees no pictures"]);
    fails(&["ask", "--decoder", mmproj, "--prompt", "x"], 1, &["mmproj.gguf: general.architecture is \"clip\""]);
    fails(&["ask", "--encoder", mmproj, "--prompt", "x"], 2, &["--decoder"]);
    let shown = quantize(&["inspect", decoder]);
    assert!(shown.status.success() && text(&shown.stdout).contains("template"), "{}", text(&shown.stdout));
}

#[test]
fn mixtures_and_exceptions_reach_the_files() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/optimus-s2/checkpoint");
    let folder = path("command_types");
    let convert = ["convert", golden.to_str().unwrap(), "-o", folder.to_str().unwrap(), "--type", "q4_k_m"];
    let made = quantize(&[&convert[..], &["--encoder-type", "q8_0", "--tensor", r"^blk\.0\.attn_k=f16"]].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    let shown = quantize(&["inspect", "--json", folder.to_str().unwrap()]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let types = |file: usize| -> Vec<String> {
        shown["files"][file]["types"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, of)| format!("{} {name}", of[0]))
            .collect()
    };
    // Two layers: the last one has more bits, like the output matrix.
    assert_eq!(types(0), ["1 f16", "6 f32", "12 q4_k", "3 q6_k"]);
    assert_eq!(types(1), ["1 f16", "47 f32", "23 q8_0"]);
    let answer = quantize(&["ask", folder.to_str().unwrap(), "--prompt", "x", "--max-tokens", "2"]);
    assert!(answer.status.success(), "{}", text(&answer.stderr));
}

#[test]
fn answers_are_the_same_on_any_number_of_ranks() {
    // In f32: there the order of a sum alone makes no difference that could change a token; 8-bit activations may round
    // the other way.
    let (folder, picture) = (tiny("ranks", "f32"), picture("ranks.bmp"));
    let ask = |ranks: &str| {
        let out = path(&format!("ranks_{ranks}.safetensors"));
        let args = ["ask", folder.to_str().unwrap(), "--image", picture.to_str().unwrap(), "--prompt", "What is this?"];
        let more = ["--max-tokens", "12", "--ranks", ranks, "--logits-out", out.to_str().unwrap()];
        let output = quantize(&[&args[..], &more[..]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        for word in ["encoded 21 tiles", "read ", "answered 12 tokens"] {
            assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
        }
        (output.stdout, fs::read(out).unwrap())
    };
    let (first, stored) = ask("1");
    let tensors = SafeTensors::deserialize(&stored).unwrap();
    let shape = |name: &str| (tensors.tensor(name).unwrap().dtype(), tensors.tensor(name).unwrap().shape().to_vec());
    assert_eq!(shape("features"), (Dtype::F32, vec![64, 288]));
    assert_eq!(shape("image_tokens"), (Dtype::F32, vec![64, 192]));
    assert_eq!(shape("logits"), (Dtype::F32, vec![12, 512]));
    assert_eq!(shape("tokens"), (Dtype::I64, vec![12]));
    for ranks in ["2", "4"] {
        let (answer, other) = ask(ranks);
        assert_eq!(answer, first, "{ranks} ranks");
        let other = SafeTensors::deserialize(&other).unwrap();
        assert_eq!(other.tensor("tokens").unwrap().data(), tensors.tensor("tokens").unwrap().data());
    }
}

#[test]
fn ctrl_c_stops_the_answer() {
    let folder = tiny("ctrl_c", "f32");
    // The most likely tokens soon repeat for ever; tokens drawn at random would end the answer before the signal arrives.
    let mut child = Command::new(env!("CARGO_BIN_EXE_quantize"))
        .args(["ask", folder.to_str().unwrap(), "--prompt", "x", "--max-tokens", "1900", "--allow-repetition"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(": stopped"), "{}", text(&output.stderr));
}
