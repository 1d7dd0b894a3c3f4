//! A decoder and an mmproj from llama.cpp's converters (`golden/pair_llama_cpp.py`), unconverted, whole and split, and
//! files that are not a pair.

use crate::golden::{Files, assert_close, folder};
use crate::whole::{QUESTION, Record, greedy, picture};
use llama3med::device::ranks::block_on;
use llama3med::file::gguf::{Dtype, Gguf};
use llama3med::model::session::Chat;
use llama3med::picture::Picture;
use llama3med::text::conversation::Template;
use llama3med::{Error, Result};
use quantize::checkpoint::Parts;
use quantize::files::folder::{Files as ModelFiles, Source, Stored};
use quantize::native::{with_files, with_session};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

fn pair(file: &str) -> PathBuf {
    folder("pair").join(file)
}

/// Ids of the answer, and the logits from which they were chosen.
type Answered = (Vec<u32>, Vec<f32>);

/// A model's greedy answer, about a picture or to the question alone.
fn answer(files: &ModelFiles<Stored>, n_ranks: usize, picture: Option<&Picture>) -> Result<Answered> {
    with_files(files.bytes(), n_ranks, None, None, |session| {
        let (mut record, mut chat) = (Record::default(), Chat::default());
        if let Some(picture) = picture {
            chat = Chat::about(block_on(session.look(picture, &mut record))?.key);
        }
        block_on(session.ask(&mut chat, QUESTION, &greedy(16), &mut record))?;
        Ok((chat.answers().remove(0), record.logits))
    })
}

fn open(decoder: &Path, encoder: &Path) -> Result<ModelFiles<Stored>> {
    let files = ModelFiles { decoder: decoder.into(), encoder: Some(encoder.into()) };
    Ok(Source::Files(files).open()?.1)
}

/// The middle of a picture: a square is the same whether it is cropped, as the checkpoint specifies, or padded, as is
/// assumed for llama.cpp's files.
fn square() -> Picture {
    let whole = picture("llava-vicuna");
    let side = whole.width.min(whole.height);
    let rows = whole.rgb.chunks_exact(3 * whole.width).take(side);
    let rgb = rows.flat_map(|row| &row[..3 * side]).copied().collect();
    Picture::new(side, side, rgb)
}

#[test]
fn a_pair_answers_as_the_same_weights_converted() {
    let source = folder("llava-vicuna");
    let parts = Parts { encoder: Some(source.join("tower")), ..Parts::default() };
    let files = Files::convert_parts(source.join("checkpoint"), parts, Dtype::F32);
    let picture = square();
    let (_, converted) = Source::Folder(files.folder.clone()).open().unwrap();
    let expected = answer(&converted, 1, Some(&picture)).unwrap();
    for file in ["decoder.gguf", "split-00001-of-00003.gguf", "split-00003-of-00003.gguf"] {
        let opened = open(&pair(file), &pair("mmproj.gguf")).unwrap();
        for n_ranks in [1, 2] {
            let found = answer(&opened, n_ranks, Some(&picture)).unwrap();
            assert!(found == expected, "{file}, {n_ranks} ranks: not bit for bit");
        }
    }
    // Our own files of the same model are also such a pair.
    let whole = files.folder.join("whole");
    std::fs::create_dir(&whole).unwrap();
    let [decoder, encoder] =
        [("decoder.gguf", &files.decoder), ("mmproj.gguf", &files.encoder)].map(|(name, bytes)| {
            std::fs::write(whole.join(name), bytes).unwrap();
            whole.join(name)
        });
    let opened = open(&decoder, &encoder).unwrap();
    assert!(answer(&opened, 1, Some(&picture)).unwrap() == expected);
    // Also through the folder, where the manifest names the parts.
    let kept = with_session(&files.folder, 1, None, |session| Ok(session.model().spec().clone())).unwrap();
    assert_eq!(kept.dim, 48);
}

#[test]
fn text_logits_are_llama_cpps() {
    let bytes = std::fs::read(pair("text.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let n_ids = golden.tensor("ids").unwrap().shape()[0];
    let logits = golden.tensor("logits").unwrap();
    let logits: Vec<f32> = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let pair = open(&pair("decoder.gguf"), &pair("mmproj.gguf")).unwrap();
    // The decoder alone is enough for that.
    for files in [open_decoder(), pair] {
        let (n_prompt, found) = with_files(files.bytes(), 1, None, None, |session| {
            let mut record = Record::default();
            let asked = block_on(session.ask(&mut Chat::default(), QUESTION, &greedy(1), &mut record))?;
            Ok((asked.n_prompt, record.logits))
        })
        .unwrap();
        assert_eq!(n_prompt, n_ids);
        assert_close("text alone, against llama.cpp", &found, &logits[logits.len() - found.len()..], 1e-4);
    }
}

fn open_decoder() -> ModelFiles<Stored> {
    ModelFiles { decoder: Stored::open(&pair("decoder.gguf")).unwrap(), encoder: None }
}

#[test]
fn a_decoder_alone_answers_as_with_its_encoder_and_sees_no_pictures() {
    let pair = open(&pair("decoder.gguf"), &pair("mmproj.gguf")).unwrap();
    for n_ranks in [1, 2] {
        assert!(answer(&open_decoder(), n_ranks, None).unwrap() == answer(&pair, n_ranks, None).unwrap());
        // A picture is refused before the other ranks are told, and the session continues.
        let answered = with_files(open_decoder().bytes(), n_ranks, None, None, |session| {
            assert!(session.model().vision().is_none());
            let refused = block_on(session.look(&picture("llava-vicuna"), &mut Record::default()));
            assert_eq!(refused.unwrap_err(), Error::NoVision);
            let mut chat = Chat::default();
            block_on(session.ask(&mut chat, QUESTION, &greedy(16), &mut Record::default()))?;
            Ok(chat.answers().remove(0))
        });
        assert_eq!(answered.unwrap(), answer(&pair, n_ranks, None).unwrap().0);
    }
}

#[test]
fn a_template_may_be_named() {
    let files = open(&pair("decoder.gguf"), &pair("mmproj.gguf")).unwrap();
    let n_prompt = |template: Option<Template>| {
        let asked = with_files(files.bytes(), 1, template, None, |session| {
            block_on(session.ask(&mut Chat::default(), QUESTION, &greedy(1), &mut Record::default()))
        });
        asked.unwrap().n_prompt
    };
    let named = |name: &str| Some(Template::named(name).unwrap());
    assert_eq!(n_prompt(None), n_prompt(named("vicuna")));
    assert!(n_prompt(named("mistral")) < n_prompt(None));
    let missing = with_files(files.bytes(), 1, named("llama3"), None, |session| {
        block_on(session.ask(&mut Chat::default(), QUESTION, &greedy(1), &mut Record::default()))
    });
    let missing = missing.unwrap_err().to_string();
    assert!(
        missing.contains("Llama-3's form of conversations") && missing.contains("no token <|begin_of_text|>"),
        "{missing}"
    );
}

#[test]
fn files_that_are_no_pair_are_named() {
    let (decoder, mmproj) = (pair("decoder.gguf"), pair("mmproj.gguf"));
    let error = |decoder: &Path, encoder: &Path| {
        let error = open(decoder, encoder).err().expect("it is no pair").to_string();
        error.replace(&format!("{}/", folder("pair").display()), "")
    };
    assert!(error(&mmproj, &decoder).contains("mmproj.gguf: general.architecture is \"clip\""));
    assert!(error(&decoder, &decoder).contains("decoder.gguf: general.architecture is \"llama\"; image encoders are"));
    assert!(error(&pair("text.safetensors"), &mmproj).contains("text.safetensors: magic: expected \"GGUF\""));
    assert!(error(&pair("none.gguf"), &mmproj).contains("none.gguf: cannot open"));
    // Parts that lost their names, each other, or their order.
    let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("pair-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    let part = |n: usize| std::fs::read(pair(&format!("split-{n:05}-of-00003.gguf"))).unwrap();
    let put = |name: &str, bytes: &[u8]| {
        std::fs::write(scratch.join(name), bytes).unwrap();
        scratch.join(name)
    };
    let renamed = put("model.gguf", &part(1));
    assert!(error(&renamed, &mmproj).contains("a part of 3 must have a name such as x-00001-of-00003.gguf"));
    let first = put("x-00001-of-00003.gguf", &part(1));
    assert!(error(&first, &mmproj).contains("x-00002-of-00003.gguf: cannot open"));
    put("x-00002-of-00003.gguf", &part(3));
    put("x-00003-of-00003.gguf", &part(2));
    assert!(error(&first, &mmproj).contains("x-00002-of-00003.gguf: split.no: expected part 1 of 3"));
    let cut = part(2);
    put("x-00002-of-00003.gguf", &cut[..cut.len() - 32]);
    put("x-00003-of-00003.gguf", &part(3));
    assert!(error(&first, &mmproj).contains("the file is cut short: the tensor ends at byte"));
    let pointer =
        put("pointer.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4661216384\n");
    assert!(error(&pointer, &mmproj).contains("pointer.gguf: contents: this is a Git LFS pointer"));
    let half = put("half.gguf", &std::fs::read(&decoder).unwrap()[..5000]);
    assert!(error(&half, &mmproj).contains("cut short"));
    std::fs::remove_dir_all(&scratch).unwrap();
    // A single part, given to the engine.
    let bytes = part(2);
    let mut loader =
        llama3med::model::ModelLoader::new(llama3med::device::cpu::Cpu::new(llama3med::device::ranks::Alone));
    let alone = loader.header("decoder.gguf", &bytes, bytes.len() as u64).unwrap_err();
    assert!(alone.to_string().contains("this is part 2 of 3 of a split file"), "{alone}");
}

#[test]
fn encoders_of_other_kinds_are_refused_by_name() {
    let bytes = std::fs::read(pair("mmproj.gguf")).unwrap();
    let lie = |key: &str, value: llama3med::file::gguf::Value| {
        let mut gguf = Gguf::parse("mmproj.gguf", &bytes, bytes.len() as u64).unwrap().unwrap();
        gguf.metadata.insert(key.into(), value);
        llama3med::spec::EncoderSpec::read(&gguf)
    };
    use llama3med::file::gguf::Value::{Bool, String};
    let refused = [
        ("clip.projector_type", String("ldpv2".into()), "clip.projector_type is \"ldpv2\""),
        ("clip.vision.mm_patch_merge_type", String("spatial_unpad".into()), "LLaVA-NeXT"),
        ("clip.use_silu", Bool(true), "clip.use_silu"),
    ];
    for (key, value, expected) in refused {
        let error = lie(key, value).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains(expected), "{error}");
    }
    assert!(lie("clip.vision.mm_patch_merge_type", String("flat".into())).is_ok());
}
