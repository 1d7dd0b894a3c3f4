//! Runs a model natively, from its folder or straight from a checkpoint: one thread per rank, the same engine as in the
//! browser.

use crate::files::folder::{Files, Source, Stored};
use crate::files::plan::Unwritten;
use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::{Threads, block_on};
use llama3med::model::ModelLoader;
use llama3med::model::session::Session;
use llama3med::text::conversation::Template;
use llama3med::{Error, Result};
use std::ops::Range;
use std::path::Path;

/// Models below this size answer fastest on one rank: sums would take longer than products.
const SMALL_MODEL_BYTES: u64 = 64 << 20;

/// The number of ranks if none is asked for.
pub fn default_ranks(files: &Files<Stored>) -> usize {
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let n_bytes: u64 = files.named().map(|(_, file)| file.size()).sum();
    if n_bytes < SMALL_MODEL_BYTES { 1 } else { n_cores }
}

/// Bytes read and passed on at a time.
const PIECE_BYTES: u64 = 4 << 20;

/// A GGUF file from any source of bytes.
pub trait Bytes: Sync {
    /// Size of the file in bytes.
    fn size(&self) -> u64;
    /// The first bytes, including the whole header.
    fn prefix(&self) -> Result<Vec<u8>>;
    /// A byte range.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>>;
}

impl Bytes for Stored {
    fn size(&self) -> u64 {
        Stored::size(self)
    }

    fn prefix(&self) -> Result<Vec<u8>> {
        self.header().map(|(prefix, _)| prefix)
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        Stored::read(self, range)
    }
}

impl Bytes for Unwritten<'_> {
    fn size(&self) -> u64 {
        Unwritten::size(self)
    }

    fn prefix(&self) -> Result<Vec<u8>> {
        Ok(self.header().to_vec())
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        Unwritten::read(self, range)
    }
}

impl<T: Bytes> Files<T> {
    /// The files, independent of where they are read from.
    pub fn bytes(&self) -> Files<&dyn Bytes> {
        let encoder = self.encoder.as_ref().map(|file| file as &dyn Bytes);
        Files { decoder: &self.decoder as &dyn Bytes, encoder }
    }
}

/// Loads the model in `folder` on `n_ranks` threads and lets `run` use it. `context` is the longest conversation in
/// tokens.
pub fn with_session<T: Send>(
    folder: &Path,
    n_ranks: usize,
    context: Option<usize>,
    run: impl FnOnce(&mut Session<Cpu<Threads>>) -> Result<T> + Send,
) -> Result<T> {
    let (_, files) = Source::Folder(folder.into()).open()?;
    with_files(files.bytes(), n_ranks, None, context, run)
}

/// The same for a model's files from any source; `template` overrides the decoder file's.
pub fn with_files<T: Send>(
    files: Files<&dyn Bytes>,
    n_ranks: usize,
    template: Option<Template>,
    context: Option<usize>,
    run: impl FnOnce(&mut Session<Cpu<Threads>>) -> Result<T> + Send,
) -> Result<T> {
    if n_ranks == 0 {
        return Err(Error::Invalid("ranks must be 1 or more, found 0".into()));
    }
    let mut devices = Threads::connect(n_ranks).into_iter().map(Cpu::new);
    let first = devices.next().expect("there is a rank");
    std::thread::scope(|scope| {
        let followers: Vec<_> = devices
            .map(|device| {
                scope.spawn(move || {
                    let (mut model, _) = load(device, files)?.finish()?;
                    block_on(model.follow())
                })
            })
            .collect();
        let leader = scope.spawn(move || {
            let (model, header) = load(first, files)?.finish()?;
            let mut session = Session::new(model, &header, template, context)?;
            let result = run(&mut session);
            block_on(session.close())?;
            result
        });
        let followed: Vec<Result<()>> =
            followers.into_iter().map(|follower| follower.join().unwrap_or_else(|_| Err(panicked()))).collect();
        let led = leader.join().unwrap_or_else(|_| Err(panicked()));
        // When one rank fails, the others only see that it is gone: its own error has the reason.
        let cause = followed.into_iter().filter_map(Result::err).find(|error| !matches!(error, Error::RankLost(_)));
        match (led, cause) {
            (Err(Error::RankLost(_)), Some(cause)) => Err(cause),
            (led, _) => led,
        }
    })
}

fn panicked() -> Error {
    Error::RankLost("its thread panicked".into())
}

fn load(device: Cpu<Threads>, files: Files<&dyn Bytes>) -> Result<ModelLoader<Cpu<Threads>>> {
    let mut loader = ModelLoader::new(device);
    for (name, file) in files.named() {
        let prefix = file.prefix()?;
        let ranges = loader.header(name, &prefix, file.size())?;
        drop(prefix);
        for range in ranges {
            let mut start = range.start;
            while start < range.end {
                let end = (start + PIECE_BYTES).min(range.end);
                loader.feed(name, start, &file.read(start..end)?)?;
                start = end;
            }
        }
    }
    Ok(loader)
}
