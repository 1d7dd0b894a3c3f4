//! TIFF and BigTIFF: grey and colours of any number type, with alpha and extra samples, palettes, CMYK, and luma-chroma
//! pixels as slide scanners store them in JPEG tiles; uncompressed or with any of the usual compressions.

mod unpacked;

use std::collections::BTreeSet;
use std::io::Cursor;

use bytemuck::Pod;
use image::metadata::Orientation;
use tiff::decoder::{BufferLayoutPreference, Decoder, DecodingSampleType, Limits};
use tiff::tags::{CompressionMethod, Tag};
use tiff::{ColorType, TiffError};

use super::decode::{Alpha, Samples, SizeLimit, Stored, make_room, zeros};
use super::jpeg::markers;
use crate::{Error, Result};
use unpacked::{Packing, unpacked};

/// Photometric interpretation: grey, where 0 is black.
const BLACK_IS_ZERO: u16 = 1;
/// Photometric interpretation: indices into a colour map.
const PALETTE: u16 = 3;
/// Photometric interpretation: luma and chroma.
const LUMA_CHROMA: u16 = 6;

/// Largest tag in bytes; one of its numbers may take 32 bytes in memory.
const MAX_VALUES: usize = 1 << 24;
/// Most directories that are counted.
const MAX_DIRECTORIES: usize = 1 << 16;
/// How many bytes of a JPEG tile are searched for its size.
const MAX_JPEG_HEADER: usize = 1 << 16;
/// Bytes per pixel that the decoder of a JPEG tile allocates.
const JPEG_BYTES_PER_PIXEL: u64 = 12;

fn problem(error: TiffError) -> Error {
    Error::Image(format!("TIFF: {error}"))
}

/// Reads the first picture.
pub(super) fn decode(bytes: &[u8], limit: &SizeLimit) -> Result<Stored> {
    check_entries(bytes)?;
    let mut decoder = open(bytes, limit)?;
    let (width, height) = decoder.dimensions().map_err(problem)?;
    limit.check(width, height)?;
    let compression = decoder.find_tag_unsigned::<u16>(Tag::Compression).map_err(problem)?;
    let mut stored = match compression.and_then(Packing::of) {
        None => decode_first(bytes, decoder, limit)?,
        Some(packing) => {
            let bytes = unpacked(bytes, &mut decoder, packing, limit)?;
            decode_first(&bytes, open(&bytes, limit)?, limit)?
        }
    };
    let n_pages = n_pages(bytes);
    if n_pages > 1 {
        stored.notes.push(format!("Page 1 of {n_pages} is used."));
    }
    Ok(stored)
}

/// Reads the picture at the decoder's position.
fn decode_first(bytes: &[u8], mut decoder: Decoder<Cursor<&[u8]>>, limit: &SizeLimit) -> Result<Stored> {
    check_jpeg_chunks(bytes, &mut decoder, limit)?;
    let orientation = decoder.find_tag_unsigned::<u16>(Tag::Orientation).map_err(problem)?;
    let orientation = orientation.and_then(|value| Orientation::from_exif(value.min(255) as u8));
    let photometric = decoder.find_tag_unsigned::<u16>(Tag::PhotometricInterpretation).map_err(problem)?;
    let mut stored = match photometric {
        Some(PALETTE) => decode_palette(bytes, &mut decoder, limit)?,
        _ => decode_pixels(&mut decoder, photometric == Some(LUMA_CHROMA))?,
    };
    stored.orientation = orientation.unwrap_or(Orientation::NoTransforms);
    Ok(stored)
}

/// Indices into a colour map.
fn decode_palette(bytes: &[u8], decoder: &mut Decoder<Cursor<&[u8]>>, limit: &SizeLimit) -> Result<Stored> {
    let (width, height) = decoder.dimensions().map_err(problem)?;
    let colors = decoder.get_tag_u16_vec(Tag::ColorMap).map_err(problem)?;
    let grey = as_grey(bytes)?;
    let mut decoder = open(&grey, limit)?;
    let ColorType::Gray(bits @ 1..=8) = decoder.colortype().map_err(problem)? else {
        return Err(Error::Image("TIFF: expected palette indexes of at most 8 bits".to_owned()));
    };
    let layout = decoder.image_buffer_layout().map_err(problem)?;
    let Samples::U8(packed) = read(&mut decoder, &layout, layout.len)? else {
        return Err(Error::Image("TIFF: expected palette indexes without a sign".to_owned()));
    };
    let rgb = look_up(&unpack(packed, bits, width as usize)?, &colors, 1 << bits)?;
    Ok(Stored::new(width, height, Samples::U8(rgb), 3))
}

/// Everything else.
fn decode_pixels(decoder: &mut Decoder<Cursor<&[u8]>>, is_luma_chroma: bool) -> Result<Stored> {
    let (width, height) = decoder.dimensions().map_err(problem)?;
    let color = decoder.colortype().map_err(problem)?;
    let layout = decoder.image_buffer_layout().map_err(problem)?;
    let is_planar = layout.planes > 1;
    let (bits, n_channels) = match color {
        ColorType::Gray(bits) => (bits, 1),
        // If there are several planes, only the first is read.
        ColorType::Multiband { bit_depth, .. } if is_planar => (bit_depth, 1),
        ColorType::Multiband { bit_depth, num_samples } => (bit_depth, usize::from(num_samples)),
        ColorType::RGB(bits) => (bits, 3),
        ColorType::RGBA(bits) => (bits, 4),
        ColorType::CMYK(bits) => (bits, 4),
        ColorType::CMYKA(bits) => (bits, 5),
        ColorType::YCbCr(8) if !is_planar => (8, 3),
        other => return Err(Error::Image(format!("TIFF: pixels of type {other:?} cannot be read"))),
    };
    let n_bytes = if n_channels == 1 { layout.len } else { layout.complete_len };
    let mut samples = read(decoder, &layout, n_bytes)?;
    if is_planar && n_channels > 1 {
        samples = interleaved(samples, n_channels)?;
    }
    if let (Samples::U8(packed), true) = (&mut samples, bits < 8 && n_channels == 1) {
        let white = (1u16 << bits) - 1;
        let mut levels = unpack(std::mem::take(packed), bits, width as usize)?;
        levels.iter_mut().for_each(|level| *level = (u16::from(*level) * 255 / white) as u8);
        *packed = levels;
    }
    if let (Samples::U8(samples), true) = (&mut samples, is_luma_chroma) {
        samples.as_chunks_mut::<3>().0.iter_mut().for_each(to_rgb);
    }
    let n_values = width as usize * height as usize * n_channels;
    if samples.len() != n_values {
        return Err(Error::Image(format!("TIFF: expected {n_values} samples, found {}", samples.len())));
    }
    if matches!(color, ColorType::CMYK(_) | ColorType::CMYKA(_)) {
        return Ok(Stored::new(width, height, from_inks(samples, n_channels)?, 3));
    }
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).map_err(problem)?.unwrap_or_default();
    let alpha = match (n_channels, extra.first()) {
        (2 | 4, Some(1)) => Alpha::Premultiplied,
        (2 | 4, Some(2)) => Alpha::Straight,
        // A channel that is not declared as alpha may be anything.
        _ => Alpha::None,
    };
    Ok(Stored { alpha, ..Stored::new(width, height, samples, n_channels) })
}

/// A decoder at the first picture.
fn open<'a>(bytes: &'a [u8], limit: &SizeLimit) -> Result<Decoder<Cursor<&'a [u8]>>> {
    let max_alloc = usize::try_from(limit.n_bytes()).unwrap_or(usize::MAX);
    let mut limits = Limits::default();
    limits.decoding_buffer_size = max_alloc;
    limits.intermediate_buffer_size = max_alloc;
    limits.ifd_value_size = max_alloc.min(MAX_VALUES);
    make_room((bytes.len() as u64 * 32).min(2 * MAX_VALUES as u64))?;
    Ok(Decoder::new(Cursor::new(bytes)).map_err(problem)?.with_limits(limits))
}

/// The first `n_bytes` of the pixels: bytes and 16-bit numbers unchanged, everything else as f32.
fn read(decoder: &mut Decoder<Cursor<&[u8]>>, layout: &BufferLayoutPreference, n_bytes: usize) -> Result<Samples> {
    /// Samples in their stored type.
    fn plain<T: Pod>(decoder: &mut Decoder<Cursor<&[u8]>>, n_bytes: usize) -> Result<Vec<T>> {
        let mut numbers = zeros(n_bytes.div_ceil(size_of::<T>()) as u64)?;
        decoder.read_image_bytes(bytemuck::cast_slice_mut(&mut numbers)).map_err(problem)?;
        Ok(numbers)
    }
    fn floats<T: Pod>(numbers: Result<Vec<T>>, to_f32: impl Fn(T) -> f32) -> Result<Samples> {
        let numbers = numbers?;
        let mut floats: Vec<f32> = zeros(numbers.len() as u64)?;
        floats.iter_mut().zip(numbers).for_each(|(float, number)| *float = to_f32(number));
        Ok(Samples::F32(floats))
    }
    use DecodingSampleType as Kind;
    let kind = layout.sample_type.ok_or_else(|| Error::Image("TIFF: numbers of an unknown type".to_owned()))?;
    match kind {
        Kind::U8 => plain(decoder, n_bytes).map(Samples::U8),
        Kind::U16 => plain(decoder, n_bytes).map(Samples::U16),
        Kind::F32 => plain(decoder, n_bytes).map(Samples::F32),
        Kind::F16 => floats(plain(decoder, n_bytes), |bits| half::f16::from_bits(bits).to_f32()),
        Kind::F64 => floats(plain(decoder, n_bytes), |value: f64| value as f32),
        Kind::U32 => floats(plain(decoder, n_bytes), |value: u32| value as f32),
        Kind::U64 => floats(plain(decoder, n_bytes), |value: u64| value as f32),
        Kind::I8 => floats(plain(decoder, n_bytes), |value: i8| f32::from(value)),
        Kind::I16 => floats(plain(decoder, n_bytes), |value: i16| f32::from(value)),
        Kind::I32 => floats(plain(decoder, n_bytes), |value: i32| value as f32),
        Kind::I64 => floats(plain(decoder, n_bytes), |value: i64| value as f32),
    }
}

/// Planes, stored one after the other, as pixels.
fn interleaved(samples: Samples, n_planes: usize) -> Result<Samples> {
    fn mixed<T: Pod>(planes: &[T], n_planes: usize) -> Result<Vec<T>> {
        let mut mixed = zeros(planes.len() as u64)?;
        for (idx, plane) in planes.chunks_exact((planes.len() / n_planes).max(1)).take(n_planes).enumerate() {
            mixed.iter_mut().skip(idx).step_by(n_planes).zip(plane).for_each(|(to, from)| *to = *from);
        }
        Ok(mixed)
    }
    Ok(match samples {
        Samples::U8(samples) => Samples::U8(mixed(&samples, n_planes)?),
        Samples::U16(samples) => Samples::U16(mixed(&samples, n_planes)?),
        Samples::F32(samples) => Samples::F32(mixed(&samples, n_planes)?),
    })
}

/// Cyan, magenta, yellow and black of 8 or 16 bits, as red, green and blue.
fn from_inks(samples: Samples, n_channels: usize) -> Result<Samples> {
    fn colors<T: Pod + Into<f32>>(
        samples: &[T],
        n_channels: usize,
        white: f32,
        to: impl Fn(f32) -> T,
    ) -> Result<Vec<T>> {
        let mut rgb = zeros((samples.len() / n_channels * 3) as u64)?;
        for (rgb, inks) in rgb.chunks_exact_mut(3).zip(samples.chunks_exact(n_channels)) {
            let light = 1.0 - inks[3].into() / white;
            rgb.iter_mut().zip(inks).for_each(|(level, &ink)| *level = to((white - ink.into()) * light));
        }
        Ok(rgb)
    }
    match samples {
        Samples::U8(inks) => Ok(Samples::U8(colors(&inks, n_channels, 255.0, |level| level as u8)?)),
        Samples::U16(inks) => Ok(Samples::U16(colors(&inks, n_channels, 65535.0, |level| level as u16)?)),
        Samples::F32(_) => Err(Error::Image("TIFF: CMYK of more than 16 bits cannot be read".to_owned())),
    }
}

/// One entry of the first directory, as stored in the file.
struct Entry {
    tag: u16,
    kind: u16,
    n_values: u64,
    /// Offset of the entry.
    start: usize,
    /// Offset of the value field, which has the value or its offset.
    value: usize,
}

/// Whether offsets have 8 bytes.
fn is_big(bytes: &[u8]) -> bool {
    matches!(bytes.get(..4), Some(b"II+\0" | b"MM\0+"))
}

/// A number of `n` bytes in the file's byte order; `None` if it is outside the file.
fn number(bytes: &[u8], at: usize, n: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(n)?)?;
    let join = |value, &byte: &u8| value << 8 | u64::from(byte);
    Some(if bytes.starts_with(b"II") { field.iter().rev().fold(0, join) } else { field.iter().fold(0, join) })
}

/// Bytes of an offset or a count.
fn wide(bytes: &[u8]) -> usize {
    if is_big(bytes) { 8 } else { 4 }
}

/// Offset of the first directory.
fn first_directory(bytes: &[u8]) -> Option<usize> {
    number(bytes, wide(bytes), wide(bytes)).and_then(|at| usize::try_from(at).ok())
}

/// A directory: the offset of its first entry, and the number of entries.
fn directory(bytes: &[u8], start: usize) -> Option<(usize, u64)> {
    let n_bytes = if is_big(bytes) { 8 } else { 2 };
    Some((start.checked_add(n_bytes)?, number(bytes, start, n_bytes)?))
}

/// The first directory's entries, as many as there are bytes for.
fn entries(bytes: &[u8]) -> Vec<Entry> {
    let Some((first, n_entries)) = first_directory(bytes).and_then(|start| directory(bytes, start)) else {
        return Vec::new();
    };
    let wide = wide(bytes);
    let entry = |start: usize| {
        let (tag, kind) = (number(bytes, start, 2)? as u16, number(bytes, start + 2, 2)? as u16);
        Some(Entry { tag, kind, n_values: number(bytes, start + 4, wide)?, start, value: start + 4 + wide })
    };
    (0..n_entries).map_while(|idx| entry(first + idx as usize * (4 + 2 * wide))).collect()
}

/// Pages: the chain of directories, not counting thumbnails and masks.
fn n_pages(bytes: &[u8]) -> usize {
    /// Bits of NewSubfileType that mark a thumbnail or a mask of another page.
    const NO_PAGE: u64 = 1 | 4;
    let wide = wide(bytes);
    let (mut n, mut visited, mut next) = (0, BTreeSet::new(), first_directory(bytes));
    while let Some(start) = next.filter(|&start| start > 0 && visited.len() < MAX_DIRECTORIES && visited.insert(start))
    {
        let Some((first, n_entries)) = directory(bytes, start) else { break };
        let entry_bytes = 4 + 2 * wide;
        let n_entries = usize::try_from(n_entries).unwrap_or(usize::MAX).min(bytes.len() / entry_bytes);
        let kind = (0..n_entries)
            .map(|idx| first + idx * entry_bytes)
            .find(|&at| number(bytes, at, 2) == Some(Tag::NewSubfileType.to_u16().into()));
        let kind = kind.and_then(|at| number(bytes, at + 4 + wide, 4)).unwrap_or(0);
        n += usize::from(n == 0 || kind & NO_PAGE == 0);
        next = number(bytes, first + n_entries * entry_bytes, wide).and_then(|at| usize::try_from(at).ok());
    }
    n
}

/// Writes a number of `n` bytes in the file's byte order; does nothing outside the file.
fn put(bytes: &mut [u8], at: usize, n: usize, value: u64) {
    let is_little = bytes.starts_with(b"II");
    let Some(field) = at.checked_add(n).and_then(|end| bytes.get_mut(at..end)) else { return };
    for (idx, byte) in field.iter_mut().enumerate() {
        let place = if is_little { idx } else { n - 1 - idx };
        *byte = (value >> (8 * place)) as u8;
    }
}

/// Refuses tags that claim more values than the file has bytes: the decoder allocates 32 bytes per value before it
/// checks.
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

/// Refuses JPEG tiles and strips that claim a size for which no memory should be allocated.
fn check_jpeg_chunks(bytes: &[u8], decoder: &mut Decoder<Cursor<&[u8]>>, limit: &SizeLimit) -> Result<()> {
    let compression = decoder.find_tag_unsigned::<u16>(Tag::Compression).map_err(problem)?;
    if compression != Some(CompressionMethod::ModernJPEG.to_u16()) {
        return Ok(());
    }
    let mut n_pixels = 0;
    for tag in [Tag::TileOffsets, Tag::StripOffsets] {
        let offsets = decoder.find_tag_unsigned_vec::<u64>(tag).map_err(problem)?.unwrap_or_default();
        for offset in offsets {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let chunk = &bytes[start..bytes.len().min(start.saturating_add(MAX_JPEG_HEADER))];
            if let Some((width, height)) = markers(chunk).size {
                limit.check(width, height)?;
                n_pixels = n_pixels.max(u64::from(width) * u64::from(height));
            }
        }
    }
    make_room(JPEG_BYTES_PER_PIXEL * n_pixels)
}

/// A copy of the file in which palette indices are declared as grey, which is how the decoder reads them.
fn as_grey(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut grey: Vec<u8> = zeros(bytes.len() as u64)?;
    grey.copy_from_slice(bytes);
    let tag = Tag::PhotometricInterpretation.to_u16();
    // A two-byte number is at the start of the value field in either byte order.
    for entry in entries(bytes).iter().filter(|entry| entry.tag == tag) {
        put(&mut grey, entry.value, 2, BLACK_IS_ZERO.into());
    }
    Ok(grey)
}

/// One byte per sample, from rows of packed bits, each of which starts at a byte boundary.
fn unpack(packed: Vec<u8>, bits: u8, width: usize) -> Result<Vec<u8>> {
    if bits == 8 {
        return Ok(packed);
    }
    let bits = usize::from(bits);
    let row_bytes = (width * bits).div_ceil(8);
    let mut samples: Vec<u8> = zeros((packed.len() / row_bytes * width) as u64)?;
    for (samples, row) in samples.chunks_exact_mut(width).zip(packed.chunks_exact(row_bytes)) {
        for (x, sample) in samples.iter_mut().enumerate() {
            let bit = |bit: usize| row[bit / 8] >> (7 - bit % 8) & 1;
            *sample = (x * bits..(x + 1) * bits).fold(0, |value, at| value << 1 | bit(at));
        }
    }
    Ok(samples)
}

/// The colours of palette indices; a colour map has all reds, then all greens, then all blues, in 16 bits.
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

/// From JFIF's luma and chroma to red, green and blue.
fn to_rgb(pixel: &mut [u8; 3]) {
    let [luma, blue, red] = pixel.map(f32::from);
    let (blue, red) = (blue - 128.0, red - 128.0);
    let rgb = [luma + 1.402 * red, luma - 0.344_136 * blue - 0.714_136 * red, luma + 1.772 * blue];
    *pixel = rgb.map(|level| level.round() as u8);
}
