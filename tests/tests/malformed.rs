//! Inputs that once broke a parser, or were made to: each must be refused or read, and never panic, hang, or exhaust
//! memory or the browser's stack.

use std::path::Path;

use llama3med::picture::Picture;

#[test]
fn every_kept_input_is_handled() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("malformed");
    for (name, parse) in tests::PARSERS {
        let files =
            std::fs::read_dir(folder.join(name)).unwrap_or_else(|error| panic!("tests/malformed/{name}: {error}"));
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(!paths.is_empty(), "no inputs in tests/malformed/{name}");
        paths.sort();
        let parse_all = move || {
            for path in paths {
                // A stack overflow prints nothing else about which input it was.
                eprintln!("{}", path.display());
                parse(&std::fs::read(&path).unwrap());
            }
        };
        tests::on_small_stack(parse_all).join().unwrap_or_else(|_| panic!("{name}: see above for the input"));
    }
}

/// Stack size in a browser tab.
const SMALL_STACK: usize = 1 << 20;

fn on_a_small_stack(run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(SMALL_STACK).spawn(run).expect("a thread");
    thread.join().expect("no panic");
}

/// Nested ANMF chunks.
fn nested_webp(depth: usize) -> Vec<u8> {
    let n = |level: usize| (24 * level) as u32;
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((22 + n(depth)).to_le_bytes());
    bytes.extend(b"WEBPVP8X\x0a\0\0\0\x02\0\0\0\x0f\0\0\x0f\0\0");
    for level in (0..depth).rev() {
        bytes.extend(b"ANMF");
        bytes.extend((16 + n(level)).to_le_bytes());
        bytes.extend([0; 16]);
    }
    bytes
}

#[test]
fn chunks_inside_chunks_are_refused_at_any_depth() {
    on_a_small_stack(|| {
        for depth in [2, 1000, 10_000, 200_000] {
            let error = Picture::decode(&nested_webp(depth)).expect_err("no picture").to_string();
            assert_eq!(error, "image: WebP: there is an ANMF chunk inside an ANMF chunk", "depth {depth}");
        }
    });
}

#[test]
fn nesting_ends_no_parser() {
    let repeated = |open: &str, middle: &str, close: &str| {
        [open.repeat(100_000), middle.to_owned(), close.repeat(100_000)].concat().into_bytes()
    };
    let inside = |before: &str, nested: Vec<u8>, after: &str| [before.as_bytes(), &nested, after.as_bytes()].concat();
    let arrays = || repeated("[", "", "]");
    let objects = || repeated(r#"{"a":"#, "1", "}");
    // A file of two pages that point to each other forever.
    let mut pages = b"II*\0\x08\0\0\0\0\0\x08\0\0\0".to_vec();
    pages.resize(64, 0);
    let mut gguf = b"GGUF\x03\0\0\0".to_vec();
    gguf.extend([0u64.to_le_bytes(), 1u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
    gguf.push(b'a');
    for _ in 0..100_000 {
        gguf.extend(9u32.to_le_bytes());
        gguf.extend(1u64.to_le_bytes());
    }
    let pickle = [b"\x80\x02)".as_slice(), &[0x85; 100_000], b"."].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("image", pages),
        ("image", repeated("<svg>", "", "</svg>")),
        ("gguf", gguf),
        ("manifest", arrays()),
        ("manifest", inside(r#"{"about":"#, objects(), "}")),
        ("tokenizer", arrays()),
        ("tokenizer", inside(r#"{"model":"#, objects(), "}")),
        ("config", objects()),
        ("about", arrays()),
        ("questions", arrays()),
        ("pickle", pickle),
        ("pickle", [b"\x80\x02".as_slice(), &b"]".repeat(100_000), &b"a".repeat(99_999), b"."].concat()),
        ("chat_template", repeated("{% if true %}", "", "{% endif %}")),
        ("chat_template", inside("{{ ", repeated("(", "1", ")"), " }}")),
        ("chat_template", inside("{{ ", repeated("[", "1", "]"), " }}")),
        ("chat_template", inside("{{ ", repeated("not ", "1", ""), " }}")),
        ("chat_template", inside("{{ 1", repeated("|length", "", ""), " }}")),
        // As long as a template may be.
        ("chat_template", ["{{ ", &"not ".repeat(16_000), "1 }}"].concat().into_bytes()),
        ("chat_template", ["{{ ", &"-".repeat(65_000), "1 }}"].concat().into_bytes()),
        ("chat_template", ["{{ 1", &"+1".repeat(32_000), " }}"].concat().into_bytes()),
        ("chat_template", ["{{ a", &".a".repeat(32_000), " }}"].concat().into_bytes()),
        ("chat_template", ["{{ a", &"[0]".repeat(21_000), " }}"].concat().into_bytes()),
        ("chat_template", ["{% if a %}", &"{% elif a %}".repeat(5000), "{% endif %}"].concat().into_bytes()),
    ];
    for (name, bytes) in cases {
        let (_, parse) = tests::PARSERS.iter().find(|(it, _)| *it == name).expect(name);
        println!("{name}: {} bytes", bytes.len());
        on_a_small_stack(move || parse(&bytes));
    }
}
