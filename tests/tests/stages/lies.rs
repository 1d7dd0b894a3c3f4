//! Invalid headers: every key and every tensor of a valid file, changed one at a time. Nothing may panic or take memory
//! that the file does not justify, and every error names what it refuses.

use crate::golden::{Files, VARIANTS, header};
use llama3med::Result;
use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::Alone;
use llama3med::device::shard::{Loader, Shard};
use llama3med::file::gguf::{Dtype, Gguf, Value};
use llama3med::spec::{DecoderSpec, VisionSpec, wants};

const SHARDS: [Shard; 3] =
    [Shard { rank: 0, n_ranks: 1 }, Shard { rank: 1, n_ranks: 2 }, Shard { rank: 6, n_ranks: 7 }];

/// Everything that is done with a header before the first weight is read.
fn accept(gguf: &Gguf) -> Result<()> {
    for shard in SHARDS {
        let tensors = match gguf.file.as_str() {
            "decoder.gguf" => DecoderSpec::read(gguf)?.tensors(),
            _ => VisionSpec::read(gguf)?.tensors(),
        };
        Loader::new(&Cpu::new(Alone), gguf, &wants(&tensors, shard))?;
    }
    Ok(())
}

/// Headers of every variant's two files.
fn headers() -> impl Iterator<Item = Gguf> {
    VARIANTS.into_iter().flat_map(|variant| {
        let files = Files::convert(variant, Dtype::Q4_0);
        [header("decoder.gguf", &files.decoder), header("encoder.gguf", &files.encoder)]
    })
}

#[test]
fn a_lying_key_is_named() {
    let lies = [
        None,
        Some(Value::Int(0)),
        Some(Value::Int(-1)),
        Some(Value::Int(7)),
        Some(Value::Int((1 << 31) - 1)),
        Some(Value::Int(1 << 40)),
        Some(Value::Float(f64::NAN)),
        Some(Value::Float(-1.0)),
        Some(Value::Float(1e30)),
        Some(Value::Bool(true)),
        Some(Value::String("x".into())),
    ];
    for gguf in headers() {
        accept(&gguf).unwrap();
        for key in gguf.metadata.keys() {
            for lie in &lies {
                let mut lying = gguf.clone();
                lying.metadata.remove(key);
                lying.metadata.extend(lie.clone().map(|lie| (key.clone(), lie)));
                if let Err(error) = accept(&lying) {
                    let message = error.to_string();
                    let is_named =
                        message.contains(&gguf.file) || message.starts_with("tensor ") || message.contains("scales");
                    assert!(is_named, "{key} = {lie:?}: {message}");
                }
            }
        }
    }
}

#[test]
fn a_missing_surplus_or_misshapen_tensor_is_named() {
    // Without these, a file describes another model that is equally well formed: a tied head, no scaling, no registers,
    // no bias.
    let optional = ["output.weight", "rope_freqs.weight", "v.reg_embd.weight", "v.patch_embd.bias"];
    let accepted = |name: &str, change: &str| match change {
        "missing" => optional.contains(&name),
        _ => change == "other shape" && name == "v.reg_embd.weight", // any number of registers is valid
    };
    for gguf in headers() {
        for (name, info) in &gguf.tensors {
            let refused = |change: &str, changed: &Gguf| match accept(changed) {
                Ok(()) => assert!(accepted(name, change), "{name} {change}"),
                Err(error) => {
                    let message = error.to_string();
                    // A missing tensor may show by something else that no longer fits.
                    let is_named = message.contains(&gguf.file) || message.starts_with("tensor ");
                    assert!(is_named, "{name} {change}: {message}");
                    assert!(change != "surplus" || message.contains(name.as_str()), "{name} {change}: {message}");
                }
            };
            let mut changed = gguf.clone();
            changed.tensors.remove(name);
            refused("missing", &changed);
            let mut changed = gguf.clone();
            changed.tensors.insert(format!("{name}.more"), info.clone());
            refused("surplus", &changed);
            for (n_rows, n_cols) in [(0, info.n_cols), (info.n_rows, 0), (info.n_rows + 1, info.n_cols)] {
                let mut changed = gguf.clone();
                let shape = vec![n_rows, n_cols];
                changed
                    .tensors
                    .insert(name.clone(), llama3med::file::gguf::TensorInfo { n_rows, n_cols, shape, ..info.clone() });
                refused("other shape", &changed);
            }
        }
    }
}
