//! From the picture to the image tokens.

use crate::golden::{Files, Golden, RANKS, VARIANTS, assert_close, folder, header, load, on_ranks};
use llama3med::device::Device;
use llama3med::device::ranks::block_on;
use llama3med::file::gguf::{Dtype, Gguf, Value};
use llama3med::model::connector::Connector;
use llama3med::model::encoder::Encoder;
use llama3med::picture::tiles::{Merge, Scales, split};
use llama3med::picture::{Crop, Picture, Pixels, preprocess};
use llama3med::spec::{EncoderSpec, VisionSpec};

// Both sides compute in f32 and add in a different order; a few hundred terms give a few 1e-6 of the values' size.
const TOWER_BOUND: f32 = 2e-5;
const CONNECTOR_BOUND: f32 = 1e-5;

fn scales(variant: &str) -> Scales {
    let files = Files::convert(variant, Dtype::F32);
    EncoderSpec::read(&header("encoder.gguf", &files.encoder)).unwrap().scales()
}

#[test]
fn pixels_are_those_of_pillow() {
    for variant in VARIANTS {
        let files = Files::convert(variant, Dtype::F32);
        let options = EncoderSpec::read(&header("encoder.gguf", &files.encoder)).unwrap().preprocess();
        let picture = Picture::decode(&std::fs::read(folder(variant).join("picture.png")).unwrap()).unwrap();
        let pixels = preprocess(&picture, &options).unwrap();
        let golden = Golden::read(variant).f32("pixels");
        let n = pixels.size * pixels.size;
        let worst = (0..3 * n).map(|i| (pixels.values[i] - golden[i]).abs() * options.std[i / n]).fold(0.0, f32::max);
        println!("{variant} pixels: {worst:.1e} before normalisation");
        assert!(worst < 1e-6, "{variant}: {worst}"); // the bytes are equal; only the normalisation rounds
    }
}

#[test]
fn tiles_are_those_of_the_wrapper() {
    for variant in VARIANTS {
        let (golden, scales) = (Golden::read(variant), scales(variant));
        let pixels = Pixels {
            size: scales.size(),
            values: golden.f32("pixels"),
            crop: Crop { x: 0.0, y: 0.0, width: 1.0, height: 1.0 },
        };
        let tiles: Vec<f32> = split(&pixels, &scales).flatten().collect();
        assert_close(&format!("{variant} tiles"), &tiles, &golden.f32("tiles"), 5e-6);
    }
}

#[test]
fn towers_are_those_of_transformers_and_timm() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let gguf = header("encoder.gguf", &files.encoder);
        let spec = VisionSpec::read(&gguf).unwrap();
        let (tiles, expected) = (golden.f32("tiles"), golden.f32("tower"));
        for n_ranks in RANKS {
            let results = on_ranks(n_ranks, |mut device| {
                let mut tensors = load(&mut device, &gguf, &files.encoder, &spec.tensors());
                let mut encoder = Encoder::new(spec.encoder.clone(), &mut tensors).unwrap();
                assert_eq!([spec.encoder.n_tokens(), spec.encoder.dim], golden.shape("tower")[1..]);
                let tiles = tiles.chunks_exact(3 * spec.encoder.image_size * spec.encoder.image_size);
                tiles.flat_map(|tile| block_on(encoder.forward(&mut device, tile)).unwrap()).collect::<Vec<f32>>()
            });
            assert_close(&format!("{variant} tower, {n_ranks} ranks"), &results[0], &expected, TOWER_BOUND);
            assert!(results.iter().all(|result| result == &results[0]), "{variant}: ranks disagree");
        }
    }
}

/// One rank's features of a tile, from a header that may have been modified.
fn tower(gguf: &Gguf, bytes: &[u8], tile: &[f32]) -> Vec<f32> {
    let spec = VisionSpec::read(gguf).unwrap();
    let run = on_ranks(1, |mut device| {
        let mut tensors = load(&mut device, gguf, bytes, &spec.tensors());
        let mut encoder = Encoder::new(spec.encoder.clone(), &mut tensors).unwrap();
        block_on(encoder.forward(&mut device, tile)).unwrap()
    });
    run.into_iter().next().unwrap()
}

#[test]
fn a_file_may_drop_a_patch_and_may_swap_the_names_of_the_mlp() {
    let files = Files::convert("siglip", Dtype::F32);
    let gguf = header("encoder.gguf", &files.encoder);
    let (tile, width) = (Golden::read("siglip").f32("tiles"), EncoderSpec::read(&gguf).unwrap().dim);
    let expected = tower(&gguf, &files.encoder, &tile);
    let mut dropping = gguf.clone();
    dropping.metadata.insert("llama3med.vision.n_drop".into(), Value::Int(1));
    assert_eq!(tower(&dropping, &files.encoder, &tile), expected[width..]);
    // llama.cpp's early converters called fc1 ffn_down and fc2 ffn_up.
    let mut swapped = gguf.clone();
    let other = |name: &str| match name.contains("ffn_up") {
        true => name.replace("ffn_up", "ffn_down"),
        false => name.replace("ffn_down", "ffn_up"),
    };
    swapped.tensors = gguf.tensors.iter().map(|(name, info)| (other(name), info.clone())).collect();
    assert_eq!(tower(&swapped, &files.encoder, &tile), expected);
}

#[test]
fn merged_features_are_those_of_the_wrapper() {
    for variant in VARIANTS {
        let golden = Golden::read(variant);
        let [n_tiles, n_patches, n_channels] = golden.shape("tower")[..] else { panic!() };
        let mut merge = Merge::new(&scales(variant), n_patches.isqrt(), n_channels);
        golden.f32("tower").chunks_exact(n_patches * n_channels).for_each(|tile| merge.push(tile).unwrap());
        assert_eq!(merge.n_pushed(), n_tiles);
        let features = merge.finish().unwrap();
        assert_close(&format!("{variant} merged"), &features, &golden.f32("features"), 2e-6);
    }
}

#[test]
fn image_tokens_are_those_of_the_connector() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let gguf = header("encoder.gguf", &files.encoder);
        let spec = VisionSpec::read(&gguf).unwrap();
        for n_ranks in RANKS {
            let results = on_ranks(n_ranks, |mut device| {
                let mut tensors = load(&mut device, &gguf, &files.encoder, &spec.tensors());
                let mut connector = Connector::new(&spec.connector, &mut tensors).unwrap();
                assert_eq!(spec.connector.n_outputs(), golden.shape("image_tokens")[1]);
                let tokens = block_on(connector.forward(&mut device, &golden.f32("features"))).unwrap();
                block_on(device.download(&tokens)).unwrap()
            });
            let what = format!("{variant} connector, {n_ranks} ranks");
            assert_close(&what, &results[0], &golden.f32("image_tokens"), CONNECTOR_BOUND);
            assert!(results.iter().all(|result| result == &results[0]), "{variant}: ranks disagree");
        }
    }
}
