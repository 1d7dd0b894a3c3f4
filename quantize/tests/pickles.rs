//! Files from torch.save: every type and view that it writes, then damaged and malicious archives and pickles.

mod common;

use common::Checkpoint;
use llama3med::Result;
use llama3med::spec::watch::Part;
use quantize::checkpoint::tensor::Tensor;
use quantize::checkpoint::{self, Parts, pickle};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/parts").join(file)
}

fn scratch(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pickles-{test}"));
    fs::create_dir_all(&folder).unwrap();
    folder.join("pytorch_model.bin")
}

fn open(test: &str, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let path = scratch(test);
    fs::write(&path, bytes).unwrap();
    pickle::open(&path)
}

/// An archive in torch.save's layout.
fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn read(tensor: &Tensor) -> Vec<f32> {
    let mut values = Vec::new();
    tensor.read(0..tensor.shape.iter().product(), &mut values).unwrap();
    values
}

#[track_caller]
fn refused<T>(result: Result<T>, words: &[&str]) {
    let error = result.err().expect("it is spoiled").to_string();
    words.iter().for_each(|word| assert!(error.contains(word), "{word:?} is not in {error:?}"));
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn every_type_and_view_is_read() {
    let tensors = pickle::open(&golden("types.bin")).unwrap();
    let values: Vec<f32> = (0..12).map(|i| i as f32 / 3.0 - 1.0).collect();
    let near = |name: &str, bound: f32, factor: f32| {
        let found = read(&tensors[name]);
        assert_eq!((tensors[name].shape.as_slice(), found.len()), ([3, 4].as_slice(), 12), "{name}");
        assert!(found.iter().zip(&values).all(|(a, b)| (a - b * factor).abs() <= bound), "{name}: {found:?}");
    };
    near("f32", 1e-6, 1.0);
    near("f16", 1e-3, 1.0);
    near("bf16", 1e-2, 1.0);
    near("parameter", 1e-6, 2.0);
    assert_eq!(read(&tensors["front"]), (0..8).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(read(&tensors["back"]), (8..20).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!((tensors["scalar"].shape.len(), read(&tensors["scalar"])), (0, vec![0.5]));
    for (name, dtype) in [("f64", "F64"), ("i64", "I64"), ("bool", "BOOL")] {
        refused(tensors[name].check_dtype(), &["types.bin", name, "expected weights in F32, F16 or BF16", dtype]);
    }
    assert_eq!(tensors.len(), 11 - 1, "what is no tensor is left out");
}

const DATA: [u8; 48] = [7; 48];

/// A handwritten pickle of one tensor: `tensor` has the instructions that make it.
fn state(tensor: &[u8]) -> Vec<u8> {
    [b"\x80\x02}(X\x01\0\0\0w".as_slice(), tensor, b"u."].concat()
}

/// The arguments of `torch._utils._rebuild_tensor_v2`: a storage of 12 weights, the offset, the shape and the strides.
fn rebuild(offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let storage = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x0ctQK".as_slice();
    [storage, &[offset], shape, strides, b"\x89ccollections\nOrderedDict\n)RtR"].concat()
}

fn pair(a: u8, b: u8) -> Vec<u8> {
    vec![b'K', a, b'K', b, 0x86]
}

fn with_pickle(test: &str, pickle: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    open(test, &archive(&[("model/data.pkl", pickle), ("model/data/0", &DATA)], CompressionMethod::Stored))
}

#[test]
fn a_pickle_that_was_written_out_is_read() {
    let tensors = with_pickle("written_out", &state(&rebuild(4, &pair(2, 4), &pair(4, 1)))).unwrap();
    assert_eq!(tensors["w"].shape, [2, 4]);
    assert_eq!(read(&tensors["w"]), [f32::from_le_bytes([7; 4]); 8]);
}

#[test]
fn pickles_that_would_run_something_are_refused() {
    let cases: [(&[u8], &str); 6] = [
        (b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.", "os.system"),
        (b"\x80\x02cposix\nsystem\n)R.", "posix.system"),
        (b"\x80\x02c__builtin__\neval\nX\x01\0\0\x001\x85R.", "__builtin__.eval"),
        (b"\x80\x02cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02carg\x1b\nNames\xffpace\n.", "arg\\u{1b}.Names"),
    ];
    for (pickle, word) in cases {
        refused(with_pickle("run_something", pickle), &["data.pkl", "byte", word, "nothing but tensors is read"]);
    }
    // Instructions that reach callables in other ways: INST, OBJ, NEWOBJ, STACK_GLOBAL, EXT1, a text as persistent id.
    for code in [b'i', b'o', 0x81, 0x93, 0x82, b'P', b'I', b'S', 0x8c, 0x94, 0x95] {
        let what = format!("instruction {code:#04x} is not one that torch.save writes");
        refused(with_pickle("run_something", &[0x80, 2, code, 0, 0]), &["data.pkl", &what]);
    }
}

#[test]
fn damaged_pickles() {
    let good = rebuild(0, &pair(3, 4), &pair(4, 1));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "ends in the middle"),
        (b"\x80\x04.".to_vec(), "protocol 2"),
        (b"\x80\x02.".to_vec(), "stack empty"),
        (b"\x80\x02N.".to_vec(), "expected a dictionary of tensors"),
        (b"\x80\x02}.".to_vec(), "no tensor in it"),
        (b"\x80\x02h\x07.".to_vec(), "nothing was kept as 7"),
        (b"\x80\x02t.".to_vec(), "no mark"),
        (b"\x80\x02X\xff\xff\xff\xffabc".to_vec(), "ends in the middle"),
        (b"\x80\x02ctorch".to_vec(), "ends in the middle"),
        (b"\x80\x02}K\x01NK\x02s.".to_vec(), "items for what is no dictionary"),
        (b"\x80\x02}(K\x01u.".to_vec(), "has no value"),
        (b"\x80\x02K\x01Q.".to_vec(), "expected a tuple"),
        (b"\x80\x02)Q.".to_vec(), "expected a storage"),
        (b"\x80\x02K\x01)R.".to_vec(), "cannot be made"),
        (state(&rebuild(1, &pair(3, 4), &pair(4, 1))), "in a storage of 48 bytes"),
        (state(&rebuild(0, &pair(3, 4), &pair(1, 3))), "not contiguous"),
        (state(&rebuild(0, &pair(3, 4), &[b'K', 1, 0x85])), "with strides"),
        (state(&rebuild(0, b"J\xff\xff\xff\xffK\x04\x86", &pair(4, 1))), "a size of -1"),
        (state(&rebuild(0, b"\x8a\x08\0\0\0\0\0\0\0\x40K\x04\x86", &pair(4, 1))), "absurd shape"),
        (state(&rebuild(0, b"NK\x04\x86", &pair(4, 1))), "expected a size"),
        ([b"\x80\x02}(K\x01".as_slice(), &good, b"u."].concat(), "a tensor is named"),
        ([b"\x80\x02}(X\x01\0\0\0w".as_slice(), &good, b"X\x01\0\0\0w", &good, b"u."].concat(), "occurs twice"),
        ([b"\x80\x02}(X\x01\0\0\0\xff".as_slice(), &good, b"u."].concat(), "text at byte"),
    ];
    for (pickle, word) in cases {
        refused(with_pickle("damaged", &pickle), &["pytorch_model.bin", word]);
    }
    let mut other = good;
    let key = other.windows(6).position(|w| w == b"X\x01\0\0\x000").unwrap() + 5;
    other[key] = b'9';
    refused(with_pickle("damaged", &state(&other)), &["w", "storage model/data/9 is missing"]);
}

#[test]
fn deep_and_endless_pickles_are_cheap() {
    let tuples = [b"\x80\x02N".as_slice(), &vec![0x85; 3 << 20], b"."].concat();
    refused(with_pickle("deep", &tuples), &["expected a dictionary"]);
    let marks = [b"\x80\x02".as_slice(), &vec![b'('; 3 << 20], b"."].concat();
    refused(with_pickle("deep", &marks), &["expected a dictionary"]);
    refused(with_pickle("deep", &vec![b'}'; 5 << 20]), &["data.pkl", "at most"]);
}

#[test]
fn damaged_archives() {
    let pickle = state(&rebuild(0, &pair(3, 4), &pair(4, 1)));
    refused(open("archives", b""), &["pytorch_model.bin", "not the zip archive"]);
    refused(open("archives", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."), &["not the zip archive", "newer torch"]);
    refused(open("archives", b"PK\x03\x04"), &["pytorch_model.bin", "zip", "cut short or damaged, after 4 bytes"]);
    let stored = |entries: &[(&str, &[u8])]| archive(entries, CompressionMethod::Stored);
    refused(open("archives", &stored(&[("model/data/0", &DATA)])), &["no data.pkl"]);
    let big = stored(&[("m/data.pkl", &pickle), ("m/byteorder", b"big"), ("m/data/0", &DATA)]);
    refused(open("archives", &big), &["byteorder", "little-endian"]);
    let mut compressed = stored(&[("m/data.pkl", &pickle), ("m/data/0", &DATA)]);
    // The method of the first entry, in the central directory and before its data: 8 is deflate.
    let at = compressed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    (compressed[at + 10], compressed[8]) = (8, 8);
    refused(open("archives", &compressed), &["data.pkl", "neither compressed nor encrypted"]);
}

/// Truncated at many lengths and changed at every byte of the pickle and of the archive's directory: an answer or an
/// error, never a panic.
#[test]
fn cuts_and_changed_bytes() {
    let good = fs::read(golden("types.bin")).unwrap();
    for n in (0..good.len()).step_by(5) {
        assert!(open("cuts", &good[..n]).is_err(), "{n} of {} bytes", good.len());
    }
    for at in (0..1000).chain(good.len() - 1200..good.len()) {
        let mut bad = good.clone();
        bad[at] = bad[at].wrapping_add(1 + (at % 251) as u8);
        if let Ok(tensors) = open("bytes", &bad) {
            tensors.values().filter(|tensor| tensor.check_dtype().is_ok()).for_each(|tensor| drop(read(tensor)));
        }
    }
}

// Parts and adapters -----------------------------------------------------------------------------------------------------

type Edit<'a> = &'a dyn Fn(&mut Value);

const K_PROJ: &str = "layers.0.self_attn.k_proj.weight";

/// A checkpoint whose decoder is to be adapted, with an adapter that a test may damage.
fn adapted(test: &str) -> (Checkpoint, Parts) {
    let checkpoint = Checkpoint::new("siglip", test);
    let adapter = checkpoint.folder.join("adapter");
    fs::create_dir(&adapter).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(golden("adapter").join(file), adapter.join(file)).unwrap();
    }
    let parts = Parts { decoder: Some(golden("decoder")), adapter: Some(adapter), ..Parts::default() };
    (checkpoint, parts)
}

fn weights(checkpoint: &Checkpoint, parts: &Parts, name: &str) -> Vec<f32> {
    let opened = checkpoint::Checkpoint::open(&checkpoint.folder, parts).unwrap();
    read(&opened.tensors[&(Part::Decoder, name.to_owned())])
}

#[test]
fn an_update_is_as_strong_as_its_configuration_says() {
    let (checkpoint, parts) = adapted("strength");
    let base = weights(&checkpoint, &Parts { adapter: None, ..parts.clone() }, K_PROJ);
    let update = |edit: Edit| -> Vec<f32> {
        fs::copy(golden("adapter/adapter_config.json"), checkpoint.folder.join("adapter/adapter_config.json")).unwrap();
        checkpoint.edit_json("adapter/adapter_config.json", edit);
        weights(&checkpoint, &parts, K_PROJ).iter().zip(&base).map(|(a, b)| a - b).collect()
    };
    let stabilised = update(&|_| {});
    assert!(stabilised.iter().any(|x| x.abs() > 0.5));
    // Rank 4: 10 / 2 by the pattern; 10 / 4 without stabilisation; 6 / 2 without the pattern. fan_in_fan_out does not
    // affect linear layers.
    let cases: [(Edit, f32); 3] = [
        (&|config| config["use_rslora"] = json!(false), 2.5 / 5.0),
        (&|config| config["alpha_pattern"] = json!({ "q_proj": 99 }), 3.0 / 5.0),
        (&|config| config["fan_in_fan_out"] = json!(true), 1.0),
    ];
    for (i, (edit, factor)) in cases.into_iter().enumerate() {
        let found = update(edit);
        assert!(found.iter().zip(&stabilised).all(|(a, b)| (a - b * factor).abs() < 1e-5), "case {i}");
    }
}

#[test]
fn adapters_that_do_not_fit() {
    let config: [(&str, Value, &[&str]); 6] = [
        ("peft_type", json!("IA3"), &["peft_type", "LORA"]),
        ("use_dora", json!(true), &["use_dora"]),
        ("lora_alpha", json!(null), &["lora_alpha", "missing"]),
        ("lora_alpha", json!("x"), &["lora_alpha", "a finite number"]),
        ("alpha_pattern", json!({ ".*k_proj": 1 }), &["alpha_pattern", ".*k_proj"]),
        ("alpha_pattern", json!({ "k_proj": "x" }), &["alpha_pattern", "expected a number"]),
    ];
    for (i, (key, value, words)) in config.into_iter().enumerate() {
        let (checkpoint, parts) = adapted(&format!("adapter_config_{i}"));
        checkpoint.edit_json("adapter/adapter_config.json", |config| config[key] = value);
        refused(checkpoint::Checkpoint::open(&checkpoint.folder, &parts), words);
    }
    let (a, b) = (
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight",
    );
    let rename = |header: &mut Value, from: &str, to: &str| {
        let tensor = header.as_object_mut().unwrap().remove(from).unwrap();
        header[to] = tensor;
    };
    let tensors: [(Edit, &[&str]); 5] = [
        (&|header| rename(header, b, "x.lora_B.weight"), &[b, "is missing"]),
        (
            &|header| rename(header, a, &a.replace("lora_A", "lora_embedding_A")),
            &["up_proj.lora_", "expected updates of linear layers"],
        ),
        (&|header| header[a]["shape"] = json!([8, 18]), &["do not multiply to a matrix of"]),
        (&|header| header[b]["dtype"] = json!("I32"), &["expected weights in F32"]),
        (
            &|header| {
                rename(header, a, &a.replace("up_proj", "side_proj"));
                rename(header, b, &b.replace("up_proj", "side_proj"));
            },
            &["side_proj", "no matrix", "--decoder"],
        ),
    ];
    for (i, (edit, words)) in tensors.into_iter().enumerate() {
        let (checkpoint, parts) = adapted(&format!("adapter_tensors_{i}"));
        checkpoint.edit_tensors("adapter/adapter_model.safetensors", edit);
        refused(checkpoint::Checkpoint::open(&checkpoint.folder, &parts), words);
    }
}

#[test]
fn places_without_the_part() {
    let checkpoint = Checkpoint::new("siglip", "places_without_the_part");
    let open = |parts: Parts| checkpoint::Checkpoint::open(&checkpoint.folder, &parts);
    let projector = Some(golden("projector"));
    refused(open(Parts { decoder: projector.clone(), ..Parts::default() }), &["projector", "no language_model in it"]);
    refused(open(Parts { adapter: projector, ..Parts::default() }), &["projector", "adapter_model.safetensors"]);
    let nowhere = Some(golden("nowhere"));
    refused(open(Parts { connector: nowhere.clone(), ..Parts::default() }), &["nowhere", "no connector in it"]);
    refused(open(Parts { encoder: nowhere, ..Parts::default() }), &["nowhere", "no vision_tower in it"]);
}
