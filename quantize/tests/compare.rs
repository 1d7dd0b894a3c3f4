//! Models compared with the unquantized ones that they were made from.

use llama3med::Error;
use llama3med::file::gguf::Dtype;
use quantize::commands::inspect;
use quantize::convert::random;
use quantize::convert::types::Types;
use quantize::files::folder::{open_folder, write_manifest};
use quantize::measure::calibrate;
use quantize::measure::compare::{Options, Report, compare};
use quantize::{About, convert};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo")
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("compare_{name}"))
}

fn converted(name: &str, types: impl Into<Types>) -> PathBuf {
    let options = quantize::Options::new(demo().join("checkpoint"), path(name));
    let about = About::read(&demo().join("about.json")).unwrap();
    convert(&quantize::Options { types: types.into(), about, ..options }).unwrap();
    path(name)
}

fn options(model: &Path, reference: &Path) -> Options {
    Options {
        model: model.into(),
        reference: reference.into(),
        prompts: None,
        images: None,
        limit: Some(3),
        max_tokens: 8,
        write: false,
        json: false,
        ranks: Some(2),
        parts: Default::default(),
        scales: None,
        drop_first_patch: false,
    }
}

fn measure(options: &Options) -> Report {
    compare(options, &AtomicBool::new(false)).unwrap()
}

#[test]
fn a_model_is_as_close_to_its_checkpoint_as_its_types_allow() {
    let (q4_0, q8_0, f32) =
        (converted("q4_0", Dtype::Q4_0), converted("q8_0", Dtype::Q8_0), converted("f32", Dtype::F32));
    let checkpoint = demo().join("checkpoint");
    let reports = [&f32, &q8_0, &q4_0].map(|model| measure(&options(model, &checkpoint)));
    println!("{}", reports.iter().map(Report::to_string).collect::<String>());
    let errors = reports.each_ref().map(|report| report.fidelity.layer_errors[4]);
    // The checkpoint is f16: in f32 nothing is lost, and the same kernel adds in the same order.
    assert!(errors[0] < 1e-6 && errors[0] < errors[1] && errors[1] < errors[2], "{errors:?}");
    assert!((0.01..0.15).contains(&errors[2]) && errors[1] < 0.03, "{errors:?}");
    let [_, q8_0, q4_0] = &reports;
    assert!(q8_0.fidelity.kl_divergence <= q4_0.worst_kl_divergence && q4_0.fidelity.kl_divergence < 0.05);
    assert!(q4_0.fidelity.top1_agreement > 0.9 && q4_0.fidelity.encoder_error.unwrap() < 0.15);
    let fidelity = &q4_0.fidelity;
    assert_eq!((fidelity.reference.as_str(), fidelity.n_prompts, fidelity.n_images), ("checkpoint, f16", 3, 1));
}

#[test]
fn calibration_weights_what_prompts_meet() {
    let prompts = path("prompts.txt");
    fs::write(
        &prompts,
        "Is the heart enlarged?\nGive a full report.\nWhat does the picture show?\nWhere are the septal lines?\n",
    )
    .unwrap();
    let calibrated = |name: &str, prompts: &Path| {
        let calibration = calibrate::Options { prompts: prompts.into(), images: Some(demo().join("samples")) };
        let options = quantize::Options::new(demo().join("checkpoint"), path(name));
        let types = Dtype::Q4_0.into();
        convert(&quantize::Options { calibration: Some(calibration), types, ..options }).map(|_| path(name))
    };
    let (plain, weighted) = (converted("plain", Dtype::Q4_0), calibrated("weighted", &prompts).unwrap());
    let held_out = path("held_out.txt");
    fs::write(&held_out, "On which side is the bleed?\nWhat colour is the stain?\nHow many fine dots are there?\n")
        .unwrap();
    let errors = [plain, weighted].map(|model| {
        let (images, prompts) = (Some(demo().join("samples")), Some(held_out.clone()));
        let options = Options { images, prompts, limit: None, ..options(&model, &demo().join("checkpoint")) };
        let report = measure(&options);
        println!("{report}");
        (report.fidelity.layer_errors[4], report.fidelity.encoder_error.unwrap())
    });
    assert!(errors[1].0 < errors[0].0 && errors[1].1 < errors[0].1, "{errors:?}");
    let error = calibrated("nothing", Path::new("/nowhere.txt")).unwrap_err().to_string();
    assert!(error.contains("/nowhere.txt: cannot open") && !path("nothing").exists(), "{error}");
}

#[test]
fn a_model_beside_itself_is_the_same_and_its_card_stays() {
    let folder = path("itself");
    random::random(&random::Options { types: Dtype::Q4_0.into(), ..random::Options::new("tiny", &folder) }).unwrap();
    let images = demo().join("samples");
    let report = measure(&Options { images: Some(images), write: true, ..options(&folder, &folder) });
    let fidelity = report.fidelity;
    assert_eq!((fidelity.kl_divergence, fidelity.top1_agreement, fidelity.encoder_error), (0.0, 1.0, Some(0.0)));
    assert_eq!((fidelity.layer_errors.as_slice(), fidelity.n_prompts, fidelity.n_images), ([0.0; 6].as_slice(), 3, 3));
    assert_eq!(open_folder(&folder).unwrap().0.fidelity, Some(fidelity));
    let shown = inspect::inspect(&folder, true).unwrap().to_string();
    assert!(shown.contains("tokens as Random weights (tiny), q4_0, KL divergence 0.0000"), "{shown}");
    // Nothing else is left in the folder, so it may be overwritten by a conversion.
    random::random(&random::Options::new("tiny", &folder)).unwrap();
    assert_eq!(open_folder(&folder).unwrap().0.fidelity, None);
}

#[test]
fn strangers_are_told_apart() {
    let (demo_model, tiny) = (converted("strangers", Dtype::Q4_0), path("stranger"));
    random::random(&random::Options::new("tiny", &tiny)).unwrap();
    let error = compare(&options(&demo_model, &tiny), &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("the models do not belong together") && error.contains("for \""), "{error}");
    let stopped = compare(&options(&tiny, &tiny), &AtomicBool::new(true));
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let mut manifest = open_folder(&tiny).unwrap().0;
    manifest.name = "x".into();
    write_manifest(&tiny, &manifest).unwrap();
    assert_eq!(
        fs::read_dir(&tiny).unwrap().filter(|e| e.as_ref().unwrap().path().ends_with("manifest.json.new")).count(),
        0
    );
}
