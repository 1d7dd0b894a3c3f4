//! The kinds of TIFF that the general decoder leaves out: grey of any number type (floats, signed numbers, 32 bits),
//! grey with further samples, palettes, and luma-chroma pixels as slide scanners store them in JPEG tiles.

use std::io::Cursor;

use image::metadata::Orientation;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::{CompressionMethod, Tag};
use tiff::{ColorType, TiffError};

use super::decode::{Samples, jpeg_markers, zeros};
use crate::{Error, Result};

/// Photometric interpretation of grey where 0 is black.
const BLACK_IS_ZERO: u16 = 1;
/// Photometric interpretation of indexes into a colour map.
const PALETTE: u16 = 3;

/// Bytes of a JPEG tile in which its size is looked for.
const MAX_JPEG_HEADER: usize = 1 << 16;

/// Pixels as the file stores them.
pub(super) struct Stored {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
    pub(super) samples: Samples,
    /// Samples of a pixel, as they follow each other in memory.
    pub(super) n_channels: usize,
}

fn problem(error: TiffError) -> Error {
    Error::Image(format!("TIFF: {error}"))
}

/// Reads the first picture, or gives `None` where the general decoder knows its kind of pixel. `check` is asked about
/// width and height before memory is taken, and no buffer is larger than `max_alloc` bytes.
pub(super) fn decode(bytes: &[u8], max_alloc: u64, check: impl Fn(u32, u32) -> Result<()>) -> Result<Option<Stored>> {
    check_entries(bytes)?;
    let mut decoder = open(bytes, max_alloc)?;
    let (width, height) = decoder.dimensions().map_err(problem)?;
    check(width, height)?;
    check_jpeg_chunks(bytes, &mut decoder, &check)?;
    let orientation = decoder.find_tag_unsigned::<u16>(Tag::Orientation).map_err(problem)?;
    let orientation = orientation.and_then(|value| Orientation::from_exif(value.min(255) as u8));
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    let photometric = decoder.find_tag_unsigned::<u16>(Tag::PhotometricInterpretation).map_err(problem)?;
    if photometric == Some(PALETTE) {
        let colors = decoder.get_tag_u16_vec(Tag::ColorMap).map_err(problem)?;
        let grey = as_grey(bytes)?;
        let mut decoder = open(&grey, max_alloc)?;
        let ColorType::Gray(bits @ 1..=8) = decoder.colortype().map_err(problem)? else {
            return Err(Error::Image("TIFF: expected palette indexes of at most 8 bits".to_owned()));
        };
        let DecodingResult::U8(packed) = decoder.read_image().map_err(problem)? else {
            return Err(Error::Image("TIFF: expected palette indexes without a sign".to_owned()));
        };
        let rgb = look_up(&unpack(packed, bits, width as usize), &colors, 1 << bits)?;
        return Ok(Some(Stored { width, height, orientation, samples: Samples::U8(rgb), n_channels: 3 }));
    }
    let formats = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat).map_err(problem)?;
    let is_unsigned = formats.is_none_or(|formats| formats.iter().all(|&format| format == 1));
    let is_planar = decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration).map_err(problem)? == Some(2);
    let (bits, n_channels) = match decoder.colortype().map_err(problem)? {
        ColorType::Gray(1 | 8 | 16) if is_unsigned => return Ok(None),
        ColorType::Gray(bits) => (bits, 1),
        // Only the first plane of several is read.
        ColorType::Multiband { bit_depth, .. } if is_planar => (bit_depth, 1),
        ColorType::Multiband { bit_depth, num_samples } => (bit_depth, usize::from(num_samples)),
        ColorType::YCbCr(8) if !is_planar => (8, 3),
        _ => return Ok(None),
    };
    let is_luma_chroma = photometric == Some(6);
    let samples = match decoder.read_image().map_err(problem)? {
        DecodingResult::U8(mut samples) if is_luma_chroma => {
            samples.as_chunks_mut::<3>().0.iter_mut().for_each(to_rgb);
            Samples::U8(samples)
        }
        DecodingResult::U8(packed) if bits < 8 && n_channels == 1 => {
            let mut samples = unpack(packed, bits, width as usize);
            let white = (1u16 << bits) - 1;
            samples.iter_mut().for_each(|level| *level = (u16::from(*level) * 255 / white) as u8);
            Samples::U8(samples)
        }
        samples => numbers(samples)?,
    };
    let n_values = u64::from(width) * u64::from(height) * n_channels as u64;
    if samples.len() as u64 != n_values {
        return Err(Error::Image(format!("TIFF: expected {n_values} samples, found {}", samples.len())));
    }
    Ok(Some(Stored { width, height, orientation, samples, n_channels }))
}

/// A decoder at the first picture.
fn open(bytes: &[u8], max_alloc: u64) -> Result<Decoder<Cursor<&[u8]>>> {
    let max_alloc = usize::try_from(max_alloc).unwrap_or(usize::MAX);
    let mut limits = Limits::default();
    limits.decoding_buffer_size = max_alloc;
    limits.intermediate_buffer_size = max_alloc;
    limits.ifd_value_size = max_alloc.min(1 << 24);
    Ok(Decoder::new(Cursor::new(bytes)).map_err(problem)?.with_limits(limits))
}

/// One entry of the first directory, as it lies in the file.
struct Entry {
    tag: u16,
    kind: u16,
    n_values: u64,
    /// Place of the value, or of its offset.
    at: usize,
}

/// The first directory's entries; as many as there are bytes for.
fn entries(bytes: &[u8]) -> Vec<Entry> {
    let number = |at: usize, n: usize| {
        let field = bytes.get(at..at.checked_add(n)?)?;
        let join = |value, &byte: &u8| value << 8 | u64::from(byte);
        Some(if bytes.starts_with(b"II") { field.iter().rev().fold(0, join) } else { field.iter().fold(0, join) })
    };
    let is_big = number(2, 2) == Some(43);
    // Bytes of an offset or a count, and of the number of entries.
    let (wide, n_entries_bytes) = if is_big { (8, 8) } else { (4, 2) };
    let start = number(if is_big { 8 } else { 4 }, wide).and_then(|at| usize::try_from(at).ok());
    let Some((start, n_entries)) = start.and_then(|start| Some((start, number(start, n_entries_bytes)?))) else {
        return Vec::new();
    };
    let first = start + n_entries_bytes;
    let entry = |at: usize| {
        let tag = number(at, 2)? as u16;
        Some(Entry { tag, kind: number(at + 2, 2)? as u16, n_values: number(at + 4, wide)?, at: at + 4 + wide })
    };
    (0..n_entries).map_while(|idx| entry(first + idx as usize * (4 + 2 * wide))).collect()
}

/// Refuses tags that claim more values than the file has bytes: the decoder takes 32 bytes a value before it looks.
fn check_entries(bytes: &[u8]) -> Result<()> {
    for Entry { tag, kind, n_values, .. } in entries(bytes) {
        let n_bytes = match kind {
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16..=18 => 8,
            _ => 1,
        };
        if n_values.saturating_mul(n_bytes) > bytes.len() as u64 {
            return Err(Error::Image(format!("TIFF: tag {tag} claims {n_values} values, more than the file holds")));
        }
    }
    Ok(())
}

/// Refuses JPEG tiles and strips that claim a size no memory is to be taken for.
fn check_jpeg_chunks(
    bytes: &[u8],
    decoder: &mut Decoder<Cursor<&[u8]>>,
    check: impl Fn(u32, u32) -> Result<()>,
) -> Result<()> {
    let compression = decoder.find_tag_unsigned::<u16>(Tag::Compression).map_err(problem)?;
    if compression != Some(CompressionMethod::ModernJPEG.to_u16()) {
        return Ok(());
    }
    for tag in [Tag::TileOffsets, Tag::StripOffsets] {
        let offsets = decoder.find_tag_unsigned_vec::<u64>(tag).map_err(problem)?.unwrap_or_default();
        for offset in offsets {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let chunk = &bytes[start..bytes.len().min(start.saturating_add(MAX_JPEG_HEADER))];
            if let Some((width, height)) = jpeg_markers(chunk).size {
                check(width, height)?;
            }
        }
    }
    Ok(())
}

/// A copy of the file that calls its palette indexes grey, which is how the decoder reads them.
fn as_grey(bytes: &[u8]) -> Result<Vec<u8>> {
    let lost = || Error::Image("TIFF: PhotometricInterpretation: the tag is cut short".to_owned());
    let tag = Tag::PhotometricInterpretation.to_u16();
    let entry = entries(bytes).into_iter().find(|entry| entry.tag == tag).ok_or_else(lost)?;
    let mut grey = bytes.to_vec();
    // A number of two bytes stands at the start of the value field in either byte order.
    let value = if bytes.starts_with(b"II") { BLACK_IS_ZERO.to_le_bytes() } else { BLACK_IS_ZERO.to_be_bytes() };
    grey.get_mut(entry.at..entry.at + 2).ok_or_else(lost)?.copy_from_slice(&value);
    Ok(grey)
}

/// One byte a sample from rows of packed bits, each of which starts at a byte.
fn unpack(packed: Vec<u8>, bits: u8, width: usize) -> Vec<u8> {
    if bits == 8 {
        return packed;
    }
    let bits = usize::from(bits);
    let sample = |row: &[u8], x: usize| {
        (x * bits..(x + 1) * bits).fold(0, |value, bit| value << 1 | (row[bit / 8] >> (7 - bit % 8)) & 1)
    };
    packed.chunks_exact((width * bits).div_ceil(8)).flat_map(|row| (0..width).map(move |x| sample(row, x))).collect()
}

/// The colours of palette indexes; a colour map holds all reds, then all greens, then all blues, in 16 bits.
fn look_up(indexes: &[u8], colors: &[u16], n_colors: usize) -> Result<Vec<u8>> {
    if colors.len() != 3 * n_colors {
        let found = colors.len();
        return Err(Error::Image(format!("TIFF: ColorMap: expected {} values, found {found}", 3 * n_colors)));
    }
    let mut rgb = zeros(indexes.len() as u64 * 3)?;
    for (pixel, &index) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(indexes) {
        *pixel = [0, 1, 2].map(|channel| (colors[channel * n_colors + usize::from(index)] >> 8) as u8);
    }
    Ok(rgb)
}

/// JFIF's luma and chroma to red, green and blue.
fn to_rgb(pixel: &mut [u8; 3]) {
    let [luma, blue, red] = pixel.map(f32::from);
    let (blue, red) = (blue - 128.0, red - 128.0);
    let rgb = [luma + 1.402 * red, luma - 0.344_136 * blue - 0.714_136 * red, luma + 1.772 * blue];
    *pixel = rgb.map(|level| level.round() as u8);
}

/// Bytes and 16-bit numbers as they are, everything else as f32.
fn numbers(samples: DecodingResult) -> Result<Samples> {
    fn floats<T>(values: Vec<T>, to_f32: impl Fn(T) -> f32) -> Result<Samples> {
        let n_bytes = values.len() * 4;
        let mut floats = Vec::new();
        floats
            .try_reserve_exact(values.len())
            .map_err(|_| Error::OutOfMemory { what: "the picture".to_owned(), bytes: n_bytes })?;
        floats.extend(values.into_iter().map(to_f32));
        Ok(Samples::F32(floats))
    }
    match samples {
        DecodingResult::U8(values) => Ok(Samples::U8(values)),
        DecodingResult::U16(values) => Ok(Samples::U16(values)),
        DecodingResult::F32(values) => Ok(Samples::F32(values)),
        DecodingResult::F16(values) => floats(values, f32::from),
        DecodingResult::F64(values) => floats(values, |value| value as f32),
        DecodingResult::U32(values) => floats(values, |value| value as f32),
        DecodingResult::U64(values) => floats(values, |value| value as f32),
        DecodingResult::I8(values) => floats(values, f32::from),
        DecodingResult::I16(values) => floats(values, f32::from),
        DecodingResult::I32(values) => floats(values, |value| value as f32),
        DecodingResult::I64(values) => floats(values, |value| value as f32),
    }
}
