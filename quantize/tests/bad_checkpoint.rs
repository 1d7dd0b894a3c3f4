//! Checkpoints with one defect each: refused before anything is written, with an error that names the file and the
//! field.

mod common;

use common::Checkpoint;
use quantize::checkpoint::Parts;
use quantize::convert;
use quantize::convert::Understood;
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const UP: &str = "language_model.model.layers.1.mlp.up_proj.weight";

fn siglip(test: &str) -> Checkpoint {
    Checkpoint::new("siglip", test)
}

fn config_refused(test: &str, edit: impl FnOnce(&mut Value), words: &[&str]) {
    let checkpoint = siglip(test);
    checkpoint.edit_json("config.json", edit);
    checkpoint.refused(words);
}

fn tensors_refused(test: &str, edit: impl FnOnce(&mut Value), words: &[&str]) {
    let checkpoint = siglip(test);
    checkpoint.edit_tensors(SINGLE, edit);
    checkpoint.refused(words);
}

#[test]
fn truncated_data() {
    let checkpoint = siglip("truncated_data");
    checkpoint.edit_bytes(SINGLE, |bytes| bytes.truncate(bytes.len() - 100));
    checkpoint.refused(&[SINGLE, "data", "the file is cut short", "bytes of data, there are"]);
}

#[test]
fn truncated_header() {
    let checkpoint = siglip("truncated_header");
    checkpoint.edit_bytes(SINGLE, |bytes| bytes.truncate(1000));
    checkpoint.refused(&[SINGLE, "header length", "in a file of 1000: it is cut short"]);
}

#[test]
fn empty_file() {
    let checkpoint = siglip("empty_file");
    checkpoint.edit_bytes(SINGLE, Vec::clear);
    checkpoint.refused(&[SINGLE, "header length", "cut short: it has 0 bytes"]);
}

/// What `git clone` leaves without Git LFS, and what a server sends that does not have the file.
#[test]
fn something_else_in_a_files_place() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    let page = "\n<!DOCTYPE html><html><body>Sign in</body></html>";
    for name in [SINGLE, "tokenizer.json", "config.json"] {
        for (text, words) in [(pointer, "this is a Git LFS pointer"), (page, "this is a web page")] {
            let checkpoint = siglip("something_else");
            fs::write(checkpoint.folder.join(name), text).unwrap();
            checkpoint.refused(&[name, "contents", words]);
        }
    }
    let checkpoint = siglip("something_else");
    fs::remove_file(checkpoint.folder.join(SINGLE)).unwrap();
    fs::write(checkpoint.folder.join("pytorch_model.bin"), pointer).unwrap();
    checkpoint.refused(&["pytorch_model.bin", "this is a Git LFS pointer", "git lfs pull"]);
}

#[test]
fn trailing_data() {
    let checkpoint = siglip("trailing_data");
    checkpoint.edit_bytes(SINGLE, |bytes| bytes.extend([0; 7]));
    checkpoint.refused(&[SINGLE, "data"]);
}

#[test]
fn lying_header_length() {
    for (i, length) in [u64::MAX, 1 << 40, 200_000_000, 0, 1].into_iter().enumerate() {
        let checkpoint = siglip(&format!("lying_header_length_{i}"));
        checkpoint.edit_bytes(SINGLE, |bytes| bytes[..8].copy_from_slice(&length.to_le_bytes()));
        checkpoint.refused(&[SINGLE, "header"]);
    }
}

#[test]
fn header_is_not_json() {
    let checkpoint = siglip("header_is_not_json");
    checkpoint.edit_header(SINGLE, |header| header.replacen('{', "[", 1));
    checkpoint.refused(&[SINGLE, "header"]);
}

#[test]
fn overlapping_tensors() {
    tensors_refused(
        "overlapping_tensors",
        |header| header[UP]["data_offsets"] = header["connector._connector.weight"]["data_offsets"].clone(),
        &[SINGLE, "header"],
    );
}

#[test]
fn offsets_beyond_the_file() {
    tensors_refused(
        "offsets_beyond_the_file",
        |header| header[UP]["data_offsets"] = json!([u64::MAX - 8, u64::MAX]),
        &[SINGLE, "header"],
    );
}

#[test]
fn backward_offsets() {
    tensors_refused("backward_offsets", |header| header[UP]["data_offsets"] = json!([100, 0]), &[SINGLE, "header"]);
}

#[test]
fn huge_shape() {
    tensors_refused("huge_shape", |header| header[UP]["shape"] = json!([u64::MAX, u64::MAX]), &[SINGLE, "header"]);
}

#[test]
fn shape_does_not_fit_the_data() {
    tensors_refused("shape_does_not_fit_the_data", |header| header[UP]["shape"] = json!([56, 37]), &[SINGLE, "header"]);
}

#[test]
fn shape_does_not_fit_the_configuration() {
    tensors_refused(
        "shape_does_not_fit_the_configuration",
        |header| header[UP]["shape"] = json!([36, 56]),
        &[UP, "expected [56, 36]", "found [36, 56]"],
    );
}

#[test]
fn unknown_dtype() {
    tensors_refused("unknown_dtype", |header| header[UP]["dtype"] = "F33".into(), &[SINGLE, "header", "F33"]);
}

#[test]
fn integers_for_weights() {
    tensors_refused("integers_for_weights", |header| header[UP]["dtype"] = "I32".into(), &[SINGLE, UP, "I32"]);
}

#[test]
fn missing_tensor() {
    tensors_refused(
        "missing_tensor",
        |header| {
            let tensor = header.as_object_mut().unwrap().remove(UP).unwrap();
            header["language_model.model.layers.1.self_attn.rotary_emb.inv_freq"] = tensor;
        },
        &[UP, "is missing"],
    );
}

/// A tensor that no model needs, to be renamed or reshaped.
const NEEDLESS: &str = "vision_tower._vision_tower.vision_model.post_layernorm.bias";

fn rename(header: &mut Value, from: &str, to: &str) {
    let tensor = header.as_object_mut().unwrap().remove(from).unwrap();
    header[to] = tensor;
}

#[test]
fn surplus_tensor() {
    let bias = "language_model.model.layers.1.mlp.up_proj.bias";
    tensors_refused("surplus_tensor", |header| rename(header, NEEDLESS, bias), &[bias, "has no place"]);
}

#[test]
fn absurd_block_numbers() {
    for (i, block) in ["1024", "4294967295", "18446744073709551615"].into_iter().enumerate() {
        let name = format!("vision_tower._vision_tower.vision_model.encoder.layers.{block}.mlp.fc1.bias");
        let words = [name.as_str(), "at most 1024 blocks"];
        tensors_refused(&format!("absurd_block_numbers_{i}"), |header| rename(header, NEEDLESS, &name), &words);
    }
    let edit = |config: &mut Value| config["text_config"]["num_hidden_layers"] = json!(1 << 20);
    config_refused("absurd_number_of_layers", edit, &["config.json", "num_hidden_layers", "at most 1024"]);
}

#[test]
fn what_python_and_editors_write_into_json_does_no_harm() {
    let checkpoint = siglip("foreign_json");
    let good = convert(&checkpoint.options()).unwrap();
    let edit = |file: &str, edit: &dyn Fn(String) -> Vec<u8>| {
        checkpoint.edit_bytes(file, |bytes| *bytes = edit(String::from_utf8(std::mem::take(bytes)).unwrap()));
    };
    let wide = |text: String| ["\u{feff}", &text].concat().encode_utf16().flat_map(u16::to_be_bytes).collect();
    edit("config.json", &|text| {
        text.replacen('{', "\u{feff}{\"final_loss\": NaN, \"bounds\": [-Infinity, Infinity],", 1).into()
    });
    edit("generation_config.json", &wide);
    edit("tokenizer.json", &|text| format!("\u{feff}{text}").into());
    assert_eq!(convert(&checkpoint.options()).unwrap().files, good.files);
    // Manifests are edited by hand too.
    let manifest = checkpoint.output().join("manifest.json");
    fs::write(&manifest, wide(fs::read_to_string(&manifest).unwrap())).unwrap();
    assert_eq!(quantize::files::folder::open_folder(checkpoint.output()).unwrap().0, good);
    fs::remove_dir_all(checkpoint.output()).unwrap();
    edit("config.json", &|text| text.replace("\"rope_theta\": ", "\"rope_theta\": NaN, \"was\": ").into());
    checkpoint.refused(&["config.json", "rope_theta: expected a finite number, found NaN"]);
}

#[test]
fn absurd_dimensions_of_an_empty_tensor() {
    let checkpoint = siglip("absurd_dimensions_of_an_empty_tensor");
    let fc1 = "vision_tower._vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight";
    checkpoint.edit_tensors(SINGLE, |header| {
        let at = header[fc1]["data_offsets"].clone();
        rename(header, fc1, "padding");
        header[fc1] = json!({ "dtype": "F32", "shape": [1u64 << 60, 0], "data_offsets": [at[0], at[0]] });
        rename(header, "padding", NEEDLESS.replace("bias", "other").as_str());
    });
    checkpoint.refused(&[fc1, "expected dimensions from 1"]);
}

#[test]
fn unknown_tensor() {
    tensors_refused(
        "unknown_tensor",
        |header| {
            let tensor = header.as_object_mut().unwrap().remove(UP).unwrap();
            header["resampler.query"] = tensor;
        },
        &["resampler.query", "no part of a Llama3-Med model"],
    );
}

#[test]
fn duplicate_tensor_in_a_file() {
    let checkpoint = siglip("duplicate_tensor_in_a_file");
    checkpoint.edit_header(SINGLE, |header| {
        let value: Value = serde_json::from_str(&header).unwrap();
        format!("{{\"{UP}\":{},{}", value[UP], &header[1..])
    });
    checkpoint.refused(&[SINGLE, "header", UP, "occurs twice"]);
}

#[test]
fn duplicate_tensor_in_two_files() {
    let checkpoint = siglip("duplicate_tensor_in_two_files");
    let connector = checkpoint.folder.join("connector");
    fs::create_dir(&connector).unwrap();
    fs::copy(checkpoint.folder.join(SINGLE), connector.join(SINGLE)).unwrap();
    checkpoint.refused(&["connector._connector.bias", "the tensor is also in"]);
}

#[test]
fn weights_that_are_not_numbers() {
    let checkpoint = siglip("weights_that_are_not_numbers");
    checkpoint.edit_bytes(SINGLE, |bytes| {
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
        let at = data + header[UP]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    checkpoint.refused(&[UP, "expected finite weights, found NaN"]);
}

#[test]
fn no_tensors_at_all() {
    let checkpoint = siglip("no_tensors_at_all");
    fs::remove_file(checkpoint.folder.join(SINGLE)).unwrap();
    checkpoint.refused(&["tensors", "model.safetensors or pytorch_model.bin.index.json"]);
    fs::write(checkpoint.folder.join("pytorch_model.bin"), b"").unwrap();
    checkpoint.refused(&["pytorch_model.bin", "not the zip archive that torch.save writes"]);
}

#[test]
fn index_names_a_file_that_is_not_there() {
    let checkpoint = Checkpoint::new("clip-s2", "index_names_a_file_that_is_not_there");
    checkpoint
        .edit_json(INDEX, |index| index["weight_map"]["language_model.lm_head.weight"] = "gone.safetensors".into());
    checkpoint.refused(&["gone.safetensors", "cannot open"]);
}

#[test]
fn index_names_the_wrong_file() {
    let checkpoint = Checkpoint::new("clip-s2", "index_names_the_wrong_file");
    let name = "language_model.model.embed_tokens.weight";
    checkpoint.edit_json(INDEX, |index| {
        let first = "model-00001-of-00003.safetensors";
        let other = if index["weight_map"][name] == first { "model-00002-of-00003.safetensors" } else { first };
        index["weight_map"][name] = other.into();
    });
    checkpoint.refused(&[INDEX, name, "where the index has it"]);
}

#[test]
fn index_lacks_an_entry() {
    let checkpoint = Checkpoint::new("clip-s2", "index_lacks_an_entry");
    let name = "language_model.model.embed_tokens.weight";
    checkpoint.edit_json(INDEX, |index| {
        index["weight_map"].as_object_mut().unwrap().remove(name);
    });
    checkpoint.refused(&[INDEX, name, "not in the index"]);
}

#[test]
fn index_points_outside_the_folder() {
    for (i, path) in ["../x.safetensors", "/etc/passwd", ".."].into_iter().enumerate() {
        let checkpoint = Checkpoint::new("clip-s2", &format!("index_points_outside_the_folder_{i}"));
        checkpoint.edit_json(INDEX, |index| index["weight_map"]["a"] = path.into());
        checkpoint.refused(&[INDEX, "expected a file name"]);
    }
}

#[test]
fn index_without_a_map() {
    let checkpoint = Checkpoint::new("clip-s2", "index_without_a_map");
    checkpoint.edit_json(INDEX, |index| index["weight_map"] = json!([1, 2]));
    checkpoint.refused(&[INDEX, "weight_map"]);
}

#[test]
fn configuration_is_missing() {
    let checkpoint = siglip("configuration_is_missing");
    fs::remove_file(checkpoint.folder.join("config.json")).unwrap();
    checkpoint.refused(&["config.json", "cannot open"]);
}

#[test]
fn configuration_is_not_json() {
    let checkpoint = siglip("configuration_is_not_json");
    for text in ["", "{", "[1]", "\u{feff}", "{\"a\": 1e999}"] {
        fs::write(checkpoint.folder.join("config.json"), text).unwrap();
        checkpoint.refused(&["config.json"]);
    }
    fs::write(checkpoint.folder.join("config.json"), "[".repeat(1 << 20)).unwrap();
    checkpoint.refused(&["config.json", "JSON"]);
}

#[test]
fn configuration_lacks_a_key() {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
    ] {
        let edit = |config: &mut Value| drop(config["text_config"].as_object_mut().unwrap().remove(key));
        config_refused(&format!("configuration_lacks_{key}"), edit, &["config.json", key, "missing"]);
    }
    config_refused(
        "configuration_lacks_theta",
        |config| drop(config["text_config"]["rope_parameters"].as_object_mut().unwrap().remove("rope_theta")),
        &["config.json", "text_config.rope_theta", "missing"],
    );
    config_refused(
        "configuration_lacks_heads",
        |config| drop(config["vision_config"].as_object_mut().unwrap().remove("num_attention_heads")),
        &["config.json", "vision_config.num_attention_heads", "missing"],
    );
}

#[test]
fn configuration_has_absurd_numbers() {
    for (i, number) in [json!(0), json!(-3), json!(1e30), json!(u64::MAX), json!(2.5), json!("36"), json!([36])]
        .into_iter()
        .enumerate()
    {
        for key in ["hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size"] {
            let words = ["config.json", key, "expected a whole number"];
            let edit = |config: &mut Value| config["text_config"][key] = number.clone();
            config_refused(&format!("configuration_has_absurd_{key}_{i}"), edit, &words);
        }
    }
}

#[test]
fn configuration_contradicts_the_tensors() {
    let cases = [
        ("text_config", "num_hidden_layers", json!(3), "layers.2"),
        ("text_config", "num_hidden_layers", json!(1), "layers.1"),
        ("text_config", "hidden_size", json!(32), "expected"),
        ("text_config", "num_attention_heads", json!(4), "q_proj"),
        ("text_config", "num_key_value_heads", json!(2), "num_key_value_heads"),
        ("text_config", "head_dim", json!(11), "head_dim"),
        ("text_config", "vocab_size", json!(385), "embed_tokens"),
        ("text_config", "tie_word_embeddings", json!(false), "lm_head"),
        ("text_config", "hidden_act", json!("gelu"), "hidden_act"),
        ("text_config", "rms_norm_eps", json!(-1.0), "rms_norm_eps"),
        ("text_config", "rope_theta", json!(0.0), "rope_theta"),
        ("text_config", "rope_scaling", json!({ "rope_type": "yarn" }), "rope_scaling.rope_type"),
        ("text_config", "rope_scaling", json!({ "rope_type": "llama3" }), "low_freq_factor"),
        ("text_config", "model_type", json!("phi"), "model_type"),
        ("vision_config", "image_size", json!(40), "image_size"),
        ("vision_config", "num_hidden_layers", json!(4), "num_hidden_layers"),
        ("vision_config", "num_attention_heads", json!(5), "heads"),
        ("vision_config", "hidden_act", json!("relu"), "hidden_act"),
    ];
    for (i, (section, key, value, word)) in cases.into_iter().enumerate() {
        let edit = |config: &mut Value| config[section][key] = value;
        config_refused(&format!("configuration_contradicts_{i}"), edit, &[word]);
    }
}

#[test]
fn configuration_asks_for_what_is_not_there() {
    let cases = [
        ("model_type", json!("mllama"), "model_type"),
        ("model_type", json!("gpt2"), "model_type"),
        ("connector_type", json!("resampler"), "connector_type"),
        ("connector_type", json!("mlp2x_gelu"), "connector_type"),
        ("vision_feature_layer", json!(-9), "vision_feature_layer"),
        ("vision_feature_layer", json!([1, 2]), "vision_feature_layer"),
        ("vision_feature_select_strategy", json!("cls"), "vision_feature_select_strategy"),
        ("image_aspect_ratio", json!("anyres"), "image_aspect_ratio"),
        ("projector_hidden_act", json!("silu"), "projector_hidden_act"),
    ];
    for (i, (key, value, word)) in cases.into_iter().enumerate() {
        config_refused(&format!("configuration_asks_{i}"), |config| config[key] = value, &["config.json", word]);
    }
}

#[test]
fn scales_that_do_not_fit() {
    for (i, scales) in ["30,60", "30,60,61", "60,120,180", "30,30,60", "30,60,9000000", "x"].into_iter().enumerate() {
        let checkpoint = Checkpoint::new("clip-s2", &format!("scales_that_do_not_fit_{i}"));
        checkpoint.edit_json("config.json", |config| config["s2_scales"] = scales.into());
        checkpoint.refused(&["config.json", "s2_scales"]);
    }
}

#[test]
fn tokenizer_defects() {
    type Edit = fn(&mut Value);
    let cases: [(Edit, &str); 10] = [
        (|json| json["model"]["type"] = "Unigram".into(), "model.type"),
        (|json| json["model"]["vocab"] = json!([]), "vocab"),
        (|json| json["model"]["vocab"]["a"] = json!(-1), "vocab"),
        (|json| json["model"]["vocab"]["a"] = json!(u64::MAX), "vocab"),
        (|json| json["model"]["merges"] = json!({}), "merges"),
        (|json| json["model"]["merges"][0] = json!(["a"]), "merges"),
        (|json| json["added_tokens"] = json!(7), "added_tokens"),
        (|json| json["added_tokens"] = json!([]), ""),
        (|json| json["added_tokens"].as_array_mut().unwrap().retain(|t| t["content"] != "<|eot_id|>"), "<|eot_id|>"),
        (|json| json["added_tokens"][0]["id"] = json!(1_000_000), ""),
    ];
    for (i, (edit, word)) in cases.into_iter().enumerate() {
        let checkpoint = siglip(&format!("tokenizer_defects_{i}"));
        checkpoint.edit_json("tokenizer.json", edit);
        checkpoint.refused(&["tokenizer", word]);
    }
    let checkpoint = siglip("tokenizer_missing");
    fs::remove_file(checkpoint.folder.join("tokenizer.json")).unwrap();
    checkpoint.refused(&["tokenizer.json", "cannot open"]);
}

/// Random bytes changed, removed and duplicated in every file: an answer or an error, quickly, never a panic.
#[test]
fn thousands_of_mutations() {
    let mut state = 1u64;
    let mut random = move |n: usize| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((state >> 33) as usize) % n
    };
    for (golden, file, n) in [
        ("siglip", SINGLE, 1200),
        ("siglip", "config.json", 1200),
        ("siglip", "tokenizer.json", 200),
        ("siglip", "generation_config.json", 100),
        ("clip-s2", INDEX, 300),
    ] {
        let checkpoint = Checkpoint::new(golden, &format!("mutations_{golden}_{file}"));
        let good = fs::read(checkpoint.folder.join(file)).unwrap();
        for _ in 0..n {
            let mut bad = good.clone();
            for _ in 0..=random(3) {
                // Headers are where parsers fail: data bytes are only numbers.
                let at = random(bad.len().min(12_000));
                match random(4) {
                    0 => bad[at] ^= 1 << random(8),
                    1 => bad[at] = b"0123456789-{}[],:\"e\\"[random(20)],
                    2 => drop(bad.drain(at..(at + random(40)).min(bad.len()))),
                    _ => drop(bad.splice(at..at, good[at.min(good.len())..(at + random(40)).min(good.len())].to_vec())),
                }
            }
            fs::write(checkpoint.folder.join(file), &bad).unwrap();
            let case = Instant::now();
            let result = Understood::read(&checkpoint.folder, &Parts::default(), None);
            assert!(case.elapsed() < Duration::from_secs(20), "{file}: {:?}", result.err());
        }
    }
}
