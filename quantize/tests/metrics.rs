//! Scores compared with those of tests/golden/metrics.py, case by case and set by set.

use clap::ValueEnum;
use quantize::measure::metrics::{self, Overlap};
use quantize::measure::protocol::Protocol;
use quantize::measure::score::{Options, Scoring, parse_candidates, score};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

static GOLDEN: LazyLock<Value> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/metrics.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
});

fn cases(name: &str, at_least: usize) -> &'static [Value] {
    let cases = GOLDEN[name].as_array().unwrap();
    assert!(cases.len() >= at_least, "{} cases of {name}", cases.len());
    cases
}

/// Numbers differ only by rounding. BLEU scores may be so small that only their ratio is meaningful.
fn is_near(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= 1e-11 * a.abs().max(b.abs())
}

fn assert_near(found: &[f64], expected: &Value, case: &Value) {
    let expected: Vec<f64> = expected.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    let are_near = found.len() == expected.len() && found.iter().zip(&expected).all(|(&a, &b)| is_near(a, b));
    assert!(are_near, "{found:?} {expected:?} {case:#}");
}

fn texts(case: &'static Value) -> (&'static str, &'static str) {
    (case["answer"].as_str().unwrap(), case["truth"].as_str().unwrap())
}

#[test]
fn texts_are_cleaned_as_published() {
    for case in cases("pairs", 500) {
        let (answer, truth) = texts(case);
        let once = metrics::normalize_word(answer);
        let twice = metrics::normalize_word(&once);
        assert_eq!(serde_json::json!([once, twice, metrics::normalize_word(truth)]), case["normal"], "{case:#}");
    }
}

#[test]
fn pairs_score_as_published() {
    for case in cases("pairs", 500) {
        let (answer, truth) = texts(case);
        let (lower, lower_truth) = (answer.to_lowercase(), truth.to_lowercase());
        let (clean, clean_truth) = (metrics::normalize_word(&lower), metrics::normalize_word(&lower_truth));
        for (name, answer, truth) in [("llama3med", &clean, &clean_truth), ("medtrinity", &lower, &lower_truth)] {
            let (expected, is_medtrinity) = (&case[name], name == "medtrinity");
            let Overlap { f1, precision, recall } = metrics::published_overlap(answer, truth);
            let exact = metrics::published_exact_match(answer, truth);
            assert_near(&[exact, f1, precision, recall], &expected["overlap"], case);
            let words = [answer, truth].map(|text| metrics::words(text));
            let bleu: Vec<f64> = (0..4)
                .map(|i| metrics::bleu(&words[0], &words[1], &metrics::BLEU_WEIGHTS[i], is_medtrinity && i > 0))
                .collect();
            assert_near(&bleu, &expected["bleu"], case);
            let hit = if is_medtrinity { answer.contains(truth) } else { metrics::published_closed_hit(answer, truth) };
            assert_eq!(hit, expected["closed"], "{case:#}");
        }
        let is_hit = metrics::published_closed_hit(&clean, &clean_truth);
        assert_eq!(is_hit || !metrics::says_yes_or_no(&clean), case["pvqa counted"], "{case:#}");
    }
}

#[test]
fn pairs_score_strictly() {
    for case in cases("pairs", 500) {
        let ((answer, truth), expected) = (texts(case), &case["strict"]);
        assert_eq!(metrics::is_exact(answer, truth), expected["exact"], "{case:#}");
        assert_eq!(metrics::is_closed_hit(answer, truth), expected["closed"], "{case:#}");
        let Overlap { f1, precision, recall } = metrics::overlap(answer, truth);
        assert_near(&[f1, precision, recall], &expected["overlap"], case);
    }
    for case in cases("wilson", 30) {
        let [hits, n] = [0, 1].map(|i| case[i].as_u64().unwrap() as usize);
        let ends = [2, 3].map(|i| case[i].as_f64().unwrap());
        let found = metrics::wilson(hits, n);
        // The golden solves a quadratic equation, which loses digits near 0 by cancellation.
        assert!(found.iter().zip(ends).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {case}");
    }
}

#[test]
fn candidates_are_chosen_as_published() {
    for case in cases("candidates", 500) {
        let (answer, truth) = texts(case);
        let candidates = parse_candidates("candidate.json", &case["candidates"]).unwrap();
        assert_eq!(candidates.published_hit(answer, truth), case["hit"], "{case:#}");
    }
}

/// Everything that is expected must be found; additional results are ignored.
fn assert_has(found: &Value, expected: &Value, at: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            let keys: Vec<_> = found.keys().filter(|key| !["notes", "run"].contains(&key.as_str())).collect();
            assert_eq!(keys, expected.keys().collect::<Vec<_>>(), "{at}");
            expected.iter().for_each(|(key, value)| assert_has(&found[key], value, &format!("{at} {key}")));
        }
        (Value::Array(found), Value::Array(expected)) if found.len() == expected.len() => {
            found.iter().zip(expected).for_each(|(found, expected)| assert_has(found, expected, at));
        }
        (Value::Number(found), Value::Number(expected)) => {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() < 1e-9, "{at}: {found} {expected}");
        }
        _ => assert_eq!(found, expected, "{at}"),
    }
}

#[test]
fn whole_sets_score_as_published() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("metrics_sets");
    fs::create_dir_all(&folder).unwrap();
    for (number, case) in cases("sets", 20).iter().enumerate() {
        let path = |name: &str| folder.join(format!("{number}_{name}"));
        fs::write(path("test.json"), case["questions"].to_string()).unwrap();
        let lines: Vec<String> = case["answers"].as_array().unwrap().iter().map(Value::to_string).collect();
        fs::write(path("answers.jsonl"), lines.join("\n")).unwrap();
        fs::write(path("candidate.json"), case["candidates"].to_string()).unwrap();
        let protocol = Protocol::from_str(case["protocol"].as_str().unwrap(), false).unwrap();
        let candidates = (!case["candidates"].is_null()).then(|| path("candidate.json"));
        let options = Options {
            answers: path("answers.jsonl"),
            truth: path("test.json"),
            scoring: Scoring { protocol, candidates, json: false },
        };
        let report = score(&options).unwrap_or_else(|error| panic!("{error}"));
        assert_has(&serde_json::to_value(&report).unwrap(), &case["report"], &format!("set {number}:"));
        assert!(report.to_string().contains(&format!("protocol {}", protocol.name())));
    }
}
