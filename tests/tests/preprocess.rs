//! Decoding, resizing, tiling and merging compared with Pillow, transformers and PyTorch (goldens of
//! `golden/preprocess.py`), and image files that are truncated, damaged or inconsistent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use llama3med::picture::tiles::{Merge, Scales, split};
use llama3med::picture::{Fit, Picture, Pixels, Preprocess, preprocess, square};
use safetensors::{Dtype, SafeTensors};

const CLIP: ([f32; 3], [f32; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);
const OPTIMUS: ([f32; 3], [f32; 3]) = ([0.707223, 0.578729, 0.703617], [0.211883, 0.230117, 0.177517]);
const SIGLIP: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);

fn golden_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The stored tensors.
struct Goldens(Vec<u8>);

impl Goldens {
    fn read() -> Self {
        Self(std::fs::read(golden_folder().join("preprocess.safetensors")).expect("the goldens are in the repository"))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("goldens are safetensors")
    }

    /// Names that start with `prefix`, with the prefix removed.
    fn names(&self, prefix: &str) -> Vec<String> {
        let tensors = self.tensors();
        let mut names: Vec<_> =
            tensors.names().iter().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect();
        names.sort();
        assert!(!names.is_empty(), "no golden starts with {prefix}");
        names
    }

    fn bytes(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).expect(name);
        assert_eq!(tensor.dtype(), Dtype::U8, "{name}");
        (tensor.shape().to_vec(), tensor.data().to_vec())
    }

    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).expect(name);
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
        (tensor.shape().to_vec(), values.collect())
    }

    fn numbers(&self, name: &str) -> Vec<usize> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).expect(name);
        assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
        let values = tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")));
        values.map(|value| usize::try_from(value).expect("a count")).collect()
    }

    fn picture(&self, name: &str) -> Picture {
        let (shape, rgb) = self.bytes(name);
        Picture::new(shape[1], shape[0], rgb)
    }
}

/// The committed image files.
fn files() -> BTreeMap<String, Vec<u8>> {
    let folder = golden_folder().join("preprocess");
    let entries = std::fs::read_dir(folder).expect("the image files are in the repository");
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.expect("readable");
        (entry.file_name().into_string().expect("a plain name"), std::fs::read(entry.path()).expect("readable"))
    };
    entries.map(file).collect()
}

/// What a case's name means: `<width>x<height>.<fit>.<size>.<norm>`.
fn options(case: &str) -> (String, Preprocess) {
    let parts: Vec<&str> = case.split('.').collect();
    let fit = match parts[1] {
        "crop" => Fit::Crop,
        "pad" => Fit::Pad,
        "stretch" => Fit::Stretch,
        other => panic!("{other}"),
    };
    let (mean, std) = match parts[3] {
        "clip" => CLIP,
        "optimus" => OPTIMUS,
        "siglip" => SIGLIP,
        other => panic!("{other}"),
    };
    (format!("picture.{}", parts[0]), Preprocess { size: parts[2].parse().expect("a size"), fit, mean, std })
}

fn max_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Levels by which a JPEG may differ from libjpeg's: the inverse transform rounds differently, and subsampled chroma is
/// interpolated with other rounding.
fn tolerance(file: &str) -> u8 {
    match file {
        "rgb-420.jpg" | "progressive.jpg" | "jpeg.tiff" => 4,
        _ if file.ends_with(".jpg") => 2,
        _ => 0,
    }
}

#[test]
fn files_decode_as_pillow_decodes_them() {
    let goldens = Goldens::read();
    let files = files();
    assert_eq!(goldens.names("decoded."), files.keys().cloned().collect::<Vec<_>>());
    let mut failed = Vec::new();
    for (name, bytes) in files {
        let expected = goldens.picture(&format!("decoded.{name}"));
        let found = match Picture::decode(&bytes) {
            Ok(found) => found,
            Err(error) => {
                failed.push(format!("{name}: {error}"));
                continue;
            }
        };
        if (found.width, found.height) != (expected.width, expected.height) {
            failed.push(format!("{name}: {} x {}", found.width, found.height));
            continue;
        }
        let errors: Vec<u8> = found.rgb.iter().zip(&expected.rgb).map(|(a, b)| a.abs_diff(*b)).collect();
        let max = errors.iter().copied().max().unwrap_or(0);
        println!("{name}: max error {max}, {} of {} differ", errors.iter().filter(|e| **e > 0).count(), errors.len());
        if max > tolerance(&name) {
            failed.push(format!("{name}: max error {max}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn squares_equal_pillow_bit_for_bit() {
    let goldens = Goldens::read();
    for case in goldens.names("square.") {
        let (picture, options) = options(&case);
        let (_, expected) = goldens.bytes(&format!("square.{case}"));
        let found = square(&goldens.picture(&picture), &options).expect("memory");
        let max = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(found == expected, "{case}: max error {max:?} of 255");
    }
}

#[test]
fn normalised_pixels_equal_the_processor() {
    let goldens = Goldens::read();
    for case in goldens.names("pixels.") {
        let (picture, options) = options(&case);
        let (shape, expected) = goldens.floats(&format!("pixels.{case}"));
        let found = preprocess(&goldens.picture(&picture), &options).expect("memory");
        assert_eq!(shape, [3, found.size, found.size]);
        let error = max_error(&found.values, &expected);
        println!("{case}: max error {error:e}");
        assert!(error <= 1e-6, "{case}: {error:e}");
    }
}

#[test]
fn tiles_equal_pytorch() {
    let goldens = Goldens::read();
    for (case, coarse) in [("four-scales", false), ("coarse", true), ("same", false)] {
        let numbers = goldens.numbers(&format!("tiles.{case}.scales"));
        let scales = Scales::new(numbers[0], &numbers).expect("good scales");
        let (shape, values) = if coarse {
            let (shape, levels) = goldens.bytes(&format!("tiles.{case}.levels"));
            (shape, levels.iter().map(|&level| f32::from(level) / 64.0 - 2.0).collect())
        } else {
            goldens.floats(&format!("tiles.{case}.pixels"))
        };
        let crop = llama3med::picture::Crop { x: 0.0, y: 0.0, width: 1.0, height: 1.0 };
        let pixels = Pixels { size: shape[1], values, crop };
        let (shape, expected) = goldens.floats(&format!("tiles.{case}.tiles"));
        let all: Vec<Vec<f32>> = split(&pixels, &scales).collect();
        assert_eq!(all.len(), scales.n_tiles());
        let kept = if coarse { goldens.numbers(&format!("tiles.{case}.kept")) } else { (0..all.len()).collect() };
        assert_eq!(shape, [kept.len(), 3, scales.tile, scales.tile]);
        let found: Vec<f32> = kept.iter().flat_map(|&tile| all[tile].clone()).collect();
        let error = max_error(&found, &expected);
        println!("{case}: max error {error:e}");
        assert!(error <= 1e-5, "{case}: {error:e}");
        if scales.scales.len() == 1 {
            assert_eq!(all[0], pixels.values, "the same size is the identity");
        }
    }
}

#[test]
fn merged_features_equal_pytorch() {
    let goldens = Goldens::read();
    for case in ["four-scales", "three-scales"] {
        let numbers = goldens.numbers(&format!("merge.{case}.scales"));
        let scales = Scales::new(numbers[0], &numbers).expect("good scales");
        let (shape, features) = goldens.floats(&format!("merge.{case}.features"));
        let (_, expected) = goldens.floats(&format!("merge.{case}.merged"));
        let grid = shape[1].isqrt();
        let mut merge = Merge::new(&scales, grid, shape[2]);
        for tile in features.chunks_exact(shape[1] * shape[2]) {
            assert!(merge.clone().finish().is_err(), "tiles are missing");
            assert!(merge.push(&tile[1..]).is_err(), "a value is missing");
            merge.push(tile).expect("a tile");
        }
        assert!(merge.push(&features[..shape[1] * shape[2]]).is_err(), "one tile too many");
        let error = max_error(&merge.finish().expect("all tiles"), &expected);
        println!("{case}: max error {error:e}");
        assert!(error <= 1e-6, "{case}: {error:e}");
    }
}

#[test]
fn scales_that_do_not_fit_are_named() {
    let problem = |tile: usize, scales: &[usize]| Scales::new(tile, scales).expect_err("bad scales").to_string();
    assert!(problem(224, &[]).contains("at least one"));
    assert!(problem(224, &[672, 224]).contains("672 before 224"));
    assert!(problem(224, &[224, 224]).contains("224 before 224"));
    assert!(problem(224, &[336, 672]).contains("224 as the smallest scale, found 336"));
    assert!(problem(224, &[224, 449]).contains("do not divide into 3"));
    assert!(problem(224, &[224, 400]).contains("tiles of 200"));
    assert!(problem(0, &[0, 224]).contains("from 1 to 4096"));
    assert!(problem(224, &[224, 224 << 40]).contains("from 1 to 4096"));
    let scales = Scales::new(224, &[224, 672, 1344]).expect("H-optimus");
    assert_eq!((scales.n_tiles(), scales.size()), (46, 1344));
    assert_eq!(Scales::new(336, &[336, 672, 1008]).expect("LLaVA S2").n_tiles(), 14);
}

#[test]
fn crop_is_in_the_pictures_own_pixels() {
    let picture = Picture::new(400, 300, vec![7; 400 * 300 * 3]);
    let mut options = Preprocess { size: 60, fit: Fit::Crop, mean: CLIP.0, std: CLIP.1 };
    let crop = preprocess(&picture, &options).expect("memory").crop;
    assert_eq!((crop.x, crop.y, crop.width, crop.height), (50.0, 0.0, 300.0, 300.0));
    options.fit = Fit::Stretch;
    let crop = preprocess(&picture, &options).expect("memory").crop;
    assert_eq!((crop.x, crop.y, crop.width, crop.height), (0.0, 0.0, 400.0, 300.0));
    options.fit = Fit::Pad;
    let crop = preprocess(&picture, &options).expect("memory").crop;
    assert_eq!((crop.x, crop.y, crop.width, crop.height), (0.0, -50.0, 400.0, 400.0), "with what is around it");
}

#[test]
fn long_strips_need_no_large_memory() {
    // Pillow would resize this to 80 640 000 x 1344.
    let picture = Picture::new(60_000, 1, (0..180_000).map(|i| i as u8).collect());
    let options = Preprocess { size: 1344, fit: Fit::Crop, mean: CLIP.0, std: CLIP.1 };
    let pixels = preprocess(&picture, &options).expect("memory");
    assert_eq!((pixels.crop.width, pixels.crop.height), (1.0, 1.0));
}

#[test]
fn files_that_are_cut_short_are_errors_or_say_so() {
    for (name, bytes) in files() {
        let Ok(whole) = Picture::decode(&bytes) else { continue };
        let mut n_missed = 0;
        for len in 0..bytes.len() {
            match Picture::decode(&bytes[..len]) {
                // What is cut off may come after the picture: metadata, further frames. Anything else that is missing
                // is reported.
                Ok(picture) if picture.rgb == whole.rgb => {}
                Ok(picture)
                    if picture.notes.iter().any(|note| note.contains("cut short") || note.contains("coarser")) => {}
                Ok(_) => {
                    n_missed += 1;
                    println!("{name}: the first {len} of {} bytes give another picture", bytes.len());
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        assert_eq!(n_missed, 0, "{name}");
    }
}
