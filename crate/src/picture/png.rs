//! PNG files, read row by row: also truncated ones, and the frame of an animation that a screen shows first.

use std::io::Cursor;

use image::metadata::Orientation;
use png::{Decoder, DecodingError, InterlaceInfo, Limits, Reader, Transformations};

use super::decode::{Canvas, Samples, SizeLimit, Stored, animated, zeros};
use super::jpeg::missing;
use crate::{Error, Result};

/// For each pass of an interlaced picture: first row and row stride, first column and column stride.
const ADAM7: [((usize, usize), (usize, usize)); 7] = [
    ((0, 8), (0, 8)),
    ((0, 8), (4, 8)),
    ((4, 8), (0, 4)),
    ((0, 4), (2, 4)),
    ((2, 4), (0, 2)),
    ((0, 2), (1, 2)),
    ((1, 2), (0, 1)),
];

fn problem(error: DecodingError) -> Error {
    Error::Image(format!("PNG: {error}"))
}

/// Reads a PNG; a truncated one is read as far as it goes.
pub(super) fn decode(bytes: &[u8], limit: &SizeLimit) -> Result<Stored> {
    let max_bytes = usize::try_from(limit.n_bytes()).unwrap_or(usize::MAX);
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: max_bytes });
    decoder.set_transformations(Transformations::EXPAND);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let info = decoder.read_header_info().map_err(problem)?;
    let (width, height) = (info.width, info.height);
    limit.check(width, height)?;
    let mut reader = decoder.read_info().map_err(problem)?;
    let orientation = reader.info().exif_metadata.as_ref().and_then(|exif| Orientation::from_exif_chunk(exif));
    // If an animation's default picture is not its first frame, it is meant for viewers that cannot show animations.
    let n_frames = reader.info().animation_control.map_or(0, |control| control.num_frames);
    if n_frames > 0 && reader.info().frame_control.is_none() {
        reader.next_frame_info().map_err(problem)?;
    }
    let frame = reader.info().frame_control;
    let (frame_width, frame_height) = frame.map_or((width, height), |frame| (frame.width, frame.height));
    let (color, depth) = reader.output_color_type();
    let n_samples = u64::from(frame_width) * u64::from(frame_height) * color.samples() as u64;
    let mut samples = match depth {
        png::BitDepth::Sixteen => Samples::U16(zeros(n_samples)?),
        _ => Samples::U8(zeros(n_samples)?),
    };
    let rows = read_rows(&mut reader, samples.bytes_mut(), frame_height as usize)?;
    if let Samples::U16(samples) = &mut samples {
        samples.iter_mut().for_each(|sample| *sample = u16::from_be(*sample));
    }
    let mut stored = Stored::new(frame_width, frame_height, samples, color.samples());
    stored.orientation = orientation.unwrap_or(Orientation::NoTransforms);
    stored.notes = animated(n_frames > 1);
    if let Some(frame) = frame.filter(|_| (frame_width, frame_height) != (width, height)) {
        let [x, y, width, height] = [frame.x_offset, frame.y_offset, width, height].map(|n| n as usize);
        stored.canvas = Some(Canvas { width, height, x, y });
    }
    if !has_end(bytes) {
        cut_short(&mut stored, rows)?;
    } else if let Some(error) = rows.error {
        return Err(problem(error));
    }
    Ok(stored)
}

/// How far the rows of a picture were read.
struct Rows {
    n_read: usize,
    n_all: usize,
    is_interlaced: bool,
    error: Option<DecodingError>,
}

/// Reads the rows of a frame into `bytes`.
fn read_rows(reader: &mut Reader<Cursor<&[u8]>>, bytes: &mut [u8], height: usize) -> Result<Rows> {
    let row_bytes = bytes.len() / height.max(1);
    let mut rows = Rows { n_read: 0, n_all: height, is_interlaced: reader.info().interlaced, error: None };
    if !rows.is_interlaced {
        for row in bytes.chunks_exact_mut(row_bytes.max(1)) {
            match reader.read_row(row) {
                Ok(Some(_)) => rows.n_read += 1,
                Ok(None) => break,
                Err(error) => {
                    rows.error = Some(error);
                    break;
                }
            }
        }
        return Ok(rows);
    }
    let (color, depth) = reader.output_color_type();
    let bits_per_pixel = (color.samples() * depth as usize) as u8;
    let mut row: Vec<u8> = zeros(row_bytes as u64)?;
    let width = reader.info().frame_control.map_or(reader.info().width, |frame| frame.width) as usize;
    let in_pass = |n: usize, (first, step): (usize, usize)| n.saturating_sub(first).div_ceil(step);
    rows.n_all =
        ADAM7.iter().filter(|(_, column)| in_pass(width, *column) > 0).map(|(row, _)| in_pass(height, *row)).sum();
    while rows.n_read < rows.n_all {
        match reader.read_row(&mut row) {
            Ok(Some(InterlaceInfo::Adam7(pass))) => {
                png::splat_interlaced_row(bytes, row_bytes, &row, &pass, bits_per_pixel);
                rows.n_read += 1;
            }
            Ok(_) => break,
            Err(error) => {
                rows.error = Some(error);
                break;
            }
        }
    }
    Ok(rows)
}

/// Adds a note about what is missing, and drops it.
fn cut_short(stored: &mut Stored, Rows { n_read, n_all, is_interlaced, error }: Rows) -> Result<()> {
    if n_read == 0 {
        return Err(Error::Image("PNG: the file is cut short: it contains no picture data".to_owned()));
    }
    if error.is_none() {
        stored.notes.push("The PNG file lacks its end chunk; the picture is whole.".to_owned());
    } else if is_interlaced {
        let percent = (n_all.saturating_sub(n_read) * 100).div_ceil(n_all);
        stored.notes.push(format!(
            "The PNG file is cut short: {percent} % of its rows are missing, and the picture is coarser than it was."
        ));
    } else {
        stored.notes.push(missing("PNG", n_read, stored.height));
        stored.keep_rows(n_read);
    }
    Ok(())
}

/// Whether the chunks continue up to the one that ends the file.
fn has_end(bytes: &[u8]) -> bool {
    let mut at = 8;
    while let Some(&[a, b, c, d, kind @ ..]) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        if kind == *b"IEND" {
            return true;
        }
        at = at.saturating_add(12).saturating_add(u32::from_be_bytes([a, b, c, d]) as usize);
    }
    false
}
