//! Reads PNG, JPEG, WebP, GIF, BMP and TIFF files into 8-bit RGB, upright, as a screen shows them.
//!
//! The bytes come from a user's disk and may be anything: the format is recognised from the bytes, sizes are checked
//! before memory is allocated, and every failure is an error that names the format. Colours follow Pillow's
//! `convert("RGB")` with three exceptions: transparent areas are shown on [`BACKGROUND`] instead of losing their alpha,
//! the orientation stored in the file is applied, and samples of more than 8 bits are mapped instead of saturated (see
//! [`Picture::decode`]).

use std::io::Cursor;

use bytemuck::Pod;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};

use super::levels::{self, Levels};
use super::sniff::{Format, sniff};
use super::{BACKGROUND, Picture, chunks, jpeg, png, tiff};
use crate::{Error, Result};

/// Longest edge that is accepted.
pub(super) const MAX_EDGE: u32 = 65535;
/// Most pixels that are accepted: 402 MB as RGB.
const MAX_PIXELS: u64 = 1 << 27;
/// Pixels that a file of any length may have.
const FREE_PIXELS: u64 = 1 << 23;
/// Additional pixels per byte of the file; beyond that, the header is wrong or the picture is blank.
const MAX_PIXELS_PER_BYTE: u64 = 4096;
/// Bytes per pixel that decoders allocate internally, besides the samples: coefficients of a progressive JPEG, planes
/// and canvas of a WebP.
pub(super) const INNER_BYTES_PER_PIXEL: u64 = 12;

impl Picture {
    /// Decodes a picture from a file's bytes. If there are several frames or pages, the first is read;
    /// [`Picture::notes`] has what the user should know.
    ///
    /// Samples of more than 8 bits: outliers are clipped and do not affect the mapping. (Outliers are at most one in
    /// eight of the distinct values, at one end, separated by a gap of at least half the span of the others.) For the
    /// other values: 16-bit samples keep their high byte, as Pillow does for colour, if they span at least a quarter of
    /// the 16 bits; otherwise (12-bit data in a 16-bit file) the values from the 0.1st to the 99.9th percentile are
    /// stretched to 0..255, for all channels alike. Floats and other number types are read as 0..1 or as 0..255 if
    /// these percentiles are within that range and span a quarter of it; otherwise they are stretched in the same way.
    /// Fully transparent pixels are ignored.
    ///
    /// # Errors
    /// [`Error::Format`] with what the file is, if it is in no supported format; [`Error::Image`] with the format and
    /// what is wrong with it; [`Error::OutOfMemory`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let format = sniff(bytes)?;
        let limit = SizeLimit::new(format, bytes);
        let stored = match format {
            Format::Png => png::decode(bytes, &limit)?,
            Format::Jpeg => jpeg::decode(bytes, &limit)?,
            Format::Tiff => tiff::decode(bytes, &limit)?,
            Format::WebP => Stored {
                notes: animated(chunks::check_webp(bytes, &limit)?),
                ..read(bytes, ImageFormat::WebP, &limit)?
            },
            Format::Gif => {
                Stored { notes: animated(chunks::check_gif(bytes, &limit)?), ..read(bytes, ImageFormat::Gif, &limit)? }
            }
            Format::Bmp => read(bytes, ImageFormat::Bmp, &limit)?,
        };
        stored.into_picture()
    }
}

/// The note for an animated file.
pub(super) fn animated(is_animated: bool) -> Vec<String> {
    if is_animated { vec!["The file is an animation; its first frame is read.".to_owned()] } else { Vec::new() }
}

/// Pixels as a decoder returns them.
pub(super) struct Stored {
    pub(super) width: usize,
    pub(super) height: usize,
    /// (height, width, n_channels)
    pub(super) samples: Samples,
    /// Grey, grey and alpha, colours, or colours and alpha; further channels are ignored.
    pub(super) n_channels: usize,
    pub(super) alpha: Alpha,
    /// The larger picture that contains these pixels.
    pub(super) canvas: Option<Canvas>,
    pub(super) orientation: Orientation,
    pub(super) notes: Vec<String>,
}

/// The meaning of the last of two or four channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpha {
    None,
    Straight,
    /// The colours are premultiplied with it.
    Premultiplied,
}

/// A picture of which only part has pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Where that part begins.
    pub(super) x: usize,
    pub(super) y: usize,
}

impl Stored {
    /// Pixels that cover the whole picture.
    pub(super) fn new(width: u32, height: u32, samples: Samples, n_channels: usize) -> Self {
        let (width, height) = (width as usize, height as usize);
        let alpha = if n_channels % 2 == 0 { Alpha::Straight } else { Alpha::None };
        let (canvas, orientation, notes) = (None, Orientation::NoTransforms, Vec::new());
        Self { width, height, samples, n_channels, alpha, canvas, orientation, notes }
    }

    /// Drops all rows but the first `n`.
    pub(super) fn keep_rows(&mut self, n: usize) {
        self.canvas.get_or_insert(Canvas { width: self.width, height: self.height, x: 0, y: 0 });
        self.height = n;
        self.samples.truncate(n * self.width * self.n_channels);
    }

    fn into_picture(mut self) -> Result<Picture> {
        let lost = || Error::Image("the decoder gave fewer pixels than it declared".to_owned());
        if self.width == 0 || self.height == 0 || self.samples.len() != self.width * self.height * self.n_channels {
            return Err(lost());
        }
        let (width, height) = self.canvas.map_or((self.width, self.height), |canvas| (canvas.width, canvas.height));
        let rgb = self.take_rgb()?;
        let rgb = match self.canvas {
            Some(canvas) => on_canvas(&rgb, self.width, canvas)?,
            None => rgb,
        };
        if self.orientation != Orientation::NoTransforms {
            make_room(rgb.len() as u64)?;
        }
        let image = RgbImage::from_raw(width as u32, height as u32, rgb).ok_or_else(lost)?;
        let mut image = DynamicImage::ImageRgb8(image);
        image.apply_orientation(self.orientation);
        let (width, height) = (image.width() as usize, image.height() as usize);
        Ok(Picture { width, height, rgb: image.into_bytes(), notes: self.notes })
    }

    /// The pixels as 8-bit RGB on the background; adds notes about what was done.
    fn take_rgb(&mut self) -> Result<Vec<u8>> {
        let samples = std::mem::replace(&mut self.samples, Samples::U8(Vec::new()));
        let n = self.n_channels;
        let alpha_at = if self.alpha == Alpha::None { None } else { Some(if n < 3 { 1 } else { 3 }) };
        let n_kept = if n < 3 { 1 } else { 3 };
        if !matches!(samples, Samples::U8(_)) {
            make_room(levels::ROOM)?;
        }
        match samples {
            Samples::U8(samples) if n == 3 => Ok(samples),
            Samples::U8(samples) => {
                self.flatten(&samples, |level| level, alpha_at.map(|at| (at, |alpha| f32::from(alpha) / 255.0)))
            }
            Samples::U16(samples) => {
                let seen = samples.chunks_exact(n).filter(|pixel| alpha_at.is_none_or(|at| pixel[at] > 0));
                let levels = levels::of_16_bit(seen.flat_map(|pixel| pixel[..n_kept].iter().copied()));
                self.note(levels);
                let table: Vec<u8> = (0..=u16::MAX).map(|value| levels.level(f64::from(value))).collect();
                let opacity = |alpha| f32::from(alpha) / 65535.0;
                self.flatten(&samples, |value| table[usize::from(value)], alpha_at.map(|at| (at, opacity)))
            }
            Samples::F32(samples) => {
                let sample = |idx: usize| {
                    let pixel = &samples[idx / n_kept * n..][..n];
                    alpha_at.is_none_or(|at| pixel[at] > 0.0).then_some(pixel[idx % n_kept])
                };
                let levels = levels::of_floats(samples.len() / n * n_kept, sample);
                self.note(levels);
                let opacity = |alpha: f32| alpha.clamp(0.0, 1.0);
                self.flatten(&samples, |value| levels.level(f64::from(value)), alpha_at.map(|at| (at, opacity)))
            }
        }
    }

    fn note(&mut self, levels: Levels) {
        match levels {
            Levels::Range(low, high) if low != 0.0 || (high != 1.0 && high != 255.0) => {
                let (low, high) = (low as f32, high as f32);
                self.notes.push(format!("The model sees values from {low} to {high} from black to white."));
            }
            _ => {}
        }
    }

    /// Three levels per pixel; alpha is at a given index among the samples and is converted to opacity by a given
    /// function.
    fn flatten<T: Copy>(
        &mut self,
        samples: &[T],
        level: impl Fn(T) -> u8,
        alpha: Option<(usize, impl Fn(T) -> f32)>,
    ) -> Result<Vec<u8>> {
        let mut rgb = zeros((samples.len() / self.n_channels) as u64 * 3)?;
        let colors = if self.n_channels < 3 { [0; 3] } else { [0, 1, 2] };
        let mut is_opaque = true;
        for (out, pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples.chunks_exact(self.n_channels)) {
            *out = colors.map(|channel| level(pixel[channel]));
            let Some((at, opacity)) = &alpha else { continue };
            let opacity = opacity(pixel[*at]);
            if opacity < 1.0 {
                is_opaque = false;
                let part = if self.alpha == Alpha::Premultiplied { 1.0 } else { opacity };
                let behind = f32::from(BACKGROUND) * (1.0 - opacity);
                *out = out.map(|level| (f32::from(level) * part + behind).round() as u8);
            }
        }
        if !is_opaque {
            self.notes.push("Transparent parts are shown on black.".to_owned());
        }
        Ok(rgb)
    }
}

/// Copies rows of `width` pixels to their place on an empty canvas.
fn on_canvas(rgb: &[u8], width: usize, canvas: Canvas) -> Result<Vec<u8>> {
    let mut whole: Vec<u8> = zeros((canvas.width * canvas.height) as u64 * 3)?;
    if BACKGROUND != 0 {
        whole.fill(BACKGROUND);
    }
    let rows = whole.chunks_exact_mut(canvas.width * 3).skip(canvas.y);
    for (to, from) in rows.zip(rgb.chunks_exact(width * 3)) {
        to[canvas.x * 3..][..width * 3].copy_from_slice(from);
    }
    Ok(whole)
}

/// The size limits for a file's picture.
pub(super) struct SizeLimit {
    format: Format,
    n_pixels: u64,
}

impl SizeLimit {
    fn new(format: Format, bytes: &[u8]) -> Self {
        let n_pixels = FREE_PIXELS + MAX_PIXELS_PER_BYTE.saturating_mul(bytes.len() as u64);
        Self { format, n_pixels: n_pixels.min(MAX_PIXELS) }
    }

    /// Bytes of the largest buffer: four 16-bit channels per pixel.
    pub(super) fn n_bytes(&self) -> u64 {
        self.n_pixels * 8
    }

    /// Refuses sizes for which no memory should be allocated.
    pub(super) fn check(&self, width: u32, height: u32) -> Result<()> {
        let format = self.format.name();
        let n_pixels = u64::from(width) * u64::from(height);
        if n_pixels == 0 {
            return Err(Error::Image(format!("{format}: a picture of {width} x {height} has no pixels")));
        }
        if width > MAX_EDGE || height > MAX_EDGE || n_pixels > MAX_PIXELS {
            return Err(Error::Image(format!(
                "{format}: {width} x {height} is too large, the limit is {MAX_PIXELS} pixels and {MAX_EDGE} on an edge"
            )));
        }
        if n_pixels > self.n_pixels {
            return Err(Error::Image(format!("{format}: the file is too short to hold {width} x {height} pixels")));
        }
        Ok(())
    }
}

/// The innermost cause, after the format's name.
fn problem(format: Format, error: &ImageError) -> Error {
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Error::Image(format!("{}: {reason}", format.name()))
}

/// Reads a WebP, GIF or BMP file.
fn read(bytes: &[u8], format: ImageFormat, limit: &SizeLimit) -> Result<Stored> {
    let failed = |error: ImageError| problem(limit.format, &error);
    // The decoder may keep a copy of the file, which grows by doubling.
    make_room(3 * bytes.len() as u64)?;
    let mut limits = Limits::no_limits();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_EDGE), Some(MAX_EDGE));
    limits.max_alloc = Some(limit.n_bytes());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    limit.check(width, height)?;
    let orientation = decoder.orientation().map_err(failed)?;
    let color = decoder.color_type();
    let n_samples = u64::from(width) * u64::from(height) * u64::from(color.channel_count());
    let mut samples = match color {
        ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8 => Samples::U8(zeros(n_samples)?),
        ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => Samples::U16(zeros(n_samples)?),
        other => return Err(Error::Image(format!("{}: pixels of type {other:?} cannot be read", limit.format.name()))),
    };
    make_room(INNER_BYTES_PER_PIXEL * u64::from(width) * u64::from(height))?;
    decoder.read_image(samples.bytes_mut()).map_err(failed)?;
    Ok(Stored { orientation, ..Stored::new(width, height, samples, usize::from(color.channel_count())) })
}

fn out_of_memory(bytes: u64) -> Error {
    Error::OutOfMemory { what: "the picture".to_owned(), bytes: usize::try_from(bytes).unwrap_or(usize::MAX) }
}

/// Zeroed numbers, or an error if there is not enough memory.
pub(super) fn zeros<T: Pod>(n: u64) -> Result<Vec<T>> {
    let lost = || out_of_memory(n.saturating_mul(size_of::<T>() as u64));
    let n = usize::try_from(n).map_err(|_| lost())?;
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(n).map_err(|_| lost())?;
    numbers.resize(n, T::zeroed());
    Ok(numbers)
}

/// Checks that `bytes` more can be allocated, because libraries allocate without checking, and a failed allocation
/// would be a trap. A wasm memory never shrinks and has one thread, so what is freed here is available to the next
/// allocation.
pub(super) fn make_room(bytes: u64) -> Result<()> {
    if cfg!(target_arch = "wasm32") {
        let n = usize::try_from(bytes).map_err(|_| out_of_memory(bytes))?;
        let mut room = Vec::<u8>::new();
        room.try_reserve_exact(n).map_err(|_| out_of_memory(bytes))?;
        // A compiler may remove an allocation that nobody reads.
        std::hint::black_box(room.as_ptr());
    }
    Ok(())
}

/// A picture's samples, channels interleaved.
pub(super) enum Samples {
    U8(Vec<u8>),
    U16(Vec<u16>),
    F32(Vec<f32>),
}

impl Samples {
    /// Number of samples: all pixels times all channels.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::U8(samples) => samples.len(),
            Self::U16(samples) => samples.len(),
            Self::F32(samples) => samples.len(),
        }
    }

    /// The samples as they are in memory.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::U8(samples) => samples,
            Self::U16(samples) => bytemuck::cast_slice_mut(samples),
            Self::F32(samples) => bytemuck::cast_slice_mut(samples),
        }
    }

    fn truncate(&mut self, n: usize) {
        match self {
            Self::U8(samples) => samples.truncate(n),
            Self::U16(samples) => samples.truncate(n),
            Self::F32(samples) => samples.truncate(n),
        }
    }
}
