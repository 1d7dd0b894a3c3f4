//! TIFF compressed with zstd or LZMA: makes a copy of the file with uncompressed strips or tiles, for a decoder that
//! supports neither.

use std::io::{Cursor, Read};

use lzma_rust2::Lzma2Reader;
use lzma_rust2::filter::delta::DeltaReader;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use tiff::decoder::{ChunkType, Decoder};
use tiff::tags::Tag;

use super::{Entry, entries, is_big, put};
use crate::picture::decode::{SizeLimit, make_room, zeros};
use crate::{Error, Result};

/// The compressions handled here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Zstd,
    Lzma,
}

/// Largest window of a zstd frame; only its "ultra" levels ask for more.
const MAX_WINDOW: u64 = 64 << 20;
/// The id of no compression.
const NONE: u64 = 1;
/// Ids of types: two-byte numbers, and offsets in files with 4-byte and with 8-byte offsets.
const SHORT: u64 = 3;
const LONG: u64 = 4;
const LONG8: u64 = 16;

impl Packing {
    /// The compression with this id in the Compression tag.
    pub(super) fn of(compression: u16) -> Option<Self> {
        match compression {
            50000 => Some(Self::Zstd),
            34925 => Some(Self::Lzma),
            _ => None,
        }
    }
}

/// The strips or tiles as the file describes them.
struct Chunks {
    offsets: Vec<u64>,
    sizes: Vec<u64>,
    /// Uncompressed bytes of each.
    unpacked: Vec<usize>,
    tags: [Tag; 2],
}

/// A copy of the file with its first picture's strips or tiles appended in uncompressed form.
pub(super) fn unpacked(
    bytes: &[u8],
    decoder: &mut Decoder<Cursor<&[u8]>>,
    packing: Packing,
    limit: &SizeLimit,
) -> Result<Vec<u8>> {
    let chunks = describe(decoder)?;
    let n_unpacked: u64 = chunks.unpacked.iter().map(|&n| n as u64).sum();
    let width = if is_big(bytes) { 8 } else { 4 };
    let n_tables = 2 * width * chunks.offsets.len();
    if n_unpacked > limit.n_bytes() {
        return Err(Error::Image(format!("TIFF: its strips or tiles hold {n_unpacked} bytes, more than its pixels")));
    }
    let mut whole: Vec<u8> = zeros((bytes.len() + n_tables) as u64 + n_unpacked)?;
    whole[..bytes.len()].copy_from_slice(bytes);
    let mut zstd = FrameDecoder::new();
    zstd.set_max_window_size(MAX_WINDOW);
    let mut at = bytes.len() + n_tables;
    for (idx, &n) in chunks.unpacked.iter().enumerate() {
        let start = usize::try_from(chunks.offsets[idx]).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(usize::try_from(chunks.sizes[idx]).unwrap_or(usize::MAX)).min(bytes.len());
        let out = &mut whole[at..at + n];
        let result = match packing {
            Packing::Zstd => unpack_zstd(&bytes[start..end], out, &mut zstd)?,
            Packing::Lzma => unpack_xz(&bytes[start..end], out)?,
        };
        result.map_err(|reason| Error::Image(format!("TIFF: strip or tile {idx}: {packing:?}: {reason}")))?;
        put(&mut whole, bytes.len() + width * idx, width, at as u64);
        put(&mut whole, bytes.len() + width * (chunks.offsets.len() + idx), width, n as u64);
        at += n;
    }
    describe_anew(&mut whole, bytes.len(), &chunks, width);
    Ok(whole)
}

/// Where the strips or tiles are, and the uncompressed size of each.
fn describe(decoder: &mut Decoder<Cursor<&[u8]>>) -> Result<Chunks> {
    let problem = super::problem;
    let (_, height) = decoder.dimensions().map_err(problem)?;
    let is_tiled = decoder.get_chunk_type() == ChunkType::Tile;
    let tags =
        if is_tiled { [Tag::TileOffsets, Tag::TileByteCounts] } else { [Tag::StripOffsets, Tag::StripByteCounts] };
    let offsets = decoder.get_tag_u64_vec(tags[0]).map_err(problem)?;
    let sizes = decoder.get_tag_u64_vec(tags[1]).map_err(problem)?;
    let is_planar = decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration).map_err(problem)? == Some(2);
    let n_samples = decoder.find_tag_unsigned::<u16>(Tag::SamplesPerPixel).map_err(problem)?.unwrap_or(1);
    let bits = decoder.find_tag_unsigned_vec::<u16>(Tag::BitsPerSample).map_err(problem)?;
    let bits = bits.and_then(|bits| bits.first().copied()).unwrap_or(1);
    let (width, rows) = decoder.chunk_dimensions();
    let row_bits = u64::from(width) * u64::from(bits) * if is_planar { 1 } else { u64::from(n_samples) };
    let row_bytes = row_bits.div_ceil(8) as usize;
    let n_down = u64::from(height).div_ceil(u64::from(rows).max(1)).max(1);
    // The last strip of a plane holds only the remaining rows; tiles are always whole.
    let n_rows = |idx: u64| match is_tiled {
        true => u64::from(rows),
        false => u64::from(rows).min(u64::from(height).saturating_sub(idx % n_down * u64::from(rows))),
    };
    let unpacked = (0..offsets.len() as u64).map(|idx| (n_rows(idx) as usize).saturating_mul(row_bytes)).collect();
    match offsets.len() == sizes.len() {
        true => Ok(Chunks { offsets, sizes, unpacked, tags }),
        false => {
            let (expected, found) = (offsets.len(), sizes.len());
            Err(Error::Image(format!("TIFF: {:?}: expected {expected} values, found {found}", tags[1])))
        }
    }
}

/// Makes the first directory point to the two tables, offsets and sizes, that start at `tables`.
fn describe_anew(whole: &mut [u8], tables: usize, chunks: &Chunks, width: usize) {
    let n = chunks.offsets.len();
    for Entry { tag, start, value, .. } in entries(whole) {
        if tag == Tag::Compression.to_u16() {
            put(whole, start + 2, 2, SHORT);
            put(whole, start + 4, width, 1);
            put(whole, value, 2, NONE);
        }
        let Some(table) = chunks.tags.iter().position(|it| it.to_u16() == tag) else { continue };
        let table = tables + table * width * n;
        put(whole, start + 2, 2, if width == 8 { LONG8 } else { LONG });
        if n == 1 {
            // A single value is stored in place of its offset.
            whole.copy_within(table..table + width, value);
        } else {
            put(whole, value, width, table as u64);
        }
    }
}

/// What went wrong within one strip or tile.
type Unpacked = std::result::Result<(), String>;

fn fill(mut reader: impl Read, out: &mut [u8]) -> Unpacked {
    reader.read_exact(out).map_err(|error| format!("expected {} bytes: {error}", out.len()))
}

fn unpack_zstd(packed: &[u8], out: &mut [u8], decoder: &mut FrameDecoder) -> Result<Unpacked> {
    // The frame's header: magic number, descriptor, and the window size unless the frame is a single segment.
    let window = match packed.get(4..6) {
        Some(&[descriptor, window]) if descriptor & 0x20 == 0 => (8 + u64::from(window & 7)) << (7 + (window >> 3)),
        _ => out.len() as u64,
    };
    if window > MAX_WINDOW {
        return Ok(Err(format!("a window of {window} bytes, the limit is {MAX_WINDOW}")));
    }
    // The window's buffer grows by doubling.
    make_room(3 * window)?;
    let mut packed = packed;
    let reader = StreamingDecoder::new_with_decoder(&mut packed, decoder);
    Ok(reader.map_err(|error| error.to_string()).and_then(|reader| fill(reader, out)))
}

/// The container's headers, then LZMA2, possibly after a delta filter.
fn unpack_xz(packed: &[u8], out: &mut [u8]) -> Result<Unpacked> {
    let Some((body, filters)) = xz_filters(packed) else { return Ok(Err("it has no valid xz header".to_owned())) };
    // A dictionary larger than the unpacked data is never filled.
    let dictionary = (out.len() as u32).max(4096);
    make_room(2 * u64::from(dictionary) + (1 << 20))?;
    let reader = Lzma2Reader::new(body, dictionary, None);
    Ok(match filters.as_slice() {
        [(LZMA2, _)] => fill(reader, out),
        [(DELTA, distance), (LZMA2, _)] => fill(DeltaReader::new(reader, usize::from(*distance) + 1), out),
        other => Err(format!("filters {:?}", other.iter().map(|filter| filter.0).collect::<Vec<_>>())),
    })
}

/// Ids of xz's filters.
const DELTA: u64 = 3;
const LZMA2: u64 = 0x21;

/// A filter's id and the first byte of its properties.
type Filter = (u64, u8);

/// The first block's data and its filters.
fn xz_filters(packed: &[u8]) -> Option<(&[u8], Vec<Filter>)> {
    const STREAM_HEADER: usize = 12;
    let header = packed.strip_prefix(b"\xfd7zXZ\0").and_then(|_| packed.get(STREAM_HEADER..))?;
    let n_bytes = (usize::from(*header.first()?) + 1) * 4;
    let (mut fields, body) = (header.get(2..n_bytes)?, header.get(n_bytes..)?);
    let flags = header[1];
    let mut number = || {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let (&byte, rest) = fields.split_first()?;
            fields = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    };
    // Sizes of the block, if they are given.
    for flag in [0x40, 0x80] {
        if flags & flag != 0 {
            number()?;
        }
    }
    let mut filters = Vec::new();
    for _ in 0..=flags & 3 {
        let (id, n_properties) = (number()?, number()?);
        let mut first = None;
        for _ in 0..n_properties.min(16) {
            let byte = number()? as u8;
            first.get_or_insert(byte);
        }
        filters.push((id, first?));
    }
    Some((body, filters))
}
