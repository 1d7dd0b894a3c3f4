//! `quantize eval` and `quantize score` as users and scripts see them: formats, resumption, control runs, one clear
//! error for each bad input.
#![cfg(unix)]

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn quantize(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quantize")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A separate folder for a test, with a tiny model and pictures of different content.
struct Place {
    folder: PathBuf,
}

impl Place {
    fn new(test: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("eval_{test}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("images/1")).unwrap();
        let place = Self { folder };
        for (number, name) in ["0.png", "1/source.png", "2.jpg", "3.png"].into_iter().enumerate() {
            fs::write(place.folder.join("images").join(name), bmp(number as u32)).unwrap();
        }
        place
    }

    fn with_model(test: &str) -> Self {
        let place = Self::new(test);
        let made = quantize(&["random", "--shape", "tiny", "-o", &place.path("model")]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        place
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.folder.join(name), content).unwrap();
        self.path(name)
    }

    fn lines(&self, name: &str, values: &[Value]) -> String {
        self.write(name, values.iter().map(|value| format!("{value}\n")).collect::<String>())
    }

    fn eval(&self, questions: &str, more: &[&str]) -> Output {
        let (model, questions, images) = (self.path("model"), self.path(questions), self.path("images"));
        let short: &[&str] = if more.contains(&"--max-tokens") { &[] } else { &["--max-tokens", "3"] };
        quantize(&[&["eval", &model, "--questions", &questions, "--images", &images], short, more].concat())
    }

    /// The report and the answers of a successful run.
    fn report(&self, questions: &str, more: &[&str]) -> (Value, Vec<Value>) {
        let answers = self.path("answers.jsonl");
        let _ = fs::remove_file(&answers);
        let output = self.eval(questions, &[&["--json", "-o", &answers], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        (serde_json::from_slice(&output.stdout).unwrap(), read_lines(&answers))
    }

    /// One line of error with these words.
    fn fails(&self, output: &Output, words: &[&str]) {
        let error = text(&output.stderr).lines().last().unwrap_or_default();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with("quantize: ") && output.stdout.is_empty(), "{error}");
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    }
}

fn read_lines(path: &str) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A picture of 40 by 30 pixels; writing a BMP needs no library.
fn bmp(seed: u32) -> Vec<u8> {
    let (width, height) = (40u32, 30u32);
    let header = [54 + width * height * 3, 0, 54, 40, width, height, 1 | 24 << 16, 0, 0, 0, 0, 0, 0];
    let pixels = (0..width * height * 3).map(|i| (i * (7 + 2 * seed) % (251 - 40 * seed)) as u8);
    b"BM".iter().copied().chain(header.into_iter().flat_map(u32::to_le_bytes)).chain(pixels).collect()
}

fn llava(id: impl Into<Value>, image: &str, answer_type: &str, question: &str, answer: &str) -> Value {
    let turns = json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}]);
    json!({"id": id.into(), "image": image, "answer_type": answer_type, "conversations": turns})
}

/// Questions about three pictures in turn, so that the work is done in another order.
fn sample(place: &Place) -> Vec<Value> {
    let images = ["0.png", "1/source.png", "3.png"];
    let mut questions: Vec<Value> = (0..6)
        .map(|i| {
            let (kind, answer) = if i % 2 == 0 { ("OPEN", "left lung") } else { ("CLOSED", "yes") };
            let mut question = llava(i, images[i % 3], kind, &format!("What is {i}?\n<image>"), answer);
            question["scale"] = json!(["coarse", "fine"][i / 3]);
            question
        })
        .collect();
    questions[5]["id"] = json!("last");
    place.write("test.json", json!(questions).to_string());
    questions
}

#[test]
fn a_set_is_asked_and_scored() {
    let place = Place::with_model("whole");
    let questions = sample(&place);
    let (report, answers) = place.report("test.json", &[]);
    assert_eq!(answers.len(), 6);
    for (answer, question) in answers.iter().zip(&questions) {
        assert_eq!(answer["question_id"], question["id"]);
        assert_eq!(answer["metadata"]["image"], question["image"]);
        assert_eq!(answer["metadata"]["finish"], "length");
        for key in ["prompt", "text", "answer_id", "model_id"] {
            assert!(answer[key].is_string(), "{answer}");
        }
    }
    assert_eq!(answers[4]["prompt"], "What is 4?");
    // The same engine with the same prompt as `ask`.
    let image = place.path("images/1/source.png");
    let model = place.path("model");
    let asked = quantize(&["ask", &model, "--image", &image, "--prompt", "What is 4?", "--max-tokens", "3"]);
    assert_eq!(text(&asked.stdout).trim(), answers[4]["text"].as_str().unwrap());
    assert_eq!(report["n_questions"], 6);
    assert_eq!(report["protocol"]["name"], "llama3med");
    assert_eq!((&report["strict"]["open"]["n"], &report["strict"]["closed yes/no"]["n"]), (&json!(3), &json!(3)));
    assert_eq!(report["breakdown"]["scale"]["fine"]["closed"]["n"], 2);
    assert_eq!((&report["run"]["n_cut"], &report["run"]["control"]), (&json!(6), &json!("none")));
    assert!(report["notes"][0].as_str().unwrap().starts_with("1 candidates"), "{report}");
    // Scored again by itself, the file gives the same result.
    let (answers, truth) = (place.path("answers.jsonl"), place.path("test.json"));
    let scored = quantize(&["score", &answers, "--truth", &truth, "--json"]);
    let scored: Value = serde_json::from_slice(&scored.stdout).unwrap();
    for key in ["protocol", "strict", "breakdown"] {
        assert_eq!(scored[key], report[key]);
    }
    // As text, without saving anything, for the first questions only.
    let output = place.eval("test.json", &["--limit", "2", "--protocol", "medtrinity"]);
    for word in [
        "protocol medtrinity: 1 open and 1 closed",
        "strict",
        "by scale",
        "coarse, closed",
        "the first 2 of 6",
        "as they stand",
    ] {
        assert!(text(&output.stdout).contains(word), "{}", text(&output.stdout));
    }
}

#[test]
fn an_interrupted_run_goes_on() {
    let place = Place::with_model("resume");
    sample(&place);
    let (report, _) = place.report("test.json", &[]);
    let path = place.path("answers.jsonl");
    let whole = fs::read(&path).unwrap();
    let again = || {
        let output = place.eval("test.json", &["--json", "-o", &path]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), report);
        text(&output.stderr).to_owned()
    };
    assert!(!again().contains("to ask"));
    // Truncated in the last line: in its first bytes, just before its end, and only by the last byte.
    let last = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
    for (n_bytes, n_left) in
        [(last + 40, 1), (last + 1, 1), (whole.len() - 2, 1), (whole.len() - 1, 0), (last, 1), (0, 6), (20, 6)]
    {
        fs::write(&path, &whole[..n_bytes]).unwrap();
        let said = again();
        assert_eq!(said.contains("is torn"), n_left > 0 && n_bytes != last && n_bytes > 0, "{n_bytes}: {said}");
        assert_eq!(said.contains(&format!("{n_left} questions to ask, {} answered", 6 - n_left)), n_left > 0, "{said}");
    }
    // Answers beyond the limit are kept, whatever their order.
    let mut lines: Vec<&str> = text(&whole).lines().collect();
    lines.reverse();
    fs::write(&path, lines.join("\n\n")).unwrap();
    let output = place.eval("test.json", &["--limit", "2", "-o", &path]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read(&path).unwrap(), whole);
    // Answers made with other settings are not mixed in.
    for (more, words) in [
        (vec!["--max-tokens", "4"], ["line 1", "max_tokens: expected 4, as in this run, found 3"]),
        (vec!["--blank"], ["line 1", "control: expected \"blank\""]),
        (vec!["--closed-suffix"], ["line 2", "prompt: expected"]),
    ] {
        place.fails(&place.eval("test.json", &[&["-o", &path], &more[..]].concat()), &words);
    }
    let foreign = place.lines("foreign.jsonl", &[json!({"question_id": 0, "text": "yes"})]);
    place.fails(
        &place.eval("test.json", &["-o", &foreign]),
        &["foreign.jsonl: line 1: model_id: expected", "found nothing"],
    );
    let unknown = place.lines("unknown.jsonl", &[json!({"question_id": 17, "text": "yes"})]);
    place.fails(&place.eval("test.json", &["-o", &unknown]), &["line 1: question_id: expected an id of", "found 17"]);
    // A file of another kind is unchanged, even if it lacks a final newline.
    let other = place.write("other.json", "[{\"id\": 1,");
    place.fails(&place.eval("test.json", &["-o", &other]), &["other.json: line 1: expected a JSON object"]);
    assert_eq!(fs::read_to_string(other).unwrap(), "[{\"id\": 1,");
}

#[test]
fn ctrl_c_ends_after_the_current_question() {
    let place = Place::with_model("ctrl_c");
    let questions: Vec<Value> = (0..60).map(|i| llava(i, "0.png", "OPEN", "What?", "x")).collect();
    let (file, answers) = (place.write("test.json", json!(questions).to_string()), place.path("answers.jsonl"));
    let args = ["eval", &place.path("model"), "--questions", &file, "--images", &place.path("images"), "-o", &answers];
    let mut child = Command::new(env!("CARGO_BIN_EXE_quantize"));
    let child = child.args(args).args(["--max-tokens", "200"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while fs::metadata(&answers).map_or(0, |file| file.len()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(120), "no answer comes");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let n_answers = read_lines(&answers).len();
    assert!((1..60).contains(&n_answers), "{n_answers}");
    let said = format!("stopped: {n_answers} of 60 answers are in {answers}; the same command goes on");
    assert!(text(&output.stderr).contains(&said), "{}", text(&output.stderr));
}

#[test]
fn every_format_is_read() {
    let place = Place::with_model("formats");
    let counts = |report: &Value| {
        (report["protocol"]["n_open"].as_u64().unwrap(), report["protocol"]["n_closed"].as_u64().unwrap())
    };
    let rad = |qid: Value, kind: &str, answer: Value, phrase: &str| json!({"qid": qid, "image_name": "0.png", "question": "Is it?", "answer": answer, "answer_type": kind, "question_type": "PRES", "phrase_type": phrase});
    let (open, closed) =
        (rad(json!("1"), "OPEN", json!(3), "test_para"), rad(json!("2"), "CLOSED ", json!("Yes"), "test_freeform"));
    place.write("rad.json", json!([rad(json!("0"), "OPEN", json!("x"), "freeform"), open, closed]).to_string());
    let (report, answers) = place.report("rad.json", &["--closed-suffix"]);
    assert_eq!(counts(&report), (1, 1));
    assert_eq!(report["breakdown"]["question_type"]["PRES"]["open"]["majority_answer"], "3");
    assert_eq!(answers[0]["prompt"], "Is it?");
    assert_eq!(answers[1]["prompt"], "Is it? Please choose from the following two options: [yes, no]");
    assert!(report["notes"].to_string().contains("2 of 3 records: phrase_type test_*"), "{report}");
    assert!(report["notes"].to_string().contains("[yes, no]"), "{report}");

    let slake = |qid: u32, language: &str| {
        json!({"img_name": "1/source.png", "question": "Which organ?", "answer": "Liver", "q_lang": language, "answer_type": "OPEN",
            "content_type": "Organ", "modality": "CT", "location": "Abdomen", "qid": qid})
    };
    place.write("slake.json", json!([slake(1, "zh"), slake(2, "en"), slake(3, "en")]).to_string());
    let (report, answers) = place.report("slake.json", &["--limit", "1", "--closed-suffix=Say yes or no."]);
    assert_eq!((counts(&report), &answers[0]["question_id"]), ((1, 0), &json!(2)));
    assert!(report["breakdown"]["question_type"]["Organ"].is_object());

    let path = |image: &str, answer: &str| json!({"image": image, "question": "Is it?", "answer": answer});
    place.lines("path.jsonl", &[path("2", "no"), path("3", "liver")]);
    let (report, answers) = place.report("path.jsonl", &["--protocol", "llava-med-pvqa"]);
    assert_eq!((counts(&report), &answers[1]["question_id"]), ((1, 1), &json!(1)));

    let mut typo = llava(7, "0.png", "OPEN", "<image>\nWhat?", "x");
    typo["conversatons"] = typo.as_object_mut().unwrap().remove("conversations").unwrap();
    place.lines("typo.jsonl", &[typo]);
    let (report, answers) = place.report("typo.jsonl", &["--protocol", "llava-med"]);
    assert_eq!((counts(&report), &answers[0]["prompt"]), ((1, 0), &json!("What?")));

    let question = json!({"question_id": 7, "image": "0.png", "text": "What?\n<image>", "answer_type": "OPEN"});
    place.lines("questions.jsonl", &[question]);
    let truth = place.path("typo.jsonl");
    let (with_truth, same) = place.report("questions.jsonl", &["--truth", &truth]);
    assert_eq!((counts(&with_truth), &same[0]["text"]), ((1, 0), &answers[0]["text"]));
    let kept = place.path("kept.jsonl");
    let output = place.eval("questions.jsonl", &["-o", &kept]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stderr));
    assert_eq!(read_lines(&kept)[0]["text"], answers[0]["text"]);
    place.fails(&place.eval("questions.jsonl", &[]), &["expected true answers", "--truth", "-o"]);
}

#[test]
fn controls_show_other_pictures() {
    let place = Place::with_model("controls");
    let images = ["0.png", "1/source.png", "2.jpg", "3.png"];
    let ask = |i: usize, image: &str| llava(i, image, "OPEN", "What?", "x");
    let questions: Vec<Value> = images.iter().enumerate().map(|(i, image)| ask(i, image)).collect();
    place.write("test.json", json!(questions).to_string());
    let (_, seen) = place.report("test.json", &[]);
    let (report, blank) = place.report("test.json", &["--blank"]);
    assert!(blank.iter().all(|answer| answer["text"] == blank[0]["text"]));
    assert!(report["notes"].to_string().contains("control run: the model saw grey pictures"));
    let (report, shuffled) = place.report("test.json", &["--shuffle"]);
    assert_eq!(report["run"]["control"], "shuffle");
    for (answer, image) in shuffled.iter().zip(images) {
        let shown = &answer["metadata"]["image"];
        assert_ne!(shown, image);
        let place = images.iter().position(|image| shown == image).unwrap();
        assert_eq!(answer["text"], seen[place]["text"]);
    }
    // The other picture does not depend on the number of questions asked.
    assert_eq!(place.report("test.json", &["--shuffle", "--limit", "2"]).1, shuffled[..2]);
    place.write("test.json", json!([ask(0, "0.png")]).to_string());
    place.fails(&place.eval("test.json", &["--shuffle"]), &["test.json: --shuffle: expected two different pictures"]);
}

#[test]
fn bad_questions_are_named() {
    let place = Place::with_model("bad_questions");
    let good = llava(1, "0.png", "OPEN", "What?", "x");
    let refused = |content: &str, words: &[&str]| {
        place.write("test.json", content);
        place.fails(&place.eval("test.json", &[]), &[&["test.json"], words].concat());
    };
    let with = |key: &str, value: Value| {
        let mut question = good.clone();
        question[key] = value;
        question.to_string()
    };
    refused("", &["records: expected a JSON array or one JSON object a line, found none"]);
    refused("[]", &["found none"]);
    refused("[{]", &["JSON: ", "line 1 column 3"]);
    refused(&format!("{good}\n{{\"id\": 2,\n"), &["line 2: expected a JSON object: ", "column 9"]);
    refused(&format!("{good}\n3\n"), &["line 2: expected a JSON object, found 3"]);
    refused(&format!("[{good}, null]"), &["record 2: expected a JSON object, found null"]);
    refused("{\"a\": 1}", &["line 1: expected the keys of a known format", "found a"]);
    refused("{\"img_name\": \"0.png\", \"q_lang\": \"zh\"}", &["expected some with q_lang en, found none"]);
    refused(&with("id", Value::Null), &["line 1: id is missing: expected a text or a whole number", "conversations"]);
    refused(&with("id", json!(1.5)), &["line 1: id: expected a text or a whole number, found 1.5"]);
    refused(&with("image", json!(["0.png"])), &["line 1: image: expected a text, found [\"0.png\"]"]);
    refused(&with("image", Value::Null), &["line 1: image is missing: expected the path of the picture"]);
    refused(&with("answer_type", json!("X")).replace("\"X\"", "NaN"), &["answer_type: expected OPEN", "found NaN"]);
    refused(&format!("[{good}, {}]", with("id", json!("1"))), &["record 2: expected each id once, found \"1\" again"]);
    refused(&with("conversations", json!([])), &["line 1: conversations: expected a list of a question and an answer"]);
    refused(&with("conversations", json!("x")), &["line 1: conversations: expected a list"]);
    refused(
        &with("answer_type", json!("open")),
        &["answer_type: expected OPEN, CLOSED, other, number or yes/no, found \"open\""],
    );
    refused(&with("answer_type", Value::Null), &["line 1: answer_type is missing", "medtrinity"]);
    refused(&with("image", json!("9.png")), &["line 1: image: expected the file", "images/9.png, found none"]);
    refused(&format!("[{good}, {good}]"), &["record 2: expected each id once, found 1 again, the id of record 1"]);
    refused(
        "{\"qid\": 1, \"image_name\": \"0.png\", \"question\": \"x\", \"answer\": \"y\"}",
        &["line 1: answer_type is missing"],
    );
    refused("\u{0}\u{1}", &["line 1: expected a JSON object"]);
    fs::write(place.folder.join("test.json"), b"{\"id\": \"\xff\"}").unwrap();
    place.fails(&place.eval("test.json", &[]), &["line 1: expected a JSON object"]);
    place.fails(&place.eval("nowhere.json", &[]), &["nowhere.json: cannot open"]);
    place.write("images/0.png", "no picture");
    place.write("test.json", good.to_string());
    place.fails(&place.eval("test.json", &[]), &["images/0.png"]);
    place.write("images/0.png", bmp(0));
    place.fails(&place.eval("test.json", &["--context", "70"]), &["test.json: line 1", "the context holds 70"]);
    place.fails(&place.eval("test.json", &["--temperature", "NaN"]), &["temperature", "NaN"]);
    let truth = place.write("truth.json", with("id", json!(2)));
    place.fails(&place.eval("test.json", &["--truth", &truth]), &["line 1: expected an id of", "truth.json, found 1"]);
    let output = place.eval("test.json", &["--blank", "--shuffle"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn scoring_needs_no_pictures_and_takes_ids_as_they_come() {
    let place = Place::new("no_pictures");
    let without_image = |mut question: Value| {
        question.as_object_mut().unwrap().remove("image");
        question
    };
    let rad = |id: Value| json!({"qid": id, "question": "Is it?", "answer": "yes", "answer_type": "CLOSED"});
    let slake =
        |id: Value| json!({"qid": id, "q_lang": "en", "question": "Is it?", "answer": "yes", "answer_type": "CLOSED"});
    let files = [
        ("llava", [0, 1].map(|id| without_image(llava(id, "", "CLOSED", "Is it?", "yes")))),
        ("rad", [0, 1].map(|id| rad(json!(id)))),
        ("slake", [0, 1].map(|id| slake(json!(id)))),
        ("path", [0, 1].map(|_| json!({"question": "Is it?", "answer": "yes"}))),
    ];
    let answers = place.lines("answers.jsonl", &["0", "1"].map(|id| json!({"question_id": id, "text": "Yes."})));
    for (name, questions) in files {
        let truth = place.write(&format!("{name}.json"), json!(questions).to_string());
        for protocol in ["llama3med", "medtrinity"] {
            let output = quantize(&["score", &answers, "--truth", &truth, "--protocol", protocol, "--json"]);
            assert!(output.status.success(), "{name}: {}", text(&output.stderr));
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let closed = &report["strict"]["closed yes/no"];
            assert_eq!((&closed["n"], &closed["accuracy"]), (&json!(2), &json!(100.0)), "{name}: {report}");
            assert!(!report["notes"].to_string().contains("left out"), "{report}");
        }
    }
}

#[test]
fn marks_and_numbers_of_other_programs_do_no_harm() {
    let place = Place::new("foreign_json");
    let wide = |text: &str| {
        "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect::<Vec<u8>>()
    };
    let truth: String = (0..2)
        .map(|id| format!("{}\n", llava(id, "0.png", "OPEN", "What?", "Ödem")).replacen('{', "{\"age\":NaN,", 1))
        .collect();
    let answers: String =
        (0..2).map(|id| format!("{{\"question_id\":{id},\"text\":\"Ödem\",\"loss\":-Infinity}}\n")).collect();
    let candidates = "[\"Ödem\", \"Erguss\"]";
    let mark = |text: &str| format!("\u{feff}{text}").into_bytes();
    let encodings: [fn(&str) -> Vec<u8>; 3] = [|text| text.into(), mark, wide];
    let reports = encodings.map(|encode| {
        let [truth, answers, candidates] =
            [("truth.jsonl", &*truth), ("answers.jsonl", &answers), ("candidates.json", candidates)]
                .map(|(name, content)| place.write(name, encode(content)));
        let output = quantize(&["score", &answers, "--truth", &truth, "--candidates", &candidates, "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    });
    assert!(reports[0] == reports[1] && reports[0] == reports[2], "{reports:?}");
    let report: Value = serde_json::from_str(&reports[0]).unwrap();
    assert_eq!(report["strict"]["open"]["accuracy"], 100.0);
    let answers = place.write("answers.jsonl", "{\"question_id\":0,\"text\":NaN}");
    let output = quantize(&["score", &answers, "--truth", &place.path("truth.jsonl")]);
    place.fails(&output, &["answers.jsonl: line 1: text: expected a text, found NaN"]);
}

#[test]
fn an_unreadable_picture_ends_nothing() {
    let place = Place::with_model("unreadable");
    let questions = sample(&place);
    let (_, whole) = place.report("test.json", &[]);
    place.write("images/3.png", "no picture");
    let (report, answers) = place.report("test.json", &[]);
    let is_kept = |&i: &usize| questions[i]["image"] != "3.png";
    assert_eq!(answers, (0..6).filter(is_kept).map(|i| whole[i].clone()).collect::<Vec<_>>());
    assert_eq!((&report["n_questions"], &report["run"]["n_asked"]), (&json!(4), &json!(4)));
    assert_eq!((&report["run"]["n_unreadable_pictures"], &report["run"]["n_unasked"]), (&json!(1), &json!(2)));
    assert!(
        report["notes"].to_string().contains("1 pictures could not be read, 2 questions about them are left out"),
        "{report}"
    );
    // Also reported when it happens, and asked as soon as the picture is repaired; earlier answers stay.
    let path = place.path("answers.jsonl");
    let output = place.eval("test.json", &["-o", &path]);
    let said = text(&output.stderr);
    assert!(said.contains("images/3.png") && said.contains("; 2 questions about it are left out"), "{said}");
    assert!(text(&output.stdout).contains("note: 1 pictures could not be read"), "{}", text(&output.stdout));
    // A missing picture is treated in the same way, and is known before anything is asked.
    fs::remove_file(place.folder.join("images/3.png")).unwrap();
    let output = place.eval("test.json", &["-o", &path]);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("2 questions to ask, 2 of them without their picture"), "{said}");
    place.write("images/3.png", bmp(3));
    let output = place.eval("test.json", &["-o", &path]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(read_lines(&path), whole);
    // Answers are not added to a file in another encoding.
    let wide: Vec<u8> = "\u{feff}{".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let wide = place.write("wide.jsonl", wide);
    place.fails(&place.eval("test.json", &["-o", &wide]), &["wide.jsonl: text: it is UTF-16"]);
}

#[test]
fn bad_answers_are_named() {
    let place = Place::new("bad_answers");
    let questions: Vec<Value> = (1..4).map(|id| llava(id, "0.png", "OPEN", "What?", "x")).collect();
    let truth = place.write("test.json", json!(questions).to_string());
    let answer = |id: Value| json!({"question_id": id, "text": "x"});
    let score = |values: &[Value], more: &[&str]| {
        let answers = place.lines("answers.jsonl", values);
        quantize(&[&["score", &answers, "--truth", &truth], more].concat())
    };
    let [one, two, three] = [1, 2, 3].map(|id| answer(json!(id)));
    let good = [one.clone(), two.clone(), three.clone()];
    let output = score(&good, &[]);
    assert!(text(&output.stdout).contains("3 open and 0 closed"), "{}", text(&output.stderr));
    for word in ["recall             100.00", "\"Open\" in papers", "yes/no accuracy         -"] {
        assert!(text(&output.stdout).contains(word), "{}", text(&output.stdout));
    }
    let refused = |values: &[Value], words: &[&str]| {
        place.fails(&score(values, &[]), &[&["answers.jsonl"], words].concat());
    };
    refused(&[], &["found none"]);
    refused(
        &[one.clone(), three.clone(), two.clone()],
        &["line 2: question_id: expected 2, as record 2 has it there, found 3"],
    );
    refused(&[answer(json!("01")), two.clone(), three.clone()], &["line 1: question_id: expected 1", "found \"01\""]);
    refused(
        &[one.clone(), answer(json!("1"))],
        &["line 2: expected each id once, found \"1\" again, the id of line 1"],
    );
    refused(&good[..2], &["answers: expected 3, one a question of", "found 2: none for the question 3"]);
    let more = [&good[..], &[answer(json!(9))]].concat();
    refused(&more, &["expected 3", "found 4: one to 9 that is no question"]);
    refused(
        &[one.clone(), one.clone(), three.clone()],
        &["line 2: expected each id once, found 1 again, the id of line 1"],
    );
    refused(&[json!({"text": "x"})], &["line 1: question_id is missing", "found the keys text"]);
    refused(&[json!({"question_id": 1})], &["line 1: text is missing: expected a text"]);
    refused(&[json!({"question_id": 1, "text": 5})], &["line 1: text: expected a text, found 5"]);
    // Another protocol joins by id and reports what it left out.
    let output = score(&[answer(json!(9)), two.clone()], &["--protocol", "medtrinity"]);
    assert!(text(&output.stdout).contains("note: 2 questions without an answer and 1 answers without a question"));
    place.fails(
        &score(&[answer(json!(9))], &["--protocol", "medtrinity"]),
        &["question_id: expected ids of", "none of them"],
    );
    // Candidates of a wrong shape.
    for (content, words) in [
        ("{\"1\": []}", "found an object without the key \"0\""),
        ("[]", "found an empty list"),
        ("{\"0\": 3}", "found 3"),
        ("\"x\"", "expected a list of texts, or one under the key \"0\", found \"x\""),
        ("[\"x\", null]", "found null in it"),
        ("[", "candidate.json: JSON: EOF"),
    ] {
        let candidates = place.write("candidate.json", content);
        place.fails(&score(&good, &["--candidates", &candidates]), &["candidate.json", words]);
    }
    let questions = place.lines("questions.jsonl", &[json!({"question_id": 1, "image": "0.png", "text": "x"})]);
    let answers = place.path("answers.jsonl");
    place.fails(
        &quantize(&["score", &answers, "--truth", &questions]),
        &["expected true answers, found questions alone"],
    );
    place.fails(&quantize(&["score", "/nowhere", "--truth", &truth]), &["/nowhere: cannot open"]);
    for command in ["eval", "score"] {
        let help = quantize(&[command, "--help"]);
        assert!(help.status.success() && text(&help.stdout).contains("Examples"), "{command}");
    }
}
