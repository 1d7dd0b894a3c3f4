//! Which tokens remain after all cuts, compared with transformers: `golden/sampler.py` describes the cases.

use llama3med::model::sampler::{Sampler, SamplerOptions};
use serde_json::Value;

#[test]
fn cuts_are_those_of_hugging_face() {
    let golden: Value = serde_json::from_str(include_str!("../golden/sampler.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 18);
    for case in cases {
        let option = |name: &str, default: f32| case["options"][name].as_f64().map_or(default, |value| value as f32);
        let options = SamplerOptions {
            temperature: option("temperature", 1.0),
            top_k: option("top_k", 0.0) as usize,
            top_p: option("top_p", 1.0),
            min_p: option("min_p", 0.0),
            repetition_penalty: option("repetition_penalty", 1.0),
            seed: 0,
        };
        let logits = golden["logits"][case["logits"].as_u64().unwrap() as usize].as_array().unwrap();
        let mut logits: Vec<f32> = logits.iter().map(|logit| logit.as_f64().unwrap() as f32).collect();
        let recent: Vec<u32> = serde_json::from_value(case["recent"].clone()).unwrap();
        let expected: Vec<(u32, f64)> = serde_json::from_value(case["left"].clone()).unwrap();

        let found = Sampler::new(&options).unwrap().shares(&mut logits, &recent, |_| true).unwrap();
        let ids = |shares: &[(u32, f64)]| shares.iter().map(|&(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(&found), ids(&expected), "{options:?}");
        for (&(id, found), (_, expected)) in found.iter().zip(expected) {
            // Theirs is a softmax in f32.
            assert!((found - expected).abs() < 1e-6, "{options:?}: id {id} has {found}, expected {expected}");
        }
    }
}
