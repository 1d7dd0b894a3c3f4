//! From a picture's bytes to the square of normalised numbers that the encoder's tiles are cut from.
//!
//! `sniff` recognises a file's format; `decode` reads it, using `png`, `jpeg`, `tiff` and `chunks` for what the general
//! decoders lack, and `levels` for samples of more than 8 bits. `resample` is Pillow's bicubic filter; `preprocess`
//! follows the Pillow path of transformers' CLIPImageProcessor (the torchvision path gives slightly different pixels).
//! The result goes to `tiles`. `view` is the picture that the user is shown.

mod chunks;
mod decode;
mod jpeg;
mod levels;
mod png;
mod resample;
mod sniff;
mod tiff;
pub mod tiles;
mod view;

use crate::Result;
use decode::zeros;
use resample::Source;

pub use view::View;

/// The colour behind transparent areas and in place of missing ones: black, like the background of a film, and what
/// most programs store in hidden pixels.
pub const BACKGROUND: u8 = 0;

/// A decoded picture, upright, 8 bits per channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green, blue of each pixel: (height, width, 3).
    pub rgb: Vec<u8>,
    /// What the user should know about how the file was read, in short sentences.
    pub notes: Vec<String>,
}

impl Picture {
    /// A picture from pixels (height, width, 3), without notes.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        Self { width, height, rgb, notes: Vec::new() }
    }
}

/// How a non-square picture becomes square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The shorter edge is resized to the size, and the middle of the longer edge is kept.
    Crop,
    /// The picture is centred on a square of the mean colour, so nothing is lost.
    Pad,
    /// Both edges are resized to the size, whatever the picture's proportions.
    Stretch,
}

/// How a picture is prepared before it is cut into tiles.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Edge of the square: the largest scale.
    pub size: usize,
    /// How the picture becomes square.
    pub fit: Fit,
    /// Mean of each channel, of values from 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, of values from 0 to 1.
    pub std: [f32; 3],
}

/// The area that the model's square shows, in the picture's own pixels: part of the picture, or more than the picture
/// if it is padded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crop {
    /// Left edge.
    pub x: f32,
    /// Upper edge.
    pub y: f32,
    /// Visible columns.
    pub width: f32,
    /// Visible rows.
    pub height: f32,
}

impl Preprocess {
    /// The colour around a padded picture, `tuple(int(x * 255) for x in image_mean)` in Python's f64; `None` if nothing
    /// is padded.
    pub fn padding(&self) -> Option<[u8; 3]> {
        (self.fit == Fit::Pad).then(|| self.mean.map(|mean| (f64::from(mean) * 255.0) as u8))
    }

    /// What the square shows of a picture of the given size.
    pub fn crop(&self, width: usize, height: usize) -> Crop {
        let [width_f, height_f] = [width as f32, height as f32];
        match self.fit {
            Fit::Stretch => Crop { x: 0.0, y: 0.0, width: width_f, height: height_f },
            Fit::Pad => {
                let side = width.max(height);
                let [x, y] = [width, height].map(|edge| -(((side - edge) / 2) as f32));
                Crop { x, y, width: side as f32, height: side as f32 }
            }
            Fit::Crop => {
                let (resized, offset) = self.cropped(width, height);
                let step = [width_f / resized[0] as f32, height_f / resized[1] as f32];
                Crop {
                    x: offset[0] as f32 * step[0],
                    y: offset[1] as f32 * step[1],
                    width: self.size as f32 * step[0],
                    height: self.size as f32 * step[1],
                }
            }
        }
    }

    /// The size to which a picture is resized before its middle is kept, and where the middle begins.
    fn cropped(&self, width: usize, height: usize) -> ([usize; 2], [usize; 2]) {
        // `int(size * long / short)`: the quotient is never close enough to the next whole number to round up to it.
        let resized = [width, height].map(|edge| self.size * edge / width.min(height));
        (resized, resized.map(|edge| (edge - self.size) / 2))
    }
}

/// A prepared picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// Edge of the square.
    pub size: usize,
    /// Normalised values: (3, size, size).
    pub values: Vec<f32>,
    /// The area of the picture that is in the square.
    pub crop: Crop,
}

/// Makes a picture square as `options` specify, resizes it and normalises it.
///
/// # Errors
/// [`crate::Error::OutOfMemory`].
///
/// # Panics
/// If the picture has no pixels or the size is zero; [`Picture::decode`] and a checked configuration never produce
/// either.
pub fn preprocess(picture: &Picture, options: &Preprocess) -> Result<Pixels> {
    assert!(picture.width > 0 && picture.height > 0 && options.size > 0, "an empty picture has no pixels to prepare");
    let rgb = square(picture, options)?;
    Ok(Pixels {
        size: options.size,
        values: normalize(&rgb, options)?,
        crop: options.crop(picture.width, picture.height),
    })
}

/// The picture as a square of 8-bit pixels, (size, size, 3), before normalisation.
///
/// # Errors
/// [`crate::Error::OutOfMemory`].
pub fn square(picture: &Picture, options: &Preprocess) -> Result<Vec<u8>> {
    let size = [options.size; 2];
    match (options.fit, options.padding()) {
        (_, Some(color)) => resample::resize(&Source::padded(picture, color), size, [0, 0], size),
        (Fit::Crop, _) => {
            let (resized, offset) = options.cropped(picture.width, picture.height);
            resample::resize(&Source::whole(picture), resized, offset, size)
        }
        _ => resample::resize(&Source::whole(picture), size, [0, 0], size),
    }
}

/// `(x / 255 - mean) / std`, reordered from (size, size, 3) to (3, size, size).
fn normalize(rgb: &[u8], options: &Preprocess) -> Result<Vec<f32>> {
    let n_pixels = options.size * options.size;
    let mut values: Vec<f32> = zeros(3 * n_pixels as u64)?;
    for (channel, plane) in values.chunks_exact_mut(n_pixels).enumerate() {
        let table: [f32; 256] = std::array::from_fn(|level| {
            let value = (level as f64 * (1.0 / 255.0)) as f32;
            (value - options.mean[channel]) / options.std[channel]
        });
        for (value, pixel) in plane.iter_mut().zip(rgb.chunks_exact(3)) {
            *value = table[usize::from(pixel[channel])];
        }
    }
    Ok(values)
}
