//! Quantized weights compared with the same weights widened to f32: the cost of low-bit arithmetic, apart from the cost
//! of rounding the weights.
//!
//! The difference comes from the activations, which the kernels round to 8 bits per block of 32: a relative error of
//! about 1/127/sqrt(12) of a block's largest value, about 0.6 % of a typical one, in every product. Being random, it
//! averages out within a product and adds up over the dozen or two products in a row. Weights in f16 and f32 are
//! multiplied in f32.

use crate::decoder::{Ready, prompt};
use crate::golden::{Files, Golden, header, load, on_ranks};
use crate::whole::{QUESTION, Record, greedy, picture};
use llama3med::device::Device;
use llama3med::device::quant::dequantize;
use llama3med::device::ranks::block_on;
use llama3med::file::gguf::{Dtype, Gguf, TensorInfo};
use llama3med::model::connector::Connector;

use llama3med::model::encoder::Encoder;
use llama3med::model::session::Chat;
use llama3med::spec::VisionSpec;
use quantize::native::with_session;

/// The file with every tensor in f32.
pub fn widened(gguf: &Gguf, bytes: &[u8]) -> (Gguf, Vec<u8>) {
    let (mut wide, mut data) = (gguf.clone(), Vec::new());
    for (name, info) in &gguf.tensors {
        let mut values = vec![0.0; info.n_rows * info.n_cols];
        dequantize(info.dtype, &bytes[info.offset as usize..][..info.n_bytes() as usize], &mut values);
        let wide_info = TensorInfo { dtype: Dtype::F32, offset: data.len() as u64, ..info.clone() };
        wide.tensors.insert(name.clone(), wide_info);
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    (wide, data)
}

/// Root mean square of the difference, relative to the root mean square of the expected values.
pub fn rms_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f32| x * x;
    let difference: f32 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (difference / expected.iter().map(|&x| square(x)).sum::<f32>()).sqrt()
}

fn assert_small(what: &str, found: &[f32], expected: &[f32], bound: f32) {
    let (rms, worst) = (rms_error(found, expected), crate::golden::error(found, expected));
    println!("{what}: rms {rms:.1e}, worst {worst:.1e}");
    assert!(rms <= bound, "{what}: rms error {rms:e} is above {bound:e}");
}

/// Bound on the relative error (root mean square) after a whole decoder or encoder of these sizes: about twice the
/// measured value.
fn bound(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => 1e-5,
        _ => 0.06,
    }
}

const CASES: [(&str, Dtype); 6] = [
    ("clip-s2", Dtype::Q4_0),
    ("clip-s2", Dtype::Q8_0),
    ("optimus-s2", Dtype::Q4_0),
    ("optimus-s2", Dtype::Q4K),
    ("optimus-s2", Dtype::F16),
    ("siglip", Dtype::Q4_0), // no row is a whole number of blocks: f16 is used instead
];

#[test]
fn logits_are_those_of_the_same_weights_in_f32() {
    for (variant, dtype) in CASES {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, dtype));
        let gguf = header("decoder.gguf", &files.decoder);
        let run = |gguf: &Gguf, bytes: &[u8], n_ranks| {
            let run = on_ranks(n_ranks, |device| {
                let mut ready = Ready::of(device, gguf, bytes);
                let image = ready.image(&golden);
                let inputs = prompt(&golden, &image);
                ready.logits(&inputs, 0, inputs.len())
            });
            run.into_iter().next().unwrap()
        };
        let (wide_gguf, wide) = widened(&gguf, &files.decoder);
        let expected = run(&wide_gguf, &wide, 1);
        let alone = run(&gguf, &files.decoder, 1);
        assert_small(&format!("{variant} {} logits", dtype.name()), &alone, &expected, bound(dtype));
        for n_ranks in [2, 4] {
            assert!(run(&gguf, &files.decoder, n_ranks) == alone, "{variant}, {n_ranks} ranks: not bit for bit");
        }
    }
}

/// On 1, 2 and 4 ranks, sums are made of the same parts in the same order. With 8-bit activations this keeps the
/// answers the same: a different order of sums sometimes moves an activation to its next step, and a few layers later
/// the difference is as large as that of the rounding itself.
#[test]
fn answers_are_the_same_on_1_2_and_4_ranks() {
    for (variant, dtype) in CASES {
        let files = Files::convert(variant, dtype);
        let answer = |n_ranks| {
            let answer = with_session(&files.folder, n_ranks, None, |session| {
                let mut record = Record::default();
                let look = block_on(session.look(&picture(variant), &mut record))?;
                let mut chat = Chat::about(look.key);
                block_on(session.ask(&mut chat, QUESTION, &greedy(24), &mut record))?;
                Ok((look.features, record.logits, chat.answers().remove(0)))
            });
            answer.unwrap()
        };
        let (features, logits, ids) = answer(1);
        for n_ranks in [2, 4] {
            let what = format!("{variant} {}, {n_ranks} ranks against 1", dtype.name());
            let (other_features, other_logits, other_ids) = answer(n_ranks);
            assert_eq!(other_ids, ids, "{what}");
            assert!(other_features == features && other_logits == logits, "{what}: not bit for bit");
        }
    }
}

#[test]
fn image_tokens_are_those_of_the_same_weights_in_f32() {
    for (variant, dtype) in CASES {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, dtype));
        let gguf = header("encoder.gguf", &files.encoder);
        let spec = VisionSpec::read(&gguf).unwrap();
        let (tiles, features) = (golden.f32("tiles"), golden.f32("features"));
        let tile = &tiles[..3 * spec.encoder.image_size * spec.encoder.image_size];
        let run = |gguf: &Gguf, bytes: &[u8]| {
            let results = on_ranks(1, |mut device| {
                let mut tensors = load(&mut device, gguf, bytes, &spec.tensors());
                let mut encoder = Encoder::new(spec.encoder.clone(), &mut tensors).unwrap();
                let mut connector = Connector::new(&spec.connector, &mut tensors).unwrap();
                let tower = block_on(encoder.forward(&mut device, tile)).unwrap();
                let tokens = block_on(connector.forward(&mut device, &features)).unwrap();
                (tower, block_on(device.download(&tokens)).unwrap())
            });
            results.into_iter().next().unwrap()
        };
        let (wide_gguf, wide) = widened(&gguf, &files.encoder);
        let (expected, found) = (run(&wide_gguf, &wide), run(&gguf, &files.encoder));
        assert_small(&format!("{variant} {} tower", dtype.name()), &found.0, &expected.0, bound(dtype));
        assert_small(&format!("{variant} {} connector", dtype.name()), &found.1, &expected.1, bound(dtype));
    }
}
