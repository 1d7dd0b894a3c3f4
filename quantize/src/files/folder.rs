//! Model folders on disk: written chunk by chunk to a temporary folder and moved into place when complete; read as the
//! files that the chunks form. Other projects' GGUF files are read in the same way, and split ones as the whole that
//! their parts form.

use crate::files::about::About;
use crate::files::disk::{beside, check_space, copy, flush_folder, write_whole};
use crate::files::json;
use crate::files::plan::Plan;
use indicatif::{ProgressBar, ProgressStyle};
use llama3med::error::stand_in;
use llama3med::file::gguf::{ALIGNMENT, Gguf, part_names};
use llama3med::file::manifest::{Chunk, DECODER, ENCODER, File, MAX_MANIFEST_BYTES, Manifest};
use llama3med::file::pair::Whole;
use llama3med::spec::{DecoderSpec, VisionSpec};
use llama3med::{Error, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The files of a model: its decoder and, if it sees pictures, its encoder with the connector.
#[derive(Debug, Clone, Copy)]
pub struct Files<T> {
    /// The language model.
    pub decoder: T,
    /// The image encoder.
    pub encoder: Option<T>,
}

impl<T> Files<T> {
    /// Each file, with its name in a model folder.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &T)> {
        [(DECODER, &self.decoder)].into_iter().chain(self.encoder.iter().map(|file| (ENCODER, file)))
    }

    /// The same files converted to another type.
    pub fn map<U>(self, change: impl Fn(T) -> U) -> Files<U> {
        Files { decoder: change(self.decoder), encoder: self.encoder.map(change) }
    }
}

/// A model folder being written. If it is dropped before [`Writer::finish`], or the process is killed, it leaves behind
/// the complete chunks from which the next run continues.
pub struct Writer {
    target: PathBuf,
    partial: PathBuf,
    chunk_size: u64,
    files: Vec<File>,
    progress: ProgressBar,
}

/// Describes what a partial folder is going to be.
const FINGERPRINT: &str = "fingerprint";

impl Writer {
    /// Checks that `target` may be (over)written and that there is enough free space. `source` identifies what the
    /// tensors are made from: chunks that an interrupted or failed run left of the same files, from the same source,
    /// are kept; anything else is cleared away.
    pub fn create(target: &Path, chunk_size: u64, files: &Files<Plan>, source: &[u8]) -> Result<Self> {
        if !(1..=1 << 30).contains(&chunk_size) {
            return Err(Error::Invalid(format!("chunk size must be 1 to {} bytes, found {chunk_size}", 1 << 30)));
        }
        check_target(target)?;
        let partial = beside(target, "partial")?;
        let mut hash = Sha256::new();
        hash.update(env!("CARGO_PKG_VERSION"));
        hash.update(chunk_size.to_le_bytes());
        files.named().for_each(|(_, plan)| hash.update(plan.header.to_bytes()));
        hash.update(source);
        let fingerprint = hex(hash);
        let note = partial.join(FINGERPRINT);
        if partial.exists() && read_small(&note, 64).ok().as_deref() != Some(fingerprint.as_bytes()) {
            fs::remove_dir_all(&partial).map_err(|error| failed(&partial, "remove", error))?;
        }
        if !partial.exists() {
            fs::create_dir_all(&partial).map_err(|error| failed(&partial, "create", error))?;
            write_whole(&note, fingerprint.as_bytes())?;
            flush_folder(&note)?;
        }
        clear(&partial)?;
        let n_bytes = files.named().map(|(_, plan)| plan.n_bytes()).sum::<u64>();
        let style =
            ProgressStyle::with_template("{msg:14} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left");
        let progress = ProgressBar::new(n_bytes).with_style(style.expect("the template is a constant"));
        let writer = Self { target: target.into(), partial, chunk_size, files: Vec::new(), progress };
        let n_kept: u64 = files.named().map(|(name, _)| writer.n_whole_chunks(name) as u64 * chunk_size).sum();
        check_space(&writer.partial, n_bytes.saturating_sub(n_kept))?;
        Ok(writer)
    }

    /// Chunks of a file that an interrupted run has written: the leading full-size ones, never the file's last.
    fn n_whole_chunks(&self, name: &str) -> usize {
        let is_whole = |path: PathBuf| fs::metadata(path).is_ok_and(|found| found.len() == self.chunk_size);
        (0..).take_while(|&idx| is_whole(self.partial.join(chunk_name(name, idx)))).count()
    }

    /// Writes one file as chunks. Pieces of a tensor are computed in parallel and written in order.
    pub fn write(&mut self, name: &str, plan: &Plan) -> Result<()> {
        self.progress.set_message(name.to_owned());
        let header = plan.header.to_bytes();
        let mut chunks = Chunks { writer: self, name, buffer: Vec::new(), done: Vec::new(), n_bytes: 0, n_kept: 0 };
        chunks.keep()?;
        chunks.push(&header)?;
        for tensor in &plan.tensors {
            let start = chunks.n_bytes;
            let (row_bytes, mut pieces) = (tensor.n_bytes / tensor.n_rows as u64, tensor.pieces(0..tensor.n_rows));
            pieces.retain(|rows| start + rows.end as u64 * row_bytes > chunks.n_kept);
            chunks.pass(pieces.first().map_or(tensor.n_bytes, |rows| rows.start as u64 * row_bytes));
            for batch in pieces.chunks(2 * rayon::current_num_threads()) {
                let made: Vec<Result<Vec<u8>>> = batch.par_iter().map(|rows| (tensor.rows)(rows.clone())).collect();
                for bytes in made {
                    chunks.push(&bytes?)?;
                }
            }
            assert_eq!(
                chunks.n_bytes - start,
                tensor.n_bytes,
                "the rows of a tensor fill the size declared in the header"
            );
            let padding = chunks.n_bytes.next_multiple_of(ALIGNMENT) - chunks.n_bytes;
            chunks.push(&vec![0; padding as usize])?;
        }
        let file = chunks.finish(header.len() as u64)?;
        self.files.push(file);
        Ok(())
    }

    /// Writes all files, then the rest.
    pub fn write_all(mut self, files: &Files<Plan>, about: &About) -> Result<Manifest> {
        files.named().try_for_each(|(name, plan)| self.write(name, plan))?;
        self.finish(about)
    }

    /// Writes the manifest, with the written files and the samples' pictures, and moves the folder into place.
    fn finish(self, about: &About) -> Result<Manifest> {
        for (sample, picture) in about.samples.iter().zip(&about.pictures) {
            let path = self.partial.join(&sample.path);
            copy(picture, &path).map_err(|error| failed(picture, "copy", error))?;
        }
        let manifest = Manifest { files: self.files.clone(), ..about.manifest() };
        let path = self.partial.join("manifest.json");
        write_whole(&path, &manifest_bytes(&manifest)?)?;
        flush_folder(&path)?;
        self.put_in_place()?;
        self.progress.finish_and_clear();
        Ok(manifest)
    }

    /// Moves the folder into place. An older model there is deleted once the new one is safely in place.
    fn put_in_place(&self) -> Result<()> {
        check_target(&self.target)?;
        let old = beside(&self.target, "old")?;
        let remove_old = || match old.exists() {
            true => fs::remove_dir_all(&old).map_err(|error| failed(&old, "remove", error)),
            false => Ok(()),
        };
        remove_old()?;
        let replaces = self.target.exists();
        if replaces {
            fs::rename(&self.target, &old).map_err(|error| failed(&self.target, "rename", error))?;
        }
        if let Err(error) = fs::rename(&self.partial, &self.target) {
            if replaces {
                let _ = fs::rename(&old, &self.target);
            }
            return Err(failed(&self.target, "create", error));
        }
        // Not earlier: until the folder is in place, its chunks must stay recognisable.
        let note = self.target.join(FINGERPRINT);
        fs::remove_file(&note).map_err(|error| failed(&note, "remove", error))?;
        flush_folder(&note)?;
        flush_folder(&self.target)?;
        remove_old()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After `finish`, nothing has this name any more.
        if !self.partial.exists() {
            return;
        }
        self.progress.finish_and_clear();
        if [DECODER, ENCODER].iter().any(|name| self.n_whole_chunks(name) > 0) {
            eprintln!("{} has the finished part; the same command continues from there", self.partial.display());
        } else {
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

struct Chunks<'a> {
    writer: &'a Writer,
    name: &'a str,
    buffer: Vec<u8>,
    done: Vec<Chunk>,
    /// Bytes of the file so far, and how many of them an interrupted run wrote.
    n_bytes: u64,
    n_kept: u64,
}

impl Chunks<'_> {
    /// Takes over the chunks that an interrupted run wrote.
    fn keep(&mut self) -> Result<()> {
        for idx in 0..self.writer.n_whole_chunks(self.name) {
            let full = self.writer.partial.join(chunk_name(self.name, idx));
            let bytes = read_small(&full, self.writer.chunk_size as usize)?;
            self.done(&bytes);
            self.n_kept += bytes.len() as u64;
        }
        Ok(())
    }

    /// Counts bytes that were kept.
    fn pass(&mut self, n_bytes: u64) {
        self.n_bytes += n_bytes;
        self.writer.progress.inc(n_bytes);
        // Earlier work says nothing about the remaining time.
        self.writer.progress.reset_eta();
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        let n_kept = self.n_kept.saturating_sub(self.n_bytes).min(bytes.len() as u64);
        self.n_bytes += bytes.len() as u64;
        self.writer.progress.inc(bytes.len() as u64);
        bytes = &bytes[n_kept as usize..];
        while !bytes.is_empty() {
            let room = self.writer.chunk_size as usize - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() as u64 == self.writer.chunk_size {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        write_whole(&self.writer.partial.join(chunk_name(self.name, self.done.len())), &self.buffer)?;
        let buffer = std::mem::take(&mut self.buffer);
        self.done(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    fn done(&mut self, bytes: &[u8]) {
        let path = chunk_name(self.name, self.done.len());
        self.done.push(Chunk {
            path,
            offset: 0,
            size: bytes.len() as u64,
            sha256: hex(Sha256::new_with_prefix(bytes)),
        });
    }

    fn finish(mut self, header_size: u64) -> Result<File> {
        if !self.buffer.is_empty() {
            self.flush()?;
        }
        Ok(File { name: self.name.into(), size: self.n_bytes, header_size, chunks: self.done })
    }
}

fn chunk_name(file: &str, idx: usize) -> String {
    format!("{file}.{idx:03}")
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An operating system error.
pub fn failed(path: &Path, verb: &str, error: std::io::Error) -> Error {
    Error::corrupt(path.display().to_string(), format!("cannot {verb}"), error.to_string())
}

/// A folder is overwritten only if everything in it belongs to a model.
fn check_target(target: &Path) -> Result<()> {
    if !target.exists() {
        return Ok(());
    }
    let refuse = |problem: String| Err(Error::corrupt(target.display().to_string(), "output", problem));
    let Ok(entries) = fs::read_dir(target) else {
        return refuse("it exists and is not a folder that can be read".into());
    };
    let names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let Ok(manifest) = read_manifest(target) else {
        return refuse("the folder exists and holds something else than a model; choose another name".into());
    };
    let chunks = manifest.files.iter().flat_map(|file| &file.chunks).map(|chunk| chunk.path.as_str());
    let pictures = manifest.samples.iter().map(|sample| sample.path.as_str());
    // A run killed at the very end leaves its fingerprint.
    let ours: BTreeSet<&str> = chunks.chain(pictures).chain(["manifest.json", FINGERPRINT]).collect();
    match names.iter().find(|name| !ours.contains(name.as_str())) {
        Some(name) => refuse(format!("the model folder also holds {name}, which would be lost; remove it first")),
        None => Ok(()),
    }
}

/// Removes everything but chunks from a partial folder: half-written files, and samples' pictures that this run may not
/// have.
fn clear(partial: &Path) -> Result<()> {
    let is_kept = |name: &str| {
        let is_chunk = [DECODER, ENCODER].iter().any(|file| name.starts_with(&format!("{file}.")));
        name == FINGERPRINT || is_chunk && !name.ends_with(".new")
    };
    let entries = fs::read_dir(partial).map_err(|error| failed(partial, "open", error))?;
    let mut others = entries.flatten().filter(|entry| !is_kept(&entry.file_name().to_string_lossy()));
    others.try_for_each(|entry| fs::remove_file(entry.path()).map_err(|error| failed(&entry.path(), "remove", error)))
}

/// Replaces a folder's manifest.
pub fn write_manifest(folder: &Path, manifest: &Manifest) -> Result<()> {
    let path = folder.join("manifest.json");
    write_whole(&path, &manifest_bytes(manifest)?)?;
    flush_folder(&path)
}

fn manifest_bytes(manifest: &Manifest) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(manifest).expect("a manifest is plain data");
    json.push(b'\n');
    Manifest::parse(&json)?;
    Ok(json)
}

/// Reads and checks a folder's manifest.
fn read_manifest(folder: &Path) -> Result<Manifest> {
    let bytes = read_small(&folder.join("manifest.json"), MAX_MANIFEST_BYTES)?;
    Manifest::parse(&json::decoded("manifest.json", bytes)?)
}

/// Reads a whole file of at most `max` bytes.
pub fn read_small(path: &Path, max: usize) -> Result<Vec<u8>> {
    let mut file = fs::File::open(path).map_err(|error| failed(path, "open", error))?;
    let size = file.metadata().map_err(|error| failed(path, "read", error))?.len();
    if size > max as u64 {
        let problem = format!("{size} bytes are more than {max}");
        return Err(Error::corrupt(path.display().to_string(), "size", problem));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| failed(path, "read", error))?;
    refuse_stand_in(path, &bytes)?;
    Ok(bytes)
}

/// Fails if the first bytes show that a placeholder was saved instead of a model file; leaves the read position at the
/// start.
pub fn check_stand_in(path: &Path, mut file: &fs::File) -> Result<()> {
    let mut first = Vec::new();
    let read = file.take(200).read_to_end(&mut first).and_then(|_| file.rewind());
    read.map_err(|error| failed(path, "read", error))?;
    refuse_stand_in(path, &first)
}

fn refuse_stand_in(path: &Path, first: &[u8]) -> Result<()> {
    match stand_in(first) {
        Some(problem) => Err(Error::corrupt(path.display().to_string(), "contents", problem)),
        None => Ok(()),
    }
}

/// One GGUF file on disk: a single file, the parts of a split one, or the chunks of a model folder.
pub struct Stored {
    name: String,
    /// Byte range within the whole file, path, and where the range starts in that path's file.
    parts: Vec<(Range<u64>, PathBuf, u64)>,
    /// First bytes of a file that exists only as parts.
    joined_header: Vec<u8>,
    size: u64,
}

impl Stored {
    /// A single GGUF file, or all parts of a split one, given any of them.
    pub fn open(path: &Path) -> Result<Self> {
        let named = Self::single(path)?;
        let (_, gguf) = named.header()?;
        let Some((_, n_parts)) = gguf.split()? else { return Ok(named) };
        let names = path.file_name().and_then(|name| part_names(name.to_str()?)).filter(|names| names.len() == n_parts);
        let Some(names) = names else {
            let problem = format!("a part of {n_parts} must have a name such as x-00001-of-{n_parts:05}.gguf");
            return Err(Error::corrupt(path.display().to_string(), "name", problem));
        };
        let paths: Vec<PathBuf> = names.iter().map(|name| path.with_file_name(name)).collect();
        let headers = paths.iter().map(|path| Ok(Self::single(path)?.header()?.1)).collect::<Result<Vec<Gguf>>>()?;
        let whole = Whole::of(&headers)?;
        let mut start = whole.header_size;
        let mut parts = Vec::new();
        for (path, range) in paths.into_iter().zip(whole.ranges) {
            let end = start + range.end - range.start;
            parts.push((start..end, path, range.start));
            start = end;
        }
        Ok(Self { name: named.name, parts, joined_header: whole.header.unwrap_or_default(), size: whole.size })
    }

    fn single(path: &Path) -> Result<Self> {
        let size = fs::metadata(path).map_err(|error| failed(path, "open", error))?.len();
        let parts = vec![(0..size, path.into(), 0)];
        Ok(Self { name: path.display().to_string(), parts, joined_header: Vec::new(), size })
    }

    /// A file of a model folder. Chunks must be complete; [`Stored::verify`] checks their hashes.
    fn in_folder(folder: &Path, file: &File) -> Result<Self> {
        let mut start = 0;
        let mut parts = Vec::new();
        for chunk in &file.chunks {
            let path = folder.join(&chunk.path);
            let found = fs::metadata(&path).map_err(|error| failed(&path, "open", error))?.len();
            if found < chunk.offset.saturating_add(chunk.size) {
                check_stand_in(&path, &fs::File::open(&path).map_err(|error| failed(&path, "open", error))?)?;
                let expected = format!("expected {} bytes from {} on", chunk.size, chunk.offset);
                let problem = format!("the file is cut short: {expected}, it has {found}");
                return Err(Error::corrupt(path.display().to_string(), "size", problem));
            }
            parts.push((start..start + chunk.size, path, chunk.offset));
            start += chunk.size;
        }
        Ok(Self { name: file.name.clone(), parts, joined_header: Vec::new(), size: start })
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its name; in a model folder, the manifest's name for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compares every chunk with its hash.
    pub fn verify(&self, file: &File) -> Result<()> {
        for ((range, path, _), chunk) in self.parts.iter().zip(&file.chunks) {
            let bytes = self.read(range.clone())?;
            let found = hex(Sha256::new_with_prefix(&bytes));
            if found != chunk.sha256 {
                let problem = format!("expected {}, found {found}", chunk.sha256);
                return Err(Error::corrupt(path.display().to_string(), "sha256", problem));
            }
        }
        Ok(())
    }

    /// Reads a byte range.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        if range.end > self.size || range.start > range.end {
            return Err(Error::corrupt(&self.name, "size", format!("bytes {range:?} of {}", self.size)));
        }
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let header = &self.joined_header;
        bytes.extend(header.get(range.start as usize..header.len().min(range.end as usize)).unwrap_or_default());
        let first = self.parts.partition_point(|(part, _, _)| part.end <= range.start);
        for (part, path, offset) in self.parts[first..].iter().take_while(|(part, _, _)| part.start < range.end) {
            let (from, to) = (part.start.max(range.start), part.end.min(range.end));
            let at = bytes.len();
            bytes.resize(at + (to - from) as usize, 0);
            let read = fs::File::open(path).and_then(|mut file| {
                file.seek(SeekFrom::Start(offset + from - part.start))?;
                file.read_exact(&mut bytes[at..])
            });
            read.map_err(|error| failed(path, "read", error))?;
        }
        Ok(bytes)
    }

    /// The first bytes, including the whole header, and the parsed header.
    pub fn header(&self) -> Result<(Vec<u8>, Gguf)> {
        let mut n_bytes = (1 << 20).min(self.size);
        loop {
            let prefix = self.read(0..n_bytes)?;
            if let Some(gguf) = Gguf::parse(&self.name, &prefix, self.size)? {
                return Ok((prefix, gguf));
            }
            n_bytes = (2 * n_bytes).min(self.size);
        }
    }
}

/// Where a model is.
#[derive(Debug, Clone)]
pub enum Source {
    /// A model folder.
    Folder(PathBuf),
    /// GGUF files from llama.cpp's converters.
    Files(Files<PathBuf>),
}

impl Source {
    /// Its name and its files.
    pub fn open(&self) -> Result<(String, Files<Stored>)> {
        match self {
            Self::Folder(folder) => open_folder(folder).map(|(manifest, files)| (manifest.name, files)),
            Self::Files(Files { decoder, encoder }) => {
                let decoder = Stored::open(decoder)?;
                let encoder = encoder.as_deref().map(Stored::open).transpose()?;
                let (_, gguf) = decoder.header()?;
                // Done here, where the files still have their own names.
                DecoderSpec::read(&gguf)?;
                if let Some(encoder) = &encoder {
                    VisionSpec::read(&encoder.header()?.1)?;
                }
                let name = gguf.title()?.unwrap_or(decoder.name()).to_owned();
                Ok((name, Files { decoder, encoder }))
            }
        }
    }
}

/// The manifest and the files of a model folder.
pub fn open_folder(folder: &Path) -> Result<(Manifest, Files<Stored>)> {
    let manifest = read_manifest(folder)?;
    let stored = |name: &str| manifest.file(name).map(|file| Stored::in_folder(folder, file)).transpose();
    let decoder = stored(DECODER)?.ok_or_else(|| Error::corrupt("manifest.json", "files", format!("no {DECODER}")))?;
    let encoder = stored(ENCODER)?;
    Ok((manifest, Files { decoder, encoder }))
}
