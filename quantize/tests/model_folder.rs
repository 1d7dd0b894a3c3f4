//! Model folders: chunks that form the file, repeated and interrupted runs, folders that are not models.

mod common;

use common::Checkpoint;
use llama3med::device::quant::dequantize;
use llama3med::file::gguf::{Dtype, Gguf};
use llama3med::file::manifest::{DECODER, ENCODER, Manifest};
use quantize::checkpoint::Parts;
use quantize::commands::inspect;
use quantize::convert;
use quantize::convert::Understood;
use quantize::convert::random;
use quantize::files::folder::{Writer, open_folder};
use quantize::files::plan::Unwritten;
use std::fs;
use std::path::{Path, PathBuf};

fn whole(folder: &Path, name: &str) -> Vec<u8> {
    let (manifest, files) = open_folder(folder).unwrap();
    let (_, stored) = files.named().find(|(other, _)| *other == name).unwrap();
    stored.verify(manifest.file(name).unwrap()).unwrap();
    stored.read(0..stored.size()).unwrap()
}

fn tensor(bytes: &[u8], name: &str) -> Vec<f32> {
    let gguf = Gguf::parse("x", bytes, bytes.len() as u64).unwrap().unwrap();
    let info = gguf.tensor(name).unwrap();
    let mut values = vec![0.0; info.n_rows * info.n_cols];
    dequantize(info.dtype, &bytes[info.offset as usize..][..info.n_bytes() as usize], &mut values);
    values
}

#[test]
fn files_that_are_never_written_read_the_same() {
    let checkpoint = Checkpoint::new("clip-s2", "unwritten");
    convert(&checkpoint.options()).unwrap();
    let understood = Understood::read(&checkpoint.folder, &Parts::default(), None).unwrap();
    let plans = understood.plans("checkpoint", &Dtype::Q4_0.into(), None).unwrap();
    for (name, unwritten) in plans.map(Unwritten::from).named() {
        let written = whole(checkpoint.output(), name);
        assert_eq!(unwritten.size(), written.len() as u64);
        for piece in [7919, 1 << 20] {
            let ranges = (0..written.len()).step_by(piece).map(|start| start..(start + piece).min(written.len()));
            for range in ranges {
                let read = unwritten.read(range.start as u64..range.end as u64).unwrap();
                assert!(read == written[range.clone()], "{name}: {range:?}");
            }
        }
    }
}

#[test]
fn chunks_of_any_size_make_up_the_same_file() {
    let checkpoint = Checkpoint::new("clip-s2", "chunks");
    let mut files = Vec::new();
    for chunk_size in [1 << 20, 10_007, 64] {
        convert(&quantize::Options { chunk_size, ..checkpoint.options() }).unwrap();
        files.push([DECODER, ENCODER].map(|name| whole(checkpoint.output(), name)));
    }
    assert!(files.iter().all(|file| file == &files[0]));
}

#[test]
fn weights_arrive_where_they_belong() {
    let checkpoint = Checkpoint::new("optimus-s2", "weights");
    convert(&quantize::Options { types: Dtype::F32.into(), ..checkpoint.options() }).unwrap();
    let source = |folder: &str, name: &str| {
        let tensors =
            quantize::checkpoint::safetensors::open(&checkpoint.folder.join(folder).join("model.safetensors"));
        let tensor = tensors.unwrap().into_iter().find(|(found, _)| found.ends_with(name)).unwrap().1;
        let mut values = Vec::new();
        tensor.read(0..tensor.shape.iter().product(), &mut values).unwrap();
        values
    };
    let encoder = whole(checkpoint.output(), ENCODER);
    let qkv: Vec<f32> =
        ["q", "k", "v"].iter().flat_map(|part| tensor(&encoder, &format!("v.blk.1.attn_{part}.weight"))).collect();
    assert_eq!(qkv, source("vision_tower", "blocks.1.attn.qkv.weight"));
    let fc1: Vec<f32> =
        ["gate", "up"].iter().flat_map(|part| tensor(&encoder, &format!("v.blk.2.ffn_{part}.bias"))).collect();
    assert_eq!(fc1, source("vision_tower", "blocks.2.mlp.fc1.bias"));
    // Width 256, heads of 64: rows 0 and 32 of a head become its rows 0 and 1.
    let (q, hf) = (
        tensor(&whole(checkpoint.output(), DECODER), "blk.1.attn_q.weight"),
        source("language_model", "layers.1.self_attn.q_proj.weight"),
    );
    let row = |values: &[f32], row: usize| values[row * 256..(row + 1) * 256].to_vec();
    for (new, old) in [(0, 0), (1, 32), (2, 1), (63, 63), (64, 64), (65, 96)] {
        assert_eq!(row(&q, new), row(&hf, old), "row {new}");
    }
}

#[test]
fn the_first_patch_is_dropped_on_demand_alone() {
    let siglip = Checkpoint::new("siglip", "first_patch");
    let n_image_tokens = |drop_first_patch| {
        convert(&quantize::Options { drop_first_patch, ..siglip.options() }).unwrap();
        inspect::inspect(siglip.output(), false).unwrap().encoder.unwrap().n_image_tokens
    };
    assert_eq!((n_image_tokens(false), n_image_tokens(true)), (49, 48));
    let clip = Checkpoint::new("clip-s2", "first_patch_clip");
    let error = convert(&quantize::Options { drop_first_patch: true, ..clip.options() }).unwrap_err().to_string();
    assert!(error.contains("drop-first-patch"), "{error}");
}

#[test]
fn a_run_can_be_repeated_and_clears_up_after_an_interrupted_one() {
    let checkpoint = Checkpoint::new("siglip", "repeated");
    let partial = checkpoint.output().with_file_name("model.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("decoder.gguf.000"), b"half").unwrap();
    convert(&checkpoint.options()).unwrap();
    assert!(!partial.exists());
    let first = whole(checkpoint.output(), DECODER);
    // The second run, with smaller chunks, leaves none of the first run's files.
    convert(&quantize::Options { chunk_size: 50_000, ..checkpoint.options() }).unwrap();
    assert_eq!(whole(checkpoint.output(), DECODER), first);
    let n_chunks: usize = open_folder(checkpoint.output()).unwrap().0.files.iter().map(|file| file.chunks.len()).sum();
    assert_eq!(fs::read_dir(checkpoint.output()).unwrap().count(), n_chunks + 1);
}

#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    let checkpoint = Checkpoint::new("clip-s2", "interrupted");
    let options = || quantize::Options { chunk_size: 30_000, ..checkpoint.options() };
    let (output, partial) = (checkpoint.output(), checkpoint.output().with_file_name("model.partial"));
    let expected = convert(&options()).unwrap();
    let chunks = |manifest: &Manifest| manifest.file(DECODER).unwrap().chunks.clone();
    let n_chunks = chunks(&expected).len();
    assert!(n_chunks > 3);
    // Kills a run after the first `n_left` chunks; the first of them is marked so that it can be recognised.
    let kill = |n_left: usize, source: Option<&str>| {
        let understood = Understood::read(&checkpoint.folder, &Parts::default(), None).unwrap();
        let plans = understood.plans("checkpoint", &Dtype::Q4_0.into(), None).unwrap();
        let source = source.map_or_else(|| understood.source(None), String::from);
        let mut writer = Writer::create(output, 30_000, &plans, source.as_bytes()).unwrap();
        writer.write(DECODER, &plans.decoder).unwrap();
        std::mem::forget(writer);
        for idx in n_left..n_chunks {
            fs::remove_file(partial.join(format!("decoder.gguf.{idx:03}"))).unwrap();
        }
        fs::write(partial.join(format!("decoder.gguf.{n_left:03}")), b"half").unwrap();
        fs::write(partial.join(format!("decoder.gguf.{n_left:03}.new")), b"half").unwrap();
        let first = fs::read(partial.join("decoder.gguf.000")).unwrap();
        fs::write(partial.join("decoder.gguf.000"), [b"GGUX", &first[4..]].concat()).unwrap();
    };
    for n_left in [1, 2, n_chunks - 1] {
        kill(n_left, None);
        let manifest = convert(&options()).unwrap();
        assert!(!partial.exists() && whole(output, DECODER).starts_with(b"GGUX"));
        assert_eq!(chunks(&manifest)[1..], chunks(&expected)[1..]);
        assert_eq!(manifest.file(ENCODER), expected.file(ENCODER));
        assert_eq!(fs::read_dir(output).unwrap().count(), n_chunks + expected.file(ENCODER).unwrap().chunks.len() + 1);
    }
    // Chunks from other weights, or of another size, are not reused.
    kill(2, Some("another checkpoint"));
    assert_eq!(convert(&options()).unwrap().files, expected.files);
    kill(2, None);
    convert(&checkpoint.options()).unwrap();
    assert!(whole(output, DECODER).starts_with(b"GGUF"));
}

#[test]
#[cfg(unix)]
fn a_run_that_failed_goes_on_where_it_was() {
    use std::os::unix::fs::MetadataExt;
    let checkpoint = Checkpoint::new("clip-s2", "failed");
    let partial = checkpoint.output().with_file_name("model.partial");
    let sample = |name: &str| quantize::About {
        samples: vec![serde_json::from_value(serde_json::json!({"path": name, "alt": "A film"})).unwrap()],
        pictures: vec![checkpoint.folder.join(name)],
        ..Default::default()
    };
    let options = |name: &str| quantize::Options { chunk_size: 30_000, about: sample(name), ..checkpoint.options() };
    // An older model stays until the new one is complete.
    convert(&checkpoint.options()).unwrap();
    let older = whole(checkpoint.output(), DECODER);
    // The very last step fails: a picture that existed when the run began is gone.
    fs::create_dir(checkpoint.folder.join("gone.png")).unwrap();
    let error = convert(&options("gone.png")).unwrap_err().to_string();
    assert!(error.contains("gone.png: cannot copy"), "{error}");
    assert_eq!(whole(checkpoint.output(), DECODER), older);
    let inode = |folder: &Path| fs::metadata(folder.join("decoder.gguf.000")).unwrap().ino();
    let kept = inode(&partial);
    fs::write(checkpoint.folder.join("film.png"), b"a picture").unwrap();
    convert(&options("film.png")).unwrap();
    assert_eq!(inode(checkpoint.output()), kept, "the chunk was written once");
    assert_eq!(whole(checkpoint.output(), DECODER), older);
    assert!(!partial.exists() && !checkpoint.output().with_file_name("model.old").exists());
    // Of the failed run, only its chunks are in the model: it can be replaced again.
    convert(&options("film.png")).unwrap();
    // A run that has not done anything leaves nothing.
    fs::remove_file(checkpoint.folder.join("film.png")).unwrap();
    convert(&quantize::Options { chunk_size: 1 << 30, ..options("film.png") }).unwrap_err();
    assert!(!partial.exists());
}

/// The run's system calls, in order, as reported by strace; nothing if there is no usable strace.
#[cfg(target_os = "linux")]
fn system_calls(args: &[&str], log: &Path) -> Option<Vec<String>> {
    let strace = |args: &[&str]| {
        std::process::Command::new("strace").args(args).output().ok().filter(|ran| ran.status.success())
    };
    strace(&["-o", "/dev/null", "true"])?;
    let watch = ["-f", "-y", "-e", "trace=fsync,rename,renameat,renameat2", "-o", log.to_str().unwrap()];
    strace(&[&watch[..], &[env!("CARGO_BIN_EXE_quantize")], args].concat()).expect("the conversion goes well");
    Some(fs::read_to_string(log).unwrap().lines().map(String::from).collect())
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_renamed_is_on_the_disk() {
    let checkpoint = Checkpoint::new("siglip", "flushed");
    let (folder, output) = (checkpoint.folder.to_str().unwrap(), checkpoint.output().to_str().unwrap());
    let args = ["convert", folder, "-o", output, "--chunk-size", "100000"];
    let Some(calls) = system_calls(&args, &checkpoint.output().with_file_name("calls")) else { return };
    let place = |words: &[&str]| calls.iter().position(|call| words.iter().all(|word| call.contains(word)));
    let chunks =
        fs::read_dir(checkpoint.output()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let chunks: Vec<String> = chunks.collect();
    let all_flushed = place(&["fsync(", "model.partial>"]).expect("the folder of chunks is flushed");
    let in_place = place(&["rename", "model.partial\"", "model\""]).expect("the folder is put in its place");
    for chunk in &chunks {
        let (flushed, renamed) =
            (place(&["fsync(", &format!("/{chunk}.new>")]), place(&["rename", &format!("/{chunk}.new\"")]));
        let (flushed, renamed) = (flushed.expect(chunk), renamed.expect(chunk));
        assert!(flushed < renamed && renamed < in_place, "{chunk}: {calls:#?}");
    }
    let last_flush =
        calls[..in_place].iter().rposition(|call| call.contains("fsync(") && call.contains("model.partial>"));
    assert!(all_flushed < in_place && last_flush > place(&["rename", "manifest.json.new"]), "{calls:#?}");
    assert!(calls[in_place..].iter().any(|call| call.contains("fsync(") && call.contains("flushed>")), "{calls:#?}");
}

#[test]
fn what_is_not_a_model_is_not_overwritten() {
    let checkpoint = Checkpoint::new("siglip", "not_overwritten");
    let message = || convert(&checkpoint.options()).unwrap_err().to_string();
    fs::create_dir(checkpoint.output()).unwrap();
    fs::write(checkpoint.output().join("thesis.txt"), b"the only copy").unwrap();
    assert!(message().contains("something else than a model"), "{}", message());
    fs::remove_file(checkpoint.output().join("thesis.txt")).unwrap();
    convert(&checkpoint.options()).unwrap();
    fs::write(checkpoint.output().join("thesis.txt"), b"the only copy").unwrap();
    assert!(message().contains("also holds thesis.txt"), "{}", message());
    assert_eq!(fs::read(checkpoint.output().join("thesis.txt")).unwrap(), b"the only copy");
    fs::remove_dir_all(checkpoint.output()).unwrap();
    fs::write(checkpoint.output(), b"a file").unwrap();
    assert!(message().contains("not a folder"), "{}", message());
}

#[test]
fn damaged_chunks_are_named() {
    let folder = random_tiny("damaged");
    let chunk = folder.join("encoder.gguf.000");
    let mut bytes = fs::read(&chunk).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&chunk, &bytes).unwrap();
    inspect::inspect(&folder, false).unwrap();
    let error = inspect::inspect(&folder, true).unwrap_err().to_string();
    assert!(error.contains("encoder.gguf.000: sha256"), "{error}");
    fs::write(&chunk, &bytes[..100]).unwrap();
    let error = open_folder(&folder).err().unwrap().to_string();
    assert!(error.contains("encoder.gguf.000: size"), "{error}");
    fs::remove_file(&chunk).unwrap();
    let error = open_folder(&folder).err().unwrap().to_string();
    assert!(error.contains("encoder.gguf.000: cannot open"), "{error}");
}

#[test]
fn seeds_make_models() {
    let bytes = |seed, name: &str| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        random::random(&random::Options { seed, ..random::Options::new("tiny", &folder) }).unwrap();
        whole(&folder, DECODER)
    };
    let first = bytes(1, "seed_a");
    assert_eq!(first, bytes(1, "seed_b"));
    assert_ne!(first, bytes(2, "seed_c"));
    let error = random::random(&random::Options::new("huge", "x")).unwrap_err().to_string();
    assert!(error.contains("shape must be one of tiny, 1b"), "{error}");
}

#[test]
fn inspect_tells_shapes_of_all_three_kinds() {
    let folder = random_tiny("inspected");
    let report = inspect::inspect(&folder, true).unwrap();
    let encoder = report.encoder.as_ref().unwrap();
    assert_eq!((encoder.scales.as_slice(), encoder.n_tiles, encoder.n_image_tokens), (&[64, 128, 256][..], 21, 64));
    assert_eq!((report.kind, report.decoder.as_ref().unwrap().n_layers), ("model folder", 6));
    assert!(report.memory.windows(2).all(|pair| pair[0].weights > pair[1].weights));
    serde_json::to_string(&report).unwrap();
    let file = folder.join("decoder.gguf.000");
    let report = inspect::inspect(&file, false).unwrap();
    assert_eq!((report.kind, report.encoder.is_none()), ("GGUF file", true));
    let checkpoint = Checkpoint::new("optimus-s2", "inspected_checkpoint");
    let report = inspect::inspect(&checkpoint.folder, false).unwrap();
    assert_eq!((report.kind, report.encoder.as_ref().unwrap().n_registers), ("checkpoint", 4));
    assert!(report.to_string().contains("21,63,126: 46 tiles, 9 image tokens"), "{report}");
}

#[test]
fn inspect_tells_a_pair_of_llama_cpps() {
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/pair").join(name);
    for decoder in ["decoder.gguf", "split-00002-of-00003.gguf"] {
        let report = inspect::inspect_pair(&file(decoder), &file("mmproj.gguf")).unwrap();
        let (shape, encoder) = (report.decoder.as_ref().unwrap(), report.encoder.as_ref().unwrap());
        assert_eq!((report.kind, report.name.as_str(), shape.n_layers), ("GGUF pair", "small LLaVA", 2));
        assert!(shape.template.contains("USER: ") && shape.template.contains("ASSISTANT:"), "{}", shape.template);
        assert_eq!((encoder.family, encoder.n_image_tokens, encoder.fit.as_str()), ("CLIP", 16, "pad"));
    }
    let error = inspect::inspect_pair(&file("decoder.gguf"), &file("decoder.gguf")).unwrap_err().to_string();
    assert!(error.contains("image encoders are \"clip\""), "{error}");
}

fn random_tiny(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tiny_{test}"));
    let _ = fs::remove_dir_all(&folder);
    random::random(&random::Options::new("tiny", &folder)).unwrap();
    folder
}
