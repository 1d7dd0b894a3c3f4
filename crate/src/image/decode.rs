//! Reads PNG, JPEG, WebP, GIF (first frame), BMP and TIFF files into 8-bit RGB, upright.
//!
//! The bytes come from a person's disk and may be anything: the format is told from the bytes, sizes are checked before
//! memory is taken, and every failure is an error that names the format. Colours follow Pillow's `convert("RGB")`:
//! alpha is dropped, not blended. Two things differ from it on purpose: the orientation that the file asks for is
//! applied, and samples of more than 8 bits are mapped instead of saturated (see [`Picture::decode`]).

use std::io::Cursor;

use bytemuck::Pod;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};

use super::{Picture, tiff};
use crate::{Error, Result};

/// Longest edge that is read.
const MAX_EDGE: u32 = 65535;
/// Most pixels that are read: 402 MB as RGB.
const MAX_PIXELS: u64 = 1 << 27;
/// Pixels that a file of any length may have.
const FREE_PIXELS: u64 = 1 << 23;
/// Further pixels for each byte of the file; beyond it the header lies or the picture is blank.
const MAX_PIXELS_PER_BYTE: u64 = 4096;
/// A 16-bit picture whose values span less than this is stretched to the whole range.
const NARROW_SPAN: usize = 0x4000;

impl Picture {
    /// Decodes a picture from a file's bytes.
    ///
    /// 16-bit samples keep their high byte, as Pillow keeps it for colour, when the values span at least a quarter of the
    /// 16 bits; otherwise (12-bit data in a 16-bit file) the values from the 0.1st to the 99.9th percentile are
    /// stretched to 0..255, all channels alike. 32-bit floats are taken as 0..1 or as 0..255 when all of them are
    /// within, and are stretched in the same way when they are not.
    ///
    /// # Errors
    /// [`Error::Image`] with the format and what is wrong with it; [`Error::OutOfMemory`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let format = sniff(bytes)?;
        let plausible = (FREE_PIXELS + MAX_PIXELS_PER_BYTE.saturating_mul(bytes.len() as u64)).min(MAX_PIXELS);
        match format {
            ImageFormat::Jpeg if !jpeg_markers(bytes).is_complete => {
                return Err(Error::Image("JPEG: the file is cut short: it has no end-of-image marker".to_owned()));
            }
            ImageFormat::WebP => {
                let size = bytes.get(4..8).map_or(0, |n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]) as usize);
                check_webp(bytes, 12, size.saturating_add(8), plausible)?;
            }
            _ => {}
        }
        let mut limits = Limits::no_limits();
        limits.max_image_width = Some(MAX_EDGE);
        limits.max_image_height = Some(MAX_EDGE);
        // Four 16-bit channels for each pixel.
        let max_alloc = plausible * 8;
        limits.max_alloc = Some(max_alloc);
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.limits(limits);
        if format == ImageFormat::Tiff {
            let check = |width, height| check_size(format, width, height, plausible);
            if let Some(tiff::Stored { width, height, orientation, samples, n_channels }) =
                tiff::decode(bytes, max_alloc, check)?
            {
                return upright(width, height, samples.into_rgb(n_channels)?, orientation);
            }
        }
        let mut decoder = reader.into_decoder().map_err(|error| problem(format, &error))?;
        let (width, height) = decoder.dimensions();
        check_size(format, width, height, plausible)?;
        let orientation = decoder.orientation().map_err(|error| problem(format, &error))?;
        let n_channels = usize::from(decoder.color_type().channel_count());
        let rgb = Samples::read(decoder, format)?.into_rgb(n_channels)?;
        upright(width, height, rgb, orientation)
    }
}

/// The format that the first bytes announce, of those that are read.
fn sniff(bytes: &[u8]) -> Result<ImageFormat> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    match image::guess_format(bytes) {
        Ok(format @ (Png | Jpeg | WebP | Gif | Bmp | Tiff)) => Ok(format),
        _ if bytes.is_empty() => Err(Error::Image("the file is empty".to_owned())),
        Ok(format) => {
            Err(Error::Image(format!("{} files cannot be read, only PNG, JPEG, WebP, GIF, BMP and TIFF", name(format))))
        }
        Err(_) => Err(Error::Image("the file is not a PNG, JPEG, WebP, GIF, BMP or TIFF".to_owned())),
    }
}

/// The format's name as people write it.
fn name(format: ImageFormat) -> String {
    match format {
        ImageFormat::WebP => "WebP".to_owned(),
        format => format!("{format:?}").to_uppercase(),
    }
}

/// The innermost reason, behind the format's name.
fn problem(format: ImageFormat, error: &ImageError) -> Error {
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Error::Image(format!("{}: {reason}", name(format)))
}

/// Refuses sizes that no memory is to be taken for.
fn check_size(format: ImageFormat, width: u32, height: u32, plausible: u64) -> Result<()> {
    let format = name(format);
    let n_pixels = u64::from(width) * u64::from(height);
    if n_pixels == 0 {
        return Err(Error::Image(format!("{format}: a picture of {width} x {height} has no pixels")));
    }
    if width > MAX_EDGE || height > MAX_EDGE || n_pixels > MAX_PIXELS {
        return Err(Error::Image(format!(
            "{format}: {width} x {height} is too large, the limit is {MAX_PIXELS} pixels and {MAX_EDGE} on an edge"
        )));
    }
    if n_pixels > plausible {
        return Err(Error::Image(format!("{format}: the file is too short to hold {width} x {height} pixels")));
    }
    Ok(())
}

/// Zeroed numbers, or an error where the memory is not to be had.
pub(super) fn zeros<T: Pod>(n: u64) -> Result<Vec<T>> {
    let lost =
        || Error::OutOfMemory { what: "the picture".to_owned(), bytes: (n as usize).saturating_mul(size_of::<T>()) };
    let n = usize::try_from(n).map_err(|_| lost())?;
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(n).map_err(|_| lost())?;
    numbers.resize(n, T::zeroed());
    Ok(numbers)
}

/// What the markers of a JPEG tell without decoding it.
pub(super) struct Markers {
    /// Whether the end of the image was found.
    pub(super) is_complete: bool,
    /// Width and height of the frame.
    pub(super) size: Option<(u32, u32)>,
}

/// Walks the markers up to the end of the image.
pub(super) fn jpeg_markers(bytes: &[u8]) -> Markers {
    let short = |at: usize| bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let mut markers = Markers { is_complete: false, size: None };
    let mut at = 2;
    while let Some(&[first, marker]) = bytes.get(at..at + 2) {
        match (first, marker) {
            (0xff, 0xd9) => {
                markers.is_complete = true;
                break;
            }
            // Fill bytes, and markers without a length.
            (0xff, 0xff) => at += 1,
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, _) => {
                let is_frame = matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
                if let (true, Some(height), Some(width)) = (is_frame, short(at + 5), short(at + 7)) {
                    markers.size = Some((width.into(), height.into()));
                }
                let Some(length) = short(at + 2) else { break };
                at += 2 + usize::from(length);
            }
            // Compressed data up to the next 0xff.
            _ => at += 1,
        }
    }
    markers
}

/// Walks a WebP's chunks from `at`: the decoder takes memory for as many bytes of metadata as a chunk claims to have, and
/// for as many pixels as the lossy frame claims whatever the file's header says.
fn check_webp(bytes: &[u8], mut at: usize, end: usize, plausible: u64) -> Result<()> {
    let number = |at: usize| {
        let four = bytes.get(at..at + 4).and_then(|four| <[u8; 4]>::try_from(four).ok());
        four.map(u32::from_le_bytes)
    };
    let cut_short = || Error::Image("WebP: the file is shorter than its chunks say".to_owned());
    if end > bytes.len() {
        return Err(cut_short());
    }
    while at + 8 <= end {
        let data = at + 8;
        let data_end = number(at + 4).and_then(|n| data.checked_add(n as usize)).filter(|&it| it <= end);
        let data_end = data_end.ok_or_else(cut_short)?;
        match &bytes[at..at + 4] {
            // The frame's own header, behind its tag and start code.
            b"VP8 " if data_end >= data + 10 => {
                let size = number(data + 6).unwrap_or(0);
                check_size(ImageFormat::WebP, size & 0x3fff, size >> 16 & 0x3fff, plausible)?;
            }
            b"ANMF" if data_end >= data + 16 => check_webp(bytes, data + 16, data_end, plausible)?,
            _ => {}
        }
        // Chunks start at even places.
        at = data_end + data_end % 2;
    }
    Ok(())
}

/// A picture's numbers, channels interleaved.
pub(super) enum Samples {
    U8(Vec<u8>),
    U16(Vec<u16>),
    F32(Vec<f32>),
}

impl Samples {
    /// Numbers of all pixels and channels.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::U8(samples) => samples.len(),
            Self::U16(samples) => samples.len(),
            Self::F32(samples) => samples.len(),
        }
    }

    /// Reads a decoder's pixels.
    fn read(decoder: impl ImageDecoder, format: ImageFormat) -> Result<Self> {
        let color = decoder.color_type();
        let n_samples = decoder.total_bytes() / u64::from(color.bytes_per_pixel() / color.channel_count());
        match color {
            ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8 => {
                Ok(Self::U8(read(decoder, format, n_samples)?))
            }
            ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => {
                Ok(Self::U16(read(decoder, format, n_samples)?))
            }
            ColorType::Rgb32F | ColorType::Rgba32F => Ok(Self::F32(read(decoder, format, n_samples)?)),
            other => Err(Error::Image(format!("{}: pixels of type {other:?} cannot be read", name(format)))),
        }
    }

    /// Drops alpha, narrows to 8 bits and repeats grey three times.
    fn into_rgb(self, n_channels: usize) -> Result<Vec<u8>> {
        let n_kept = if n_channels < 3 { 1 } else { 3 };
        let levels = match self {
            Self::U8(samples) if n_channels == 3 => return Ok(samples),
            Self::U8(samples) => narrow(&samples, n_channels, n_kept, |level| level)?,
            Self::U16(samples) => {
                let table = levels_16_bit(&samples, n_channels, n_kept);
                narrow(&samples, n_channels, n_kept, |value| table[usize::from(value)])?
            }
            Self::F32(samples) => {
                let range = float_range(&samples, n_channels, n_kept);
                narrow(&samples, n_channels, n_kept, |value| to_level(value, range))?
            }
        };
        if n_kept == 3 {
            return Ok(levels);
        }
        let mut rgb = zeros(levels.len() as u64 * 3)?;
        for (pixel, &level) in rgb.chunks_exact_mut(3).zip(&levels) {
            pixel.fill(level);
        }
        Ok(rgb)
    }
}

/// The samples of a decoder whose numbers are of type `T`.
fn read<T: Pod>(decoder: impl ImageDecoder, format: ImageFormat, n_samples: u64) -> Result<Vec<T>> {
    let mut samples = zeros(n_samples)?;
    decoder.read_image(bytemuck::cast_slice_mut(&mut samples)).map_err(|error| problem(format, &error))?;
    Ok(samples)
}

/// The kept channels' samples as bytes.
fn narrow<T: Copy>(samples: &[T], n_channels: usize, n_kept: usize, to_byte: impl Fn(T) -> u8) -> Result<Vec<u8>> {
    let mut levels = zeros((samples.len() / n_channels * n_kept) as u64)?;
    for (levels, pixel) in levels.chunks_exact_mut(n_kept).zip(samples.chunks_exact(n_channels)) {
        for (level, &sample) in levels.iter_mut().zip(pixel) {
            *level = to_byte(sample);
        }
    }
    Ok(levels)
}

/// The kept channels' samples.
fn kept<T: Copy>(samples: &[T], n_channels: usize, n_kept: usize) -> impl Iterator<Item = T> {
    samples.chunks_exact(n_channels).flat_map(move |pixel| pixel[..n_kept].iter().copied())
}

/// The 8-bit level of each 16-bit value.
fn levels_16_bit(samples: &[u16], n_channels: usize, n_kept: usize) -> Vec<u8> {
    let mut counts = vec![0u64; 1 << 16];
    for sample in kept(samples, n_channels, n_kept) {
        counts[usize::from(sample)] += 1;
    }
    let low = counts.iter().position(|&n| n > 0).unwrap_or(0);
    let high = counts.iter().rposition(|&n| n > 0).unwrap_or(0);
    let (first, last) = percentiles(&counts);
    if high - low >= NARROW_SPAN || first == last {
        return (0..=u16::MAX).map(|value| (value >> 8) as u8).collect();
    }
    (0..=u16::MAX).map(|value| to_level(f32::from(value), (first as f32, last as f32))).collect()
}

/// First and last place of a histogram when a thousandth of the counts is left out at either end.
fn percentiles(counts: &[u64]) -> (usize, usize) {
    let left_out = counts.iter().sum::<u64>() / 1000;
    let inner = |n: &mut u64, &count: &u64| {
        *n += count;
        Some(*n)
    };
    let first = counts.iter().scan(0, inner).position(|n| n > left_out);
    let last = counts.iter().rev().scan(0, inner).position(|n| n > left_out);
    (first.unwrap_or(0), counts.len() - 1 - last.unwrap_or(0))
}

/// The values that become 0 and 255.
fn float_range(samples: &[f32], n_channels: usize, n_kept: usize) -> (f32, f32) {
    let values = || kept(samples, n_channels, n_kept).filter(|value| value.is_finite());
    let low = values().fold(f32::INFINITY, f32::min);
    let high = values().fold(f32::NEG_INFINITY, f32::max);
    if low >= 0.0 && high <= 1.0 {
        return (0.0, 1.0);
    }
    if low >= 0.0 && high <= 255.0 {
        return (0.0, 255.0);
    }
    let mut counts = vec![0u64; 1 << 16];
    let step = (f64::from(high) - f64::from(low)) / 65535.0;
    for value in values() {
        counts[((f64::from(value) - f64::from(low)) / step) as u16 as usize] += 1;
    }
    let (first, last) = percentiles(&counts);
    ((f64::from(low) + first as f64 * step) as f32, (f64::from(low) + last as f64 * step) as f32)
}

/// The level of a value in a range, at its ends where it lies outside; a value that is not a number is black.
fn to_level(value: f32, (low, high): (f32, f32)) -> u8 {
    let (value, low, high) = (f64::from(value), f64::from(low), f64::from(high));
    ((value - low) / (high - low) * 255.0).round() as u8
}

/// Turns the picture as the file asks.
fn upright(width: u32, height: u32, rgb: Vec<u8>, orientation: Orientation) -> Result<Picture> {
    let lost = || Error::Image("the decoder gave fewer pixels than it announced".to_owned());
    let mut image = DynamicImage::ImageRgb8(RgbImage::from_raw(width, height, rgb).ok_or_else(lost)?);
    image.apply_orientation(orientation);
    Ok(Picture { width: image.width() as usize, height: image.height() as usize, rgb: image.into_bytes() })
}
