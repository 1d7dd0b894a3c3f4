//! Recognises a file's kind by its first bytes: the only place that does.

use crate::{Error, Result};

/// A supported format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

impl Format {
    /// The format's name as users write it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        }
    }
}

/// How many bytes are searched for the marks of text formats.
const TEXT_LENGTH: usize = 4096;

/// First bytes of the supported formats; those of WebP are in two places.
const READ: [(&[u8], Format); 9] = [
    (b"\x89PNG\r\n\x1a\n", Format::Png),
    (b"\xff\xd8\xff", Format::Jpeg),
    (b"GIF87a", Format::Gif),
    (b"GIF89a", Format::Gif),
    (b"BM", Format::Bmp),
    (b"II*\0", Format::Tiff),
    (b"MM\0*", Format::Tiff),
    // BigTIFF.
    (b"II+\0", Format::Tiff),
    (b"MM\0+", Format::Tiff),
];

/// First bytes of files that people open by mistake, or that cannot be opened here.
const NAMED: [(&[u8], &str); 29] = [
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\x01\0", "an icon file"),
    (b"qoif", "a QOI picture"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"DDS ", "a DDS picture"),
    (b"farbfeld", "a farbfeld picture"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"CDF\x01", "a NetCDF or MINC file"),
    (b"NRRD", "an NRRD volume"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    (b"SIMPLE  =", "a FITS picture"),
    (b"GGUF", "a GGUF model"),
    (b"PK\x03\x04", "a zip archive or an office document"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"\0asm", "a WebAssembly module"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the file itself"),
];

/// The format of a supported file.
///
/// # Errors
/// [`Error::Format`] with what the file is instead.
pub(super) fn sniff(bytes: &[u8]) -> Result<Format> {
    // Scanners write DICOM after a preamble that may look like another format, usually TIFF.
    if bytes.get(128..132) == Some(b"DICM") || is_bare_dicom(bytes) {
        return Err(Error::Format("a DICOM file".to_owned()));
    }
    if let Some((_, format)) = READ.iter().find(|(start, _)| bytes.starts_with(start)) {
        return Ok(*format);
    }
    if bytes.starts_with(b"RIFF") {
        return match bytes.get(8..12) {
            Some(b"WEBP") => Ok(Format::WebP),
            _ => Err(Error::Format("a sound or video file".to_owned())),
        };
    }
    let named = NAMED.iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, name)| *name);
    let name = named.or_else(|| box_name(bytes)).or_else(|| nifti_name(bytes)).or_else(|| text_name(bytes));
    let name = match name {
        Some(name) => name,
        None if bytes.is_empty() => "an empty file",
        None => "a file of an unknown kind",
    };
    Err(Error::Format(name.to_owned()))
}

/// Whether the bytes begin with a data element of DICOM's first groups, as files without a preamble do.
fn is_bare_dicom(bytes: &[u8]) -> bool {
    let Some(&[group, 0, element, 0, a, b, c, d]) = bytes.get(..8) else { return false };
    let is_explicit = a.is_ascii_uppercase() && b.is_ascii_uppercase();
    let length = u32::from_le_bytes([a, b, c, d]);
    match group {
        // File meta: the group length comes first.
        2 => element <= 2 && (is_explicit || length == 4),
        // Identification: the group length, the character set, the image type, or the object class.
        8 => matches!(element, 0 | 1 | 5 | 8 | 0x16) && (is_explicit || (1..=128).contains(&length)),
        _ => false,
    }
}

/// Box-based files (ISO base media): the brand says which.
fn box_name(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8)? != b"ftyp" {
        return None;
    }
    let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let brands = bytes.get(8..length.clamp(12, 256).min(bytes.len()))?;
    let has = |wanted: &[&[u8]]| brands.as_chunks::<4>().0.iter().any(|brand| wanted.contains(&brand.as_slice()));
    Some(if has(&[b"avif", b"avis"]) {
        "an AVIF picture"
    } else if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) {
        "a HEIC picture"
    } else {
        "a video"
    })
}

/// NIfTI and Analyze: the header's own length, in either byte order.
fn nifti_name(bytes: &[u8]) -> Option<&'static str> {
    let length: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    let length = u32::from_le_bytes(length).min(u32::from_be_bytes(length));
    let has = |at: usize, marks: [&[u8]; 2]| bytes.get(at..at + 3).is_some_and(|mark| marks.contains(&mark));
    match length {
        348 if has(344, [b"n+1", b"ni1"]) => Some("a NIfTI volume"),
        540 if has(4, [b"n+2", b"ni2"]) => Some("a NIfTI volume"),
        348 if bytes.len() >= 348 => Some("an Analyze header"),
        _ => None,
    }
}

/// Text formats, by the marks near their start.
fn text_name(bytes: &[u8]) -> Option<&'static str> {
    let start = &bytes[..bytes.len().min(TEXT_LENGTH)];
    if start[..start.len().min(1024)].windows(5).any(|five| five == b"%PDF-") {
        return Some("a PDF document");
    }
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let is_text = |&byte: &u8| byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c);
    if start.is_empty() || !start.iter().all(is_text) {
        return None;
    }
    let text = start.to_ascii_lowercase();
    let has = |mark: &[u8]| text.windows(mark.len()).any(|part| part == mark);
    Some(match text.trim_ascii_start() {
        start if start.starts_with(b"%!ps") => "a PostScript document",
        start if start.starts_with(b"<!doctype html") || start.starts_with(b"<html") => "a web page",
        start if start.starts_with(b"<") && has(b"<svg") => "an SVG drawing",
        start if start.starts_with(b"<") => "an XML or HTML file",
        [b'p', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..] => "a Netpbm picture",
        start if start.starts_with(b"objecttype") || has(b"elementdatafile") => "a MetaImage header",
        _ => "a text file",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(bytes: &[u8]) -> String {
        match sniff(bytes) {
            Ok(format) => format.name().to_owned(),
            Err(Error::Format(name)) => name,
            Err(other) => other.to_string(),
        }
    }

    fn at(n: usize, start: &[u8], place: usize, mark: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; n];
        bytes[..start.len()].copy_from_slice(start);
        bytes[place..place + mark.len()].copy_from_slice(mark);
        bytes
    }

    #[test]
    fn every_kind_is_named() {
        let heic = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic";
        let avif = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf";
        let cases: [(&[u8], &str); 30] = [
            (b"II*\0\x08\0\0\0", "TIFF"),
            (b"MM\0+\0\x08\0\0", "TIFF"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
            (b"RIFF\0\0\0\0WAVEfmt ", "a sound or video file"),
            (heic, "a HEIC picture"),
            (avif, "an AVIF picture"),
            (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "a video"),
            (b"\0\0\0\0ftyp", "a video"),
            (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF document"),
            (b"\x0d\x0a%PDF-1.4\n\0\0", "a PDF document"),
            (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a -->\n<svg xmlns='", "an SVG drawing"),
            (b"<svg width='3'>", "an SVG drawing"),
            (b"<!DOCTYPE html><svg>", "a web page"),
            (b"\n <html>", "a web page"),
            (b"<?xml version='1.0'?><a/>", "an XML or HTML file"),
            (&at(200, b"", 128, b"DICM"), "a DICOM file"),
            (&at(200, b"II*\0\x08\0\0\0", 128, b"DICM"), "a DICOM file"),
            (b"\x02\0\0\0UL\x04\0\xc0\0\0\0", "a DICOM file"),
            (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", "a DICOM file"),
            (b"\x08\0\x08\0\x16\0\0\0ORIGINAL\\PRIMARY\\AXIAL", "a DICOM file"),
            (b"\xff\x0a\xfa\x1f", "a JPEG XL picture"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
            (&at(352, &348u32.to_le_bytes(), 344, b"n+1\0"), "a NIfTI volume"),
            (&at(544, &540u32.to_be_bytes(), 4, b"n+2\0"), "a NIfTI volume"),
            (b"PK\x03\x04\x14\0", "a zip archive or an office document"),
            (b"GGUF\x03\0\0\0", "a GGUF model"),
            (b"P5\n3 4\n255\n", "a Netpbm picture"),
            (b"patient,age\n1,2\n", "a text file"),
            (b"", "an empty file"),
            (&[0; 200], "a file of an unknown kind"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(named(bytes), expected, "{bytes:?}");
        }
    }
}
