//! Image files that are damaged or have a wrong size: no panic, and no more memory than the file's length justifies.
//!
//! `DAMAGED_IMAGES=20000 cargo test -p tests --test damaged_images` tries that many changes per file instead of a few.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use llama3med::Error;
use llama3med::picture::{Fit, Picture, Preprocess, preprocess};

/// Memory that a file of a few kilobytes may take while it is decoded: 8 million pixels of RGBA and of RGB, and a
/// margin.
const MAX_DAMAGED: usize = 128 << 20;
/// Memory that a file with a refused header may take.
const MAX_REFUSED: usize = 1 << 20;

/// The system's allocator, counting current and peak use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The largest allocation that is granted.
static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// One measurement at a time.
static MEASURING: Mutex<()> = Mutex::new(());

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Ordering::Relaxed);
        if layout.size() > LARGEST.load(Ordering::Relaxed) {
            IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
            return std::ptr::null_mut();
        }
        // SAFETY: the caller meets the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller meets the system allocator's conditions.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result of decoding, and its peak memory.
fn decode(bytes: &[u8]) -> (llama3med::Result<Picture>, usize) {
    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = Picture::decode(bytes);
    (result, PEAK.load(Ordering::Relaxed).saturating_sub(before))
}

/// The committed image files in a folder.
fn files(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = std::fs::read_dir(folder).expect("the image files are in the repository");
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.expect("readable");
        (entry.file_name().into_string().expect("a plain name"), std::fs::read(entry.path()).expect("readable"))
    };
    let mut files: Vec<_> = entries.map(file).collect();
    files.sort();
    files
}

/// A small generator, so that failures can be reproduced (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// One to four changes: bits, bytes, 2- and 4-byte numbers with extreme values, pieces removed or duplicated.
fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + random.below(4) {
        if bytes.len() < 8 {
            break;
        }
        // Half of the changes are in the headers.
        let end = if random.below(2) == 0 { bytes.len().min(200) } else { bytes.len() };
        let at = random.below(end - 4);
        let n_cut = 1 + random.below((bytes.len() - at).min(40) - 1);
        match random.below(7) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = [0, 0xff, 0x7f, 0x80, 1][random.below(5)],
            3 => bytes[at..at + 2].fill([0, 0xff][random.below(2)]),
            4 => bytes[at..at + 4]
                .copy_from_slice(&[[0xff; 4], [0; 4], [0x7f, 0xff, 0xff, 0xff], [0, 1, 0, 0]][random.below(4)]),
            5 => drop(bytes.drain(at..at + n_cut)),
            _ => {
                let piece = bytes[at..at + n_cut].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    if random.below(8) == 0 {
        bytes.truncate(random.below(bytes.len()));
    }
    bytes
}

/// Recomputes the checksums of a PNG's chunks, so that the changes reach the decoder.
fn mend_png(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(head) = bytes.get(at..at + 4) {
        let n = u32::from_be_bytes(head.try_into().expect("four bytes")) as usize;
        let Some(end) = at.checked_add(8 + n).filter(|end| end + 4 <= bytes.len()) else { return };
        let mut sum = u32::MAX;
        for &byte in &bytes[at + 4..end] {
            sum ^= u32::from(byte);
            for _ in 0..8 {
                sum = sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 };
            }
        }
        bytes[end..end + 4].copy_from_slice(&(!sum).to_be_bytes());
        at = end + 4;
    }
}

#[test]
fn damaged_files_neither_panic_nor_take_much_memory() {
    let _alone = MEASURING.lock();
    let n_tries = std::env::var("DAMAGED_IMAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let mut failed = Vec::new();
    let mut peak = (0, String::new());
    for (file_idx, (name, bytes)) in files("golden/preprocess").into_iter().enumerate() {
        let mut n_decoded = 0;
        for n in 0..n_tries {
            let seed = 1 + (file_idx as u64) * 1_000_003 + n;
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut changed = damage(&bytes, &mut random);
            if name.ends_with(".png") && random.below(4) > 0 {
                mend_png(&mut changed);
            }
            match catch_unwind(|| decode(&changed)) {
                Err(_) => failed.push(format!("{name}, seed {seed}: panic")),
                Ok((result, n_bytes)) => {
                    n_decoded += usize::from(result.is_ok());
                    if let Err(error) = result {
                        assert!(error.to_string().len() > "image: ".len(), "{name}, seed {seed}");
                    }
                    if n_bytes > MAX_DAMAGED {
                        failed.push(format!("{name}, seed {seed}: {n_bytes} bytes"));
                    }
                    if n_bytes > peak.0 {
                        peak = (n_bytes, format!("{name}, seed {seed}"));
                    }
                }
            }
        }
        println!("{name}: {n_decoded} of {n_tries} still decode");
    }
    println!("most memory: {} bytes for {}", peak.0, peak.1);
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn headers_that_lie_are_refused_before_memory_is_taken() {
    let _alone = MEASURING.lock();
    let large = [0xff, 0xff];
    let mut lies = Vec::new();
    for (name, mut bytes) in files("golden/preprocess") {
        match name.as_str() {
            "rgb.png" | "palette.png" | "grey-16bit.png" => {
                for edge in [[0, 0, 0xff, 0xff], [0x7f, 0xff, 0xff, 0xff], [0, 0, 0x4e, 0x20]] {
                    let mut bytes = bytes.clone();
                    bytes[16..20].copy_from_slice(&edge);
                    bytes[20..24].copy_from_slice(&edge);
                    mend_png(&mut bytes);
                    lies.push((name.clone(), bytes));
                }
            }
            "rgb.bmp" | "palette.bmp" | "rgba.bmp" => {
                for edge in [[0xff, 0xff, 0, 0], [0xff, 0xff, 0xff, 0x7f], [0x20, 0x4e, 0, 0]] {
                    let mut bytes = bytes.clone();
                    bytes[18..22].copy_from_slice(&edge);
                    bytes[22..26].copy_from_slice(&edge);
                    lies.push((name.clone(), bytes));
                }
            }
            "plain.gif" => {
                bytes[6..8].copy_from_slice(&large);
                bytes[8..10].copy_from_slice(&large);
                lies.push((name, bytes));
            }
            "rgb-444.jpg" | "progressive.jpg" | "grey.jpg" => {
                let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0] || pair == [0xff, 0xc2]);
                let frame = frame.expect("a frame header");
                bytes[frame + 5..frame + 7].copy_from_slice(&large);
                bytes[frame + 7..frame + 9].copy_from_slice(&large);
                lies.push((name, bytes));
            }
            "rgb-float.tiff" | "grey-float.tiff" | "rgb-16bit-big-endian.tiff" | "grey-signed.tiff" => {
                let is_little = bytes[0] == b'I';
                for (tag, kind) in [(256u16, 4u16), (257, 4)] {
                    let entry = if is_little {
                        [tag.to_le_bytes(), kind.to_le_bytes()].concat()
                    } else {
                        [tag.to_be_bytes(), kind.to_be_bytes()].concat()
                    };
                    let at = bytes.windows(4).position(|four| four == entry).expect("the tag");
                    let edge = 65535u32;
                    bytes[at + 8..at + 12].copy_from_slice(&if is_little {
                        edge.to_le_bytes()
                    } else {
                        edge.to_be_bytes()
                    });
                }
                lies.push((name, bytes));
            }
            _ => {}
        }
    }
    assert_eq!(lies.len(), 9 + 9 + 1 + 3 + 4);
    // The strip is a valid picture that once took too long to pad.
    lies.extend(files("malformed/image").into_iter().filter(|(name, _)| name != "strip.gif"));
    for (name, bytes) in lies {
        let (result, n_bytes) = decode(&bytes);
        let error = result.expect_err(&name).to_string();
        println!("{name}: {n_bytes} bytes, {error}");
        assert!(n_bytes <= MAX_REFUSED, "{name}: {n_bytes} bytes");
    }
}

#[test]
fn want_of_memory_for_a_square_is_an_error() {
    let _alone = MEASURING.lock();
    // The long sides of pads, and of columns that are not visible, take most of the memory.
    let pictures = [(4, 8000), (8000, 4), (300, 200)]
        .map(|(width, height)| Picture::new(width, height, vec![90; width * height * 3]));
    for picture in &pictures {
        for fit in [Fit::Crop, Fit::Pad, Fit::Stretch] {
            let options = Preprocess { size: 128, fit, mean: [0.5; 3], std: [0.25; 3] };
            let mut n_refused = 0;
            // With decreasing limits, every buffer is refused in one of them.
            for shift in (14..24).rev() {
                LARGEST.store(1 << shift, Ordering::Relaxed);
                let result = preprocess(picture, &options);
                LARGEST.store(usize::MAX, Ordering::Relaxed);
                match result {
                    Ok(_) => assert_eq!(n_refused, 0, "less memory is not enough more often"),
                    Err(Error::OutOfMemory { bytes, .. }) => {
                        assert!(bytes > 1 << shift);
                        n_refused += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            assert!((1..10).contains(&n_refused), "{} x {}, {fit:?}: {n_refused}", picture.width, picture.height);
        }
    }
}

#[test]
fn files_that_are_no_image_say_so() {
    let problem = |bytes: &[u8]| Picture::decode(bytes).expect_err("no image").to_string();
    assert!(problem(b"").contains("empty"));
    assert_eq!(problem(b"%PDF-1.7\n%...."), "this is a PDF document; PNG, JPEG, WebP, GIF, BMP and TIFF are read");
    assert!(problem(&[0; 200]).starts_with("this is a file of an unknown kind; "));
    assert!(problem(b"qoif\0\0\0\x01\0\0\0\x01\x03\0").starts_with("this is a QOI picture; "));
    assert!(problem(b"\x89PNG\r\n\x1a\n").starts_with("image: PNG: "));
    assert!(problem(b"GIF89a").starts_with("image: GIF: "));
    assert!(problem(b"BM").starts_with("image: BMP: "));
    assert!(problem(b"II*\0").starts_with("image: TIFF: "));
    assert!(problem(b"RIFF\x04\0\0\0WEBP").starts_with("image: WebP: "));
    assert!(problem(b"\xff\xd8\xff").starts_with("image: JPEG: "));
}
