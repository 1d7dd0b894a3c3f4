//! Pillow's antialiased bicubic resize of 8-bit pixels, identical to it bit for bit (`src/libImaging/Resample.c`).
//!
//! Two passes, along the rows and along the columns, each in integers with weights of 22 fractional bits, rounded to 8
//! bits in between. Only the rows and columns of the wanted square are computed: Pillow resizes the whole picture and
//! crops afterwards, which would take gigabytes for a strip of 1 x 60000 pixels.

use super::Picture;
use super::decode::zeros;
use crate::Result;
use llama3med_arithmetic::pixels::{self, PRECISION_BITS};

/// The source of a resize: a picture, or a picture centred on a square of one colour.
pub(super) struct Source<'a> {
    picture: &'a Picture,
    background: [u8; 3],
    /// Position of the picture in the source.
    offset: [usize; 2],
    /// Width and height of the source.
    size: [usize; 2],
}

impl<'a> Source<'a> {
    /// The picture itself.
    pub(super) fn whole(picture: &'a Picture) -> Self {
        Self { picture, background: [0; 3], offset: [0, 0], size: [picture.width, picture.height] }
    }

    /// The picture centred on a square, as LLaVA's `expand2square` does it.
    pub(super) fn padded(picture: &'a Picture, background: [u8; 3]) -> Self {
        let side = picture.width.max(picture.height);
        let offset = [(side - picture.width) / 2, (side - picture.height) / 2];
        Self { picture, background, offset, size: [side, side] }
    }

    fn is_padded(&self) -> bool {
        self.size != [self.picture.width, self.picture.height]
    }

    /// The columns that the picture covers.
    fn columns(&self) -> std::ops::Range<usize> {
        self.offset[0]..self.offset[0] + self.picture.width
    }

    /// Whether the picture covers row `y`.
    fn has_row(&self, y: usize) -> bool {
        y.wrapping_sub(self.offset[1]) < self.picture.height
    }

    /// The bytes of row `y`; a row that includes background is assembled in `scratch`.
    fn row<'s>(&'s self, y: usize, scratch: &'s mut Vec<u8>) -> &'s [u8] {
        let Picture { width, height, rgb, .. } = self.picture;
        let inside = y.wrapping_sub(self.offset[1]);
        let pixels = if inside < *height { &rgb[inside * width * 3..][..width * 3] } else { &[] };
        if pixels.len() == self.size[0] * 3 {
            return pixels;
        }
        scratch.clear();
        scratch.extend(self.background.iter().cycle().take(self.size[0] * 3));
        scratch[self.offset[0] * 3..][..pixels.len()].copy_from_slice(pixels);
        scratch
    }
}

/// The source pixels that contribute to each output pixel, and their weights.
struct Taps {
    /// First source pixel and number of source pixels, for each output pixel.
    spans: Vec<(usize, usize)>,
    /// Weights, `n_taps` slots per output pixel.
    weights: Vec<i32>,
    n_taps: usize,
}

impl Taps {
    /// Taps of the output pixels `first..first + n` when `n_in` pixels are resized to `n_out`.
    fn new(n_in: usize, n_out: usize, first: usize, n: usize) -> Result<Self> {
        let scale = n_in as f64 / n_out as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let n_taps = support.ceil() as usize * 2 + 1;
        let mut taps = Self { spans: Vec::with_capacity(n), weights: zeros((n * n_taps) as u64)?, n_taps };
        let mut exact: Vec<f64> = zeros(n_taps as u64)?;
        for (x, weights) in (first..first + n).zip(taps.weights.chunks_exact_mut(n_taps)) {
            let center = (x as f64 + 0.5) * scale;
            // Casts truncate, and negative numbers become 0, as in the C code.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(n_in);
            let exact = &mut exact[..end - start];
            for (idx, weight) in exact.iter_mut().enumerate() {
                *weight = bicubic(((idx + start) as f64 - center + 0.5) * (1.0 / filter_scale));
            }
            let sum: f64 = exact.iter().sum();
            for (weight, exact) in weights.iter_mut().zip(exact) {
                let fixed = if sum == 0.0 { *exact } else { *exact / sum } * f64::from(1 << PRECISION_BITS);
                *weight = (fixed + if fixed < 0.0 { -0.5 } else { 0.5 }) as i32;
            }
            taps.spans.push((start, end - start));
        }
        Ok(taps)
    }

    /// The output pixels that depend on any of the source pixels `range`; spans are in order.
    fn touching(&self, range: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let start = self.spans.partition_point(|&(first, n)| first + n <= range.start);
        start..self.spans.partition_point(|&(first, _)| first < range.end)
    }

    /// The source pixels that any output pixel depends on.
    fn range(&self) -> std::ops::Range<usize> {
        let start = self.spans.iter().map(|span| span.0).min().unwrap_or(0);
        let end = self.spans.iter().map(|span| span.0 + span.1).max().unwrap_or(0);
        start..end
    }
}

/// Keys' cubic with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Resizes the source to `resized` (width, height) and returns the part of `size` (width, height) at `offset`: (height,
/// width, 3).
pub(super) fn resize(source: &Source, resized: [usize; 2], offset: [usize; 2], size: [usize; 2]) -> Result<Vec<u8>> {
    let columns = Taps::new(source.size[0], resized[0], offset[0], size[0])?;
    let rows = Taps::new(source.size[1], resized[1], offset[1], size[1])?;
    if is_vertical_first(source.size, resized) {
        let low = resize_columns(source, 0, &rows)?;
        return Ok(resize_rows(&Source::whole(&low), 0..size[1], &columns)?.rgb);
    }
    let needed = rows.range();
    let first = needed.start;
    let narrow = resize_rows(source, needed, &columns)?;
    Ok(resize_columns(&Source::whole(&narrow), first, &rows)?.rgb)
}

/// Whether Pillow starts with the pass along the columns: version 13.0 does if the pass removes more than twice as many
/// rows as columns, older versions never do.
fn is_vertical_first(from: [usize; 2], to: [usize; 2]) -> bool {
    let [width, height] = [0, 1].map(|axis| from[axis] as i64 - to[axis] as i64);
    height > 0 && height > 2 * width
}

/// The pass along the rows, over the source rows `needed`. Output of background alone is computed only once, so that
/// padding a strip costs no more than the strip itself.
fn resize_rows(source: &Source, needed: std::ops::Range<usize>, columns: &Taps) -> Result<Picture> {
    let (width, height) = (columns.spans.len(), needed.len());
    let mut rgb: Vec<u8> = zeros(height as u64 * width as u64 * 3)?; // (needed rows, output columns, 3)
    let mut scratch = zeros(source.size[0] as u64 * 3)?;
    // Four bytes per pixel, the fourth unused, so that a pixel is one vector of four sums.
    let [r, g, b] = source.background;
    let mut row: Vec<[u8; 4]> = zeros(source.size[0] as u64)?;
    row.fill([r, g, b, 0]);
    let mut blank: Vec<u8> = zeros(width as u64 * 3)?;
    let touched = columns.touching(source.columns());
    if source.is_padded() {
        resize_row(&row, columns, 0..width, &mut blank);
    }
    for (y, out) in needed.zip(rgb.chunks_exact_mut(width * 3)) {
        out.copy_from_slice(&blank);
        if !source.has_row(y) {
            continue;
        }
        pixels::spread(source.row(y, &mut scratch), &mut row);
        resize_row(&row, columns, touched.clone(), out);
    }
    Ok(Picture::new(width, height, rgb))
}

/// The pass along one row, for some of its output pixels.
fn resize_row(row: &[[u8; 4]], columns: &Taps, wanted: std::ops::Range<usize>, out: &mut [u8]) {
    let out = &mut out.as_chunks_mut::<3>().0[wanted.clone()];
    let Taps { spans, weights, n_taps } = columns;
    pixels::weigh_row(row, &spans[wanted.clone()], &weights[wanted.start * n_taps..], *n_taps, out);
}

/// The pass along the columns; the taps count rows of the source, whose first row here is `first`.
fn resize_columns(source: &Source, first: usize, rows: &Taps) -> Result<Picture> {
    let (width, height) = (source.size[0], rows.spans.len());
    let mut rgb: Vec<u8> = zeros(height as u64 * width as u64 * 3)?; // (output rows, source columns, 3)
    let mut scratch = zeros(width as u64 * 3)?;
    let mut sums: Vec<i32> = zeros(width as u64 * 3)?;
    let taps = rows.spans.iter().zip(rows.weights.chunks_exact(rows.n_taps));
    for ((&(start, n), weights), out) in taps.zip(rgb.chunks_exact_mut(width * 3)) {
        let weighted = weights[..n].iter().zip(start - first..);
        sums.fill(pixels::HALF);
        for (&weight, y) in weighted {
            pixels::add_weighted(&mut sums, source.row(y, &mut scratch), weight);
        }
        pixels::round(&sums, out);
    }
    Ok(Picture::new(width, height, rgb))
}
