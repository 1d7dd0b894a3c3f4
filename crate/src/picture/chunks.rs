//! Checks the chunks of WebP and GIF files before they are decoded, because the decoders allocate whatever a header
//! claims.

use super::decode::{SizeLimit, make_room};
use crate::{Error, Result};

/// Bytes per pixel of a GIF's frame and of its screen.
const BYTES_PER_PIXEL: u64 = 4;

/// Walks a WebP's chunks, and once into each frame of an animation; returns whether there are several frames. The
/// decoder allocates as many bytes of metadata as a chunk claims to have, and as many pixels as the lossy frame claims,
/// whatever the file's header says.
pub(super) fn check_webp(bytes: &[u8], limit: &SizeLimit) -> Result<bool> {
    let size = number(bytes, 4).unwrap_or(0) as usize;
    let mut n_frames = 0;
    walk_webp(bytes, 12..size.saturating_add(8), |name, data| match name {
        b"ANMF" if data.len() >= 16 => {
            n_frames += 1;
            walk_webp(bytes, data.start + 16..data.end, |name, data| match name {
                b"ANMF" => Err(Error::Image("WebP: there is an ANMF chunk inside an ANMF chunk".to_owned())),
                _ => check_lossy(bytes, name, data, limit),
            })
        }
        _ => check_lossy(bytes, name, data, limit),
    })?;
    Ok(n_frames > 1)
}

fn walk_webp(
    bytes: &[u8],
    range: std::ops::Range<usize>,
    mut visit: impl FnMut(&[u8; 4], std::ops::Range<usize>) -> Result<()>,
) -> Result<()> {
    let (mut at, end) = (range.start, range.end);
    let cut_short = || Error::Image("WebP: the file is shorter than its chunks say".to_owned());
    if end > bytes.len() {
        return Err(cut_short());
    }
    while at + 8 <= end {
        let data = at + 8;
        let data_end = number(bytes, at + 4).and_then(|n| data.checked_add(n as usize)).filter(|&it| it <= end);
        let data_end = data_end.ok_or_else(cut_short)?;
        visit(bytes[at..].first_chunk().expect("eight bytes are there"), data..data_end)?;
        // Chunks start at even offsets.
        at = data_end + data_end % 2;
    }
    Ok(())
}

/// The lossy frame's own header, after its tag and start code.
fn check_lossy(bytes: &[u8], name: &[u8; 4], data: std::ops::Range<usize>, limit: &SizeLimit) -> Result<()> {
    if name != b"VP8 " || data.len() < 10 {
        return Ok(());
    }
    let size = number(bytes, data.start + 6).unwrap_or(0);
    limit.check(size & 0x3fff, size >> 16 & 0x3fff)
}

/// Walks a GIF's blocks up to the second frame; returns whether there is one. The decoder allocates as many pixels as
/// the first frame claims.
pub(super) fn check_gif(bytes: &[u8], limit: &SizeLimit) -> Result<bool> {
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3usize << ((flags & 7) + 1) };
    let byte = |at: usize| bytes.get(at).copied();
    let size = |at: usize| {
        let Some(&[a, b, c, d]) = bytes.get(at..at + 4) else { return (0, 0) };
        (u32::from(u16::from_le_bytes([a, b])), u32::from(u16::from_le_bytes([c, d])))
    };
    let (screen_width, screen_height) = size(6);
    let mut at = 13 + byte(10).map_or(0, table);
    let mut n_frames = 0;
    while let Some(kind) = byte(at) {
        match kind {
            0x21 => at += 2,
            0x2c if n_frames == 1 => return Ok(true),
            0x2c => {
                let Some(flags) = byte(at + 9) else { break };
                let (width, height) = size(at + 5);
                limit.check(screen_width, screen_height)?;
                limit.check(width, height)?;
                let screen = u64::from(screen_width) * u64::from(screen_height);
                make_room(BYTES_PER_PIXEL * (screen + u64::from(width) * u64::from(height)))?;
                n_frames += 1;
                at += 11 + table(flags);
            }
            _ => break,
        }
        // Sub-blocks, up to the empty one.
        while let Some(n) = byte(at).filter(|&n| n > 0) {
            at += 1 + usize::from(n);
        }
        at += 1;
    }
    Ok(false)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
