//! Goldens written by `golden/make.py`, checkpoints converted to model files, and the measure of closeness.

use llama3med::device::Device;
use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::Threads;
use llama3med::device::shard::{Loader, Tensors};
use llama3med::file::gguf::{Dtype, Gguf};
use llama3med::file::manifest::{DECODER, ENCODER};
use llama3med::spec::{Tensor, wants};
use quantize::checkpoint::Parts;
use quantize::{Options, convert};
use safetensors::SafeTensors;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// CLIP with three scales, SigLIP with one, H-optimus's shape with three.
pub const VARIANTS: [&str; 3] = ["clip-s2", "siglip", "optimus-s2"];

/// Rank counts on which every stage runs; with 4, SigLIP's 3 heads leave one rank without any.
pub const RANKS: [usize; 4] = [1, 2, 3, 4];

/// Folder of a variant.
pub fn folder(variant: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(variant)
}

/// Goldens of one variant.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn read(variant: &str) -> Self {
        Self::open(variant, "golden.safetensors")
    }

    pub fn open(variant: &str, file: &str) -> Self {
        Self(std::fs::read(folder(variant).join(file)).expect("the goldens are committed"))
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn i64(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::I64, "{name}");
        tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// A converted variant: its model folder, which is deleted with this value, and the bytes of its two files.
pub struct Files {
    pub folder: PathBuf,
    pub decoder: Vec<u8>,
    pub encoder: Vec<u8>,
}

impl Files {
    /// Converts the checkpoint, with every matrix in `dtype` where its rows allow it, in chunks of an odd size; joins
    /// the chunks again.
    pub fn convert(variant: &str, dtype: Dtype) -> Self {
        Self::convert_parts(folder(variant).join("checkpoint"), Parts::default(), dtype)
    }

    /// The same for any checkpoint, with parts that may be in other places.
    pub fn convert_parts(checkpoint: PathBuf, parts: Parts, dtype: Dtype) -> Self {
        static N_FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let unique = format!("stages-{}-{}", std::process::id(), N_FOLDERS.fetch_add(1, Ordering::Relaxed));
        let output = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique);
        let options = Options { parts, types: dtype.into(), chunk_size: 77_777, ..Options::new(checkpoint, &output) };
        let manifest = convert(&options).unwrap();
        let read = |name: &str| {
            let file = manifest.files.iter().find(|file| file.name == name).unwrap();
            let chunks = file.chunks.iter().map(|chunk| std::fs::read(output.join(&chunk.path)).unwrap());
            chunks.flatten().collect::<Vec<u8>>()
        };
        Self { decoder: read(DECODER), encoder: read(ENCODER), folder: output }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// The header of a whole file.
pub fn header(file: &str, bytes: &[u8]) -> Gguf {
    Gguf::parse(file, bytes, bytes.len() as u64).unwrap().expect("the file is whole")
}

/// What one rank holds of a file that has these tensors.
pub fn load<'a, D: Device>(device: &'a mut D, gguf: &Gguf, bytes: &[u8], tensors: &[Tensor]) -> Tensors<'a, D> {
    let mut loader = Loader::new(device, gguf, &wants(tensors, device.shard())).unwrap();
    for range in loader.ranges() {
        loader.feed(range.start, &bytes[range.start as usize..range.end as usize]).unwrap();
    }
    loader.finish(device).unwrap()
}

/// Runs every rank in its own thread; results in rank order.
pub fn on_ranks<T: Send>(n_ranks: usize, run: impl Fn(Cpu<Threads>) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let spawn = |peers| {
            let run = &run;
            scope.spawn(move || run(Cpu::new(peers)))
        };
        let handles: Vec<_> = Threads::connect(n_ranks).into_iter().map(spawn).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

/// The largest difference, relative to the root mean square of the expected values: stricter than relative to the
/// largest value.
pub fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.iter().all(|x| x.is_finite()));
    worst / (expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32).sqrt()
}

/// Fails above `bound`, and prints the measured value (`cargo test -- --nocapture`).
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], bound: f32) {
    let error = error(found, expected);
    println!("{what}: {error:.1e}");
    assert!(error <= bound, "{what}: error {error:e} is above {bound:e}");
}

/// Index of the largest of the first `n_known` logits.
pub fn best(logits: &[f32], n_known: usize) -> i64 {
    let known = logits[..n_known].iter().enumerate();
    known.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as i64
}

/// Tokens that the variant's tokenizer knows.
pub fn n_known(variant: &str) -> usize {
    let path = folder(variant).join("checkpoint/tokenizer.json");
    tokenizers::Tokenizer::from_file(path).unwrap().get_vocab_size(true)
}
