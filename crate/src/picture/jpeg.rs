//! JPEG files: their markers, and what can be read of a truncated one.

use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::decode::{INNER_BYTES_PER_PIXEL, MAX_EDGE, Samples, SizeLimit, Stored, make_room, zeros};
use crate::{Error, Result};

/// The end-of-image marker.
const END: [u8; 2] = [0xff, 0xd9];
/// Made-up compressed data in place of what is missing, where the decoder would use zeros: two variants whose bits
/// begin differently.
const MADE_UP: [u8; 2] = [0x2a, 0xd5];
/// At most this many of them are needed for one row of blocks.
const N_MADE_UP: usize = 4096;

/// What the markers of a JPEG say, without decoding it.
pub(super) struct Markers {
    /// Whether the end of the image was found.
    is_complete: bool,
    /// Width and height of the frame.
    pub(super) size: Option<(u32, u32)>,
    /// The last frame's marker and its bits per sample.
    frame: Option<(u8, u8)>,
    n_scans: usize,
}

/// Walks the markers up to the end of the image.
pub(super) fn markers(bytes: &[u8]) -> Markers {
    let short = |at: usize| bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let mut markers = Markers { is_complete: false, size: None, frame: None, n_scans: 0 };
    let mut at = 2;
    while let Some(&[first, marker]) = bytes.get(at..at + 2) {
        match (first, marker) {
            (0xff, 0xd9) => {
                markers.is_complete = true;
                break;
            }
            // Fill bytes, and markers without a length field.
            (0xff, 0xff) => at += 1,
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, _) => {
                let is_frame = matches!(marker, 0xc0..=0xcf | 0xf7) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
                if let (true, Some(height), Some(width)) = (is_frame, short(at + 5), short(at + 7)) {
                    markers.size = Some((width.into(), height.into()));
                    markers.frame = Some((marker, bytes[at + 4]));
                }
                markers.n_scans += usize::from(marker == 0xda);
                let Some(length) = short(at + 2) else { break };
                at += 2 + usize::from(length);
            }
            // Compressed data, up to the next 0xff.
            _ => at += 1,
        }
    }
    markers
}

/// Refuses unsupported kinds of JPEG, by name.
fn check_kind(frame: (u8, u8)) -> Result<()> {
    let kind = match frame {
        (0xf7, _) => "a JPEG-LS picture".to_owned(),
        (0xc3 | 0xc7 | 0xcb | 0xcf, _) => "a lossless JPEG".to_owned(),
        (0xc9 | 0xca | 0xcd | 0xce, _) => "a JPEG with arithmetic coding".to_owned(),
        (0xc5 | 0xc6, _) => "a hierarchical JPEG".to_owned(),
        (_, bits) if bits != 8 => format!("a JPEG with {bits} bits a sample"),
        _ => return Ok(()),
    };
    Err(Error::Format(kind))
}

/// Reads a JPEG; a truncated one is read as far as it goes.
pub(super) fn decode(bytes: &[u8], limit: &SizeLimit) -> Result<Stored> {
    let markers = markers(bytes);
    markers.frame.map_or(Ok(()), check_kind)?;
    if markers.is_complete {
        return read(with_end(bytes, &[])?, limit);
    }
    let cut_short = || Error::Image("JPEG: the file is cut short: it has no end-of-image marker".to_owned());
    let (size, Some((frame, _))) = (markers.size, markers.frame) else { return Err(cut_short()) };
    let (width, height) = size.unwrap_or_default();
    limit.check(width, height)?;
    let mut stored = read(with_end(bytes, &[])?, limit).map_err(|_| cut_short())?;
    // Rows that depend on the made-up bytes differ between the two variants.
    let row_bytes = stored.width * stored.n_channels;
    let mut known = stored.height;
    for byte in MADE_UP {
        let (mut other, _) = read_as_far(with_end(bytes, &[byte; N_MADE_UP])?, limit)?;
        let rows = stored.samples.bytes_mut().chunks_exact(row_bytes);
        let mut pairs = rows.zip(other.samples.bytes_mut().chunks_exact(row_bytes));
        known = pairs.position(|(row, other)| row != other).unwrap_or(stored.height).min(known);
    }
    let is_progressive = matches!(frame, 0xc2 | 0xc6);
    if known == stored.height {
        let doubt = if is_progressive { " and may be coarser than it was" } else { "" };
        stored.notes.push(format!("The JPEG file lacks its end marker; all rows are there{doubt}."));
    } else if is_progressive && markers.n_scans > 1 {
        let height = stored.height;
        stored.notes.push(format!(
            "The JPEG file is cut short: below row {known} of {height} the picture is coarser than it was."
        ));
    } else if known == 0 {
        return Err(Error::Image("JPEG: the file is cut short: it contains no picture data".to_owned()));
    } else {
        stored.notes.push(missing("JPEG", known, stored.height));
        stored.keep_rows(known);
    }
    Ok(stored)
}

fn read(bytes: Vec<u8>, limit: &SizeLimit) -> Result<Stored> {
    let (stored, problem) = read_as_far(bytes, limit)?;
    problem.map_or(Ok(stored), Err)
}

/// Reads a JPEG; returns the pixels so far and the error that stopped it, if any. It takes the bytes by value because
/// the library that reads TIFF files passes them so: for a slice, the whole decoder would be compiled a second time.
fn read_as_far(bytes: Vec<u8>, limit: &SizeLimit) -> Result<(Stored, Option<Error>)> {
    let failed = |error: DecodeErrors| Error::Image(format!("JPEG: {error}"));
    let max_edge = MAX_EDGE as usize;
    let options = DecoderOptions::default().set_strict_mode(false).set_max_width(max_edge).set_max_height(max_edge);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(failed)?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    let (width, height) = (width as u32, height as u32);
    limit.check(width, height)?;
    let color = match decoder.input_colorspace() {
        Some(color @ (ColorSpace::Luma | ColorSpace::LumaA | ColorSpace::RGB | ColorSpace::RGBA)) => color,
        _ => ColorSpace::RGB,
    };
    decoder.set_options(options.jpeg_set_out_colorspace(color));
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let n_pixels = u64::from(width) * u64::from(height);
    let mut samples = zeros(n_pixels * color.num_components() as u64)?;
    make_room(INNER_BYTES_PER_PIXEL * n_pixels)?;
    let stopped = decoder.decode_into(&mut samples).map_err(failed).err();
    let stored = Stored::new(width, height, Samples::U8(samples), color.num_components());
    Ok((Stored { orientation: orientation.unwrap_or(Orientation::NoTransforms), ..stored }, stopped))
}

/// The note for a picture of which only the first `known` rows are present.
pub(super) fn missing(format: &str, known: usize, height: usize) -> String {
    let percent = ((height - known) * 100).div_ceil(height);
    format!("The {format} file is cut short: the lower {percent} % of the picture is missing and shown black.")
}

/// A copy of the file with `more` and an end marker appended.
fn with_end(bytes: &[u8], more: &[u8]) -> Result<Vec<u8>> {
    let mut whole: Vec<u8> = zeros((bytes.len() + more.len() + END.len()) as u64)?;
    whole[..bytes.len()].copy_from_slice(bytes);
    whole[bytes.len()..][..more.len()].copy_from_slice(more);
    whole[bytes.len() + more.len()..].copy_from_slice(&END);
    Ok(whole)
}
