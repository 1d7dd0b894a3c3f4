//! What users are told about a model: sample pictures are copied into the folder, defects are named, flags override the
//! file.

use llama3med::file::manifest::{ENCODER, Manifest};
use quantize::About;
use quantize::convert::random;
use quantize::files::folder::open_folder;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with about.json and the pictures film.png and more/slice.png.
struct Files {
    root: PathBuf,
}

impl Files {
    fn new(test: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("about_{test}"));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("more")).unwrap();
        let files = Self { root };
        for (golden, picture) in [("clip-s2", "film.png"), ("optimus-s2", "more/slice.png")] {
            fs::write(files.root.join(picture), Self::picture(golden)).unwrap();
        }
        files
    }

    fn picture(golden: &str) -> Vec<u8> {
        let path = format!("../tests/golden/{golden}/picture.png");
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    fn about(&self, about: &Value) -> PathBuf {
        let path = self.root.join("about.json");
        fs::write(&path, about.to_string()).unwrap();
        path
    }

    fn model(&self) -> PathBuf {
        self.root.join("model")
    }

    fn make(&self, about: About) -> Manifest {
        random::random(&random::Options { about, ..random::Options::new("tiny", self.model()) }).unwrap();
        open_folder(&self.model()).unwrap().0
    }

    fn refused(&self, about: &Value, words: &[&str]) {
        let error = About::read(&self.about(about)).expect_err("the file is spoiled").to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
        assert!(!error.contains('\n'), "{error}");
    }
}

fn sample(path: &str) -> Value {
    json!({ "path": path, "alt": "A picture", "questions": ["What is this?"] })
}

#[test]
fn samples_come_with_the_model_and_go_with_it() {
    let files = Files::new("samples");
    let about = json!({ "name": "n", "license": "MIT", "samples": [sample("film.png"), sample("more/slice.png")] });
    let about = About::read(&files.about(&about)).unwrap();
    let manifest = files.make(about.clone());
    assert_eq!((manifest.name.as_str(), manifest.license.as_str()), ("n", "MIT"));
    assert!(manifest.description.starts_with("Random weights"), "what the file leaves out is filled in as ever");
    let samples: Vec<Value> = manifest.samples.iter().map(|sample| serde_json::to_value(sample).unwrap()).collect();
    assert_eq!(samples, [sample("film.png"), sample("slice.png")]);
    assert_eq!(fs::read(files.model().join("film.png")).unwrap(), Files::picture("clip-s2"));
    assert_eq!(fs::read(files.model().join("slice.png")).unwrap(), Files::picture("optimus-s2"));
    // The pictures belong to the model: a new model replaces them, with samples or without.
    files.make(about);
    files.make(About::default());
    assert!(!files.model().join("film.png").exists());
}

#[test]
fn every_defect_is_named() {
    let files = Files::new("defects");
    for name in ["two words.png", "Manifest.JSON", "encoder.gguf.000", "FILM.PNG"] {
        fs::write(files.root.join(name), Files::picture("clip-s2")).unwrap();
    }
    fs::write(files.root.join("broken.png"), &Files::picture("clip-s2")[..40]).unwrap();
    let samples = |paths: &[&str]| json!({ "samples": paths.iter().map(|path| sample(path)).collect::<Vec<_>>() });
    files.refused(&json!({ "surprise": 1 }), &["about.json: JSON: unknown field `surprise`"]);
    files.refused(&json!({ "questions": [] }), &["about.json: JSON: unknown field `questions`", "suggested_questions"]);
    files.refused(&json!({ "samples": [{ "path": "film.png" }] }), &["about.json: JSON: missing field `alt`"]);
    files.refused(&json!({ "name": 7 }), &["about.json: JSON", "expected a string"]);
    files.refused(&samples(&["film.png", "none.png"]), &["none.png: cannot open"]);
    files.refused(&samples(&["more"]), &["more: cannot"]);
    files.refused(&samples(&["broken.png"]), &["image", "broken.png"]);
    files.refused(&samples(&["about.json"]), &["image", "about.json"]);
    files.refused(&samples(&["two words.png"]), &["about.json: samples: two words.png: expected a file name of"]);
    for own in ["Manifest.JSON", &format!("{ENCODER}.000")] {
        files.refused(&samples(&[own]), &["about.json: samples", own, "the model itself"]);
    }
    for other in ["film.png", "more/../film.png", "FILM.PNG"] {
        files.refused(&samples(&["film.png", other]), &["about.json: samples", other, "another sample"]);
    }
    let error = About::read(&files.root.join("none.json")).unwrap_err().to_string();
    assert!(error.contains("none.json: cannot open"), "{error}");
}

#[test]
fn flags_go_before_the_file() {
    let files = Files::new("flags");
    let about = files.about(&json!({
        "name": "file", "description": "file", "license": "file", "notices": ["file"], "suggested_questions": ["file?"],
        "samples": [sample("film.png")],
    }));
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
    command.args(["random", "--shape", "tiny", "-o"]).arg(files.model()).arg("--about").arg(about);
    assert!(command.output().unwrap().status.success());
    let found = open_folder(&files.model()).unwrap().0;
    assert_eq!([&found.name, &found.description, &found.license], ["file"; 3]);
    assert_eq!((found.notices, found.suggested_questions), (vec!["file".to_owned()], vec!["file?".to_owned()]));
    command.args(["--name", "flag", "--license", "flag", "--notice", "a", "--notice", "b", "--question", "c"]);
    assert!(command.output().unwrap().status.success());
    let found = open_folder(&files.model()).unwrap().0;
    assert_eq!([&found.name, &found.description, &found.license], ["flag", "file", "flag"]);
    assert_eq!((found.notices, found.suggested_questions), (vec!["a".to_owned(), "b".into()], vec!["c".to_owned()]));
    assert_eq!(found.samples.len(), 1);
}

/// `make demo` writes exactly what is in the repository, so that the site needs no native tool.
#[test]
fn the_demo_model_is_made_from_its_checkpoint() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo");
    let path = |name: &str| demo.join(name).into_os_string().into_string().unwrap();
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("about_demo_model");
    let _ = fs::remove_dir_all(&made);
    let (checkpoint, about, out) = (path("checkpoint"), path("about.json"), made.to_str().unwrap());
    for args in [
        &["convert", &checkpoint, "--type", "q4_0", "--about", &about, "-o", out][..],
        &["compare", out, &checkpoint, "--write"],
    ] {
        let run = Command::new(env!("CARGO_BIN_EXE_quantize")).args(args).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&made), names(&demo.join("model")));
    for name in names(&made) {
        let is_same = fs::read(made.join(&name)).unwrap() == fs::read(demo.join("model").join(&name)).unwrap();
        assert!(is_same, "demo/model/{} is another file than the tool makes: run `make demo`", name.display());
    }
}
