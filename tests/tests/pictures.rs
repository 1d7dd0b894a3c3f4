//! Pictures as users have them: markers in films, padded slices, transparent areas, truncated files, files of other
//! kinds.

use std::path::PathBuf;

use llama3med::Error;
use llama3med::picture::Picture;

fn file(path: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).expect("the pictures are in the repository")
}

fn decode(path: &str) -> Picture {
    Picture::decode(&file(path)).expect(path)
}

/// The red channel of a grey picture.
fn greys(picture: &Picture) -> Vec<u8> {
    assert!(picture.rgb.chunks_exact(3).all(|pixel| pixel[0] == pixel[1] && pixel[0] == pixel[2]));
    picture.rgb.iter().step_by(3).copied().collect()
}

/// A PNG of 16-bit greys.
fn png_16_bit(width: u32, values: &[u16]) -> Vec<u8> {
    let image =
        image::ImageBuffer::<image::Luma<u16>, _>::from_raw(width, values.len() as u32 / width, values.to_vec());
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.expect("whole rows").write_to(&mut bytes, image::ImageFormat::Png).expect("a PNG can be written");
    bytes.into_inner()
}

/// The 16-bit values of a PNG.
fn values_16_bit(bytes: &[u8]) -> Vec<u16> {
    image::load_from_memory(bytes).expect("a PNG").into_luma16().into_raw()
}

#[test]
fn a_marker_does_not_darken_a_film() {
    let bytes = file("pictures/film12-mark.png");
    let mut values = values_16_bit(&bytes);
    assert_eq!(values[0], 65535);
    values[0] = values[1];
    let expected = greys(&Picture::decode(&png_16_bit(256, &values)).expect("the film without its marker"));
    let marked = Picture::decode(&bytes).expect("the film");
    let found = greys(&marked);
    assert_eq!(found[0], 255);
    let error = found.iter().zip(&expected).skip(1).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(error <= Some(1), "{error:?}");
    assert!(found.iter().filter(|&&level| level > 128).count() > found.len() / 3, "the film is bright");
    assert!(marked.notes[0].contains("values from 105 to 3895 from black to white"), "{:?}", marked.notes);
}

#[test]
fn the_border_of_a_slice_does_not_flatten_it() {
    let bytes = file("pictures/hu.png");
    let found = greys(&Picture::decode(&bytes).expect("the slice"));
    let inside = &values_16_bit(&bytes)[16 * 256..];
    let expected = greys(&Picture::decode(&png_16_bit(256, inside)).expect("the slice without its border"));
    assert!(found[..16 * 256].iter().all(|&level| level == 0));
    assert_eq!(found[16 * 256..], expected);
    assert!(expected.contains(&0) && expected.contains(&255));
}

#[test]
fn a_fraction_above_one_does_not_blacken_a_picture() {
    let bytes = file("golden/preprocess/grey-float.tiff");
    let plain = greys(&Picture::decode(&bytes).expect("fractions"));
    // The pixels follow the header, most significant byte first.
    for (value, level) in [(1.0001f32, 255), (-3.4e38, 0), (65535.0, 255)] {
        let mut changed = bytes.clone();
        changed[8..12].copy_from_slice(&value.to_be_bytes());
        let found = greys(&Picture::decode(&changed).expect("fractions and one more"));
        assert_eq!((found[0], &found[1..]), (level, &plain[1..]), "{value}");
    }
}

#[test]
fn transparent_pixels_are_black() {
    let picture = decode("pictures/alpha.png");
    let colors: std::collections::BTreeSet<_> = picture.rgb.as_chunks::<3>().0.iter().copied().collect();
    assert_eq!(colors.into_iter().collect::<Vec<_>>(), [[0, 0, 0], [200, 30, 30]], "a red square and no noise");
    assert_eq!(picture.notes, ["Transparent parts are shown on black."]);
}

#[test]
fn a_jpeg_without_its_end_opens() {
    let bytes = file("pictures/noeoi.jpg");
    let whole = Picture::decode(&[&bytes[..], &[0xff, 0xd9]].concat()).expect("the whole JPEG");
    let found = Picture::decode(&bytes).expect("the JPEG without its end");
    assert!(found.rgb == whole.rgb && whole.notes.is_empty());
    assert_eq!(found.notes, ["The JPEG file lacks its end marker; all rows are there."]);
    let half = Picture::decode(&bytes[..bytes.len() / 2]).expect("half of the JPEG");
    let percent: usize = half.notes[0].split(' ').find_map(|word| word.parse().ok()).expect("a number");
    assert!((30..70).contains(&percent), "{:?}", half.notes);
    let n_known = half.height - half.height * percent / 100;
    let row_bytes = half.width * 3;
    assert!(half.rgb[..(n_known - 1) * row_bytes] == whole.rgb[..(n_known - 1) * row_bytes]);
    assert!(half.rgb[n_known * row_bytes..].iter().all(|&level| level == 0), "the rest is black");
    let error = Picture::decode(&bytes[..bytes.iter().rposition(|&byte| byte == 0xda).expect("a scan")]);
    assert!(error.is_err() || error.is_ok_and(|picture| !picture.notes.is_empty()));
}

#[test]
fn a_png_without_its_end_opens() {
    for name in ["rgb.png", "grey-12bit.png", "interlaced.png"] {
        let bytes = file(&format!("golden/preprocess/{name}"));
        let whole = Picture::decode(&bytes).expect(name);
        let found = Picture::decode(&bytes[..bytes.len() - 12]).expect(name);
        assert!(found.rgb == whole.rgb, "{name}");
        assert!(found.notes.iter().any(|note| note == "The PNG file lacks its end chunk; the picture is whole."));
        let half = Picture::decode(&bytes[..bytes.len() * 2 / 3]).expect(name);
        assert!(half.notes.iter().any(|note| note.contains(" % of ")), "{name}: {:?}", half.notes);
        assert_eq!((half.width, half.height), (whole.width, whole.height));
    }
    let half = Picture::decode(&file("golden/preprocess/rgb.png")[..450]).expect("half");
    let whole = decode("golden/preprocess/rgb.png");
    assert!(half.rgb.iter().zip(&whole.rgb).all(|(a, b)| a == b || *a == 0), "what is there is right, the rest black");
}

#[test]
fn animations_and_further_pages_are_noted() {
    for name in ["animated.gif", "animated.webp"] {
        let notes = decode(&format!("golden/preprocess/{name}")).notes;
        assert_eq!(notes, ["The file is an animation; its first frame is read."], "{name}");
    }
    for name in ["plain.gif", "rgb.webp", "rgb.png", "rgb.tiff", "grey-16bit.png"] {
        assert_eq!(decode(&format!("golden/preprocess/{name}")).notes, [""; 0], "{name}");
    }
    let mut pages = file("golden/preprocess/white-is-zero.tiff");
    for n_pages in 2..5 {
        add_page(&mut pages, 0);
        assert_eq!(Picture::decode(&pages).expect("pages").notes, [format!("Page 1 of {n_pages} is used.")]);
    }
    // Thumbnails and masks are not pages.
    add_page(&mut pages, 1);
    add_page(&mut pages, 4);
    assert_eq!(Picture::decode(&pages).expect("pages").notes, ["Page 1 of 4 is used."]);
    // A chain that returns to its start ends there.
    let last = *directories(&pages).last().expect("a directory");
    let first = directories(&pages)[0] as u32;
    let end = end_of(&pages, last);
    pages[end..][..4].copy_from_slice(&first.to_le_bytes());
    assert_eq!(Picture::decode(&pages).expect("pages").notes, ["Page 1 of 4 is used."]);
}

/// A number of a little-endian file.
fn little(bytes: &[u8], at: usize, n: usize) -> usize {
    bytes[at..at + n].iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte))
}

/// Where a directory has the offset of the next.
fn end_of(tiff: &[u8], directory: usize) -> usize {
    directory + 2 + 12 * little(tiff, directory, 2)
}

/// Offsets of a TIFF's directories.
fn directories(tiff: &[u8]) -> Vec<usize> {
    let next = |&directory: &usize| Some(little(tiff, end_of(tiff, directory), 4)).filter(|&next| next > 0);
    std::iter::successors(Some(little(tiff, 4, 4)), next).collect()
}

/// Adds the first page once more as the last, with this NewSubfileType.
fn add_page(tiff: &mut Vec<u8>, kind: u32) {
    let directories = directories(tiff);
    let (first, last) = (directories[0], *directories.last().expect("a directory"));
    let (end, place) = (end_of(tiff, last), tiff.len() as u32);
    tiff[end..][..4].copy_from_slice(&place.to_le_bytes());
    let entries: Vec<u8> = tiff[first + 2..end_of(tiff, first)].to_vec();
    tiff.extend((little(tiff, first, 2) as u16 + 1).to_le_bytes());
    tiff.extend([254u16.to_le_bytes(), 4u16.to_le_bytes()].as_flattened());
    tiff.extend([1u32.to_le_bytes(), kind.to_le_bytes()].as_flattened());
    tiff.extend(entries);
    tiff.extend([0; 4]);
}

#[test]
fn other_kinds_of_jpeg_are_named() {
    let bytes = file("pictures/noeoi.jpg");
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).expect("a frame header");
    let named = |marker: u8, bits: u8| {
        let mut bytes = bytes.clone();
        (bytes[frame + 1], bytes[frame + 4]) = (marker, bits);
        match Picture::decode(&bytes) {
            Err(Error::Format(name)) => name,
            other => panic!("{marker:x}: {other:?}"),
        }
    };
    assert_eq!(named(0xc1, 12), "a JPEG with 12 bits a sample");
    assert_eq!(named(0xc3, 16), "a lossless JPEG");
    assert_eq!(named(0xc9, 8), "a JPEG with arithmetic coding");
    assert_eq!(named(0xf7, 8), "a JPEG-LS picture");
}

#[test]
fn packed_tiffs_that_lie_are_refused() {
    let bytes = file("golden/preprocess/zstd.tiff");
    let magic = bytes.windows(4).position(|four| four == [0x28, 0xb5, 0x2f, 0xfd]).expect("a zstd frame");
    let mut large = bytes.clone();
    // Not a single segment, and a window of 2 TiB.
    (large[magic + 4], large[magic + 5]) = (0, 0xf8);
    let error = Picture::decode(&large).expect_err("too large a window").to_string();
    assert!(error.contains("Zstd: a window of"), "{error}");
    for name in ["zstd.tiff", "zstd-strips.tiff", "lzma.tiff", "lzma-strips.tiff"] {
        let bytes = file(&format!("golden/preprocess/{name}"));
        let mark: &[u8] = if name.starts_with("zstd") { &[0x28, 0xb5, 0x2f, 0xfd] } else { b"\xfd7zXZ" };
        let at = bytes.windows(mark.len()).position(|part| part == mark).expect("a packed strip");
        let mut broken = bytes.clone();
        broken[at] ^= 1;
        let error = Picture::decode(&broken).expect_err(name).to_string();
        assert!(error.starts_with("image: TIFF: strip or tile 0: "), "{name}: {error}");
    }
}
