//! Which files make a model: the parts of a split file, and a decoder with its encoder among several files.
//!
//! Everything here follows from headers and names; reading the files is left to the caller.

use super::gguf::{ARCHITECTURE_KEY, Gguf, split_name};
use super::manifest::{DECODER, ENCODER};
use crate::error::{Error, Result};
use std::ops::Range;

/// A GGUF file as the ranges of the sources that hold it: one source, or the parts of a split file.
#[derive(Debug, Clone)]
pub struct Whole {
    /// Bytes of its header.
    pub header_size: u64,
    /// Bytes of all of it.
    pub size: u64,
    /// Its first bytes, if it exists only as parts.
    pub header: Option<Vec<u8>>,
    /// What each source has of the rest, in order.
    pub ranges: Vec<Range<u64>>,
}

impl Whole {
    /// The file that these sources form, given their headers in order.
    pub fn of(sources: &[Gguf]) -> Result<Self> {
        let whole = match sources {
            [gguf] if gguf.split()?.is_none() => Some(gguf),
            _ => None,
        };
        let header = if whole.is_none() { Some(Gguf::join(sources)?) } else { None };
        let n_bytes = header.as_ref().map_or(0, |header| header.len() as u64);
        let start = |gguf: &Gguf| if whole.is_some() { 0 } else { gguf.data_offset.min(gguf.file_size) };
        let ranges: Vec<_> = sources.iter().map(|gguf| start(gguf)..gguf.file_size).collect();
        let size = n_bytes + ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        Ok(Self { header_size: whole.map_or(n_bytes, |gguf| gguf.data_offset), size, header, ranges })
    }
}

/// The decoder or the encoder of a model.
#[derive(Debug, Clone)]
pub struct Member {
    /// [`DECODER`] or [`ENCODER`].
    pub name: &'static str,
    /// Its own name, or that of its first source.
    pub title: String,
    /// Indices of its sources, in order.
    pub sources: Vec<usize>,
    /// The file that they form.
    pub whole: Whole,
}

/// The decoder and, if there is one, the encoder that sources in any order make, given their headers. `name_of` maps an
/// architecture to the name of its file.
pub fn members(headers: Vec<Gguf>, name_of: impl Fn(&str) -> Option<&'static str>) -> Result<Vec<Member>> {
    let mut members: Vec<Member> = Vec::new();
    for Group { sources, parts, .. } in grouped(headers)? {
        let first = &parts[0];
        let architecture = first.architecture()?.unwrap_or_default();
        let Some(name) = name_of(architecture) else {
            let problem = format!("{} is neither a language model of the Llama kind nor an image encoder.", first.file);
            return Err(wrong(problem, format!("{ARCHITECTURE_KEY} is {architecture:?}")));
        };
        if let Some(other) = members.iter().find(|other| other.name == name) {
            let found = format!("{} and {}", other.title, first.file);
            return Err(wrong(format!("Both files are {}s.", kind(name)), found));
        }
        let title = first.title()?.filter(|title| !title.is_empty()).unwrap_or(&first.file).to_owned();
        members.push(Member { name, title, sources, whole: Whole::of(&parts)? });
    }
    // Without an encoder it is a language model, which sees no pictures.
    if !members.iter().any(|member| member.name == DECODER) {
        let titles: Vec<&str> = members.iter().map(|member| member.title.as_str()).collect();
        let problem = format!("The {} is missing.", kind(DECODER));
        return Err(wrong(problem, titles.join(", ")));
    }
    members.sort_by_key(|member| member.name == ENCODER);
    Ok(members)
}

/// A file with its sources in order, and their headers.
struct Group {
    /// What the parts of one file share: their name or, if that does not tell, their number.
    key: (usize, String),
    sources: Vec<usize>,
    parts: Vec<Gguf>,
}

/// The files among the sources; a split one must have all its parts.
fn grouped(headers: Vec<Gguf>) -> Result<Vec<Group>> {
    let placed = |(source, gguf): (usize, Gguf)| Ok((gguf.split()?, source, gguf));
    let mut placed = headers.into_iter().enumerate().map(placed).collect::<Result<Vec<_>>>()?;
    placed.sort_by_key(|(split, ..)| split.map_or(0, |(part, _)| part));
    let mut groups: Vec<Group> = Vec::new();
    for (split, source, gguf) in placed {
        let key = match split {
            None => (1, source.to_string()),
            Some((_, n_parts)) => {
                split_name(&gguf.file).map_or((n_parts, String::new()), |(stem, _)| (0, stem.to_owned()))
            }
        };
        match groups.iter_mut().find(|group| group.key == key) {
            Some(group) => {
                group.sources.push(source);
                group.parts.push(gguf);
            }
            None => groups.push(Group { key, sources: vec![source], parts: vec![gguf] }),
        }
    }
    for Group { parts, .. } in &groups {
        let (first, n_parts) = parts[0].split()?.unwrap_or((0, 1));
        if first > 0 || parts.len() != n_parts {
            let lack = if parts.len() == 1 { "the others are" } else { "some are" };
            let problem = format!("{} is one of {n_parts} parts, and {lack} missing.", parts[0].file);
            let names: Vec<&str> = parts.iter().map(|part| part.file.as_str()).collect();
            return Err(wrong(problem, names.join(", ")));
        }
    }
    Ok(groups)
}

/// What a file of a model is, for users.
fn kind(name: &str) -> &'static str {
    match name {
        DECODER => "language model",
        _ => "image encoder",
    }
}

fn wrong(problem: String, found: String) -> Error {
    Error::Pair { problem, found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::gguf::{Dtype, Header};

    /// A header with one tensor; `part` is its place among three, if it is a part.
    fn source(name: &str, architecture: &str, part: Option<u32>) -> Gguf {
        let mut header = Header::default();
        header.of_model(architecture, if architecture == "llama" { "A model" } else { "" });
        if let Some(part) = part {
            header.u32("split.no", part).u32("split.count", 3);
        }
        let n_bytes = header.tensor(&format!("w{}", part.unwrap_or(0)), Dtype::F32, &[8]);
        let bytes = header.to_bytes();
        Gguf::parse(name, &bytes, bytes.len() as u64 + n_bytes).unwrap().unwrap()
    }

    fn found(sources: Vec<Gguf>) -> Result<Vec<(&'static str, String, Vec<usize>)>> {
        let names = |architecture: &str| {
            [("llama", DECODER), ("clip", ENCODER)].into_iter().find(|(name, _)| *name == architecture)
        };
        let members = members(sources, |architecture| Some(names(architecture)?.1))?;
        Ok(members.into_iter().map(|member| (member.name, member.title, member.sources)).collect())
    }

    #[test]
    fn files_make_a_model_in_any_order() {
        let encoder = || source("b.gguf", "clip", None);
        let one = found(vec![encoder(), source("a.gguf", "llama", None)]).unwrap();
        assert_eq!(one, [(DECODER, "A model".into(), vec![1]), (ENCODER, "b.gguf".into(), vec![0])]);
        let names = ["x-00002-of-00003.gguf", "x-00001-of-00003 (1).gguf", "x-00003-of-00003(12).gguf"];
        for names in [names, ["p", "q", "r"]] {
            let part = |place: usize, part| source(names[place], "llama", Some(part));
            let split = found(vec![part(0, 1), encoder(), part(1, 0), part(2, 2)]).unwrap();
            assert_eq!(split[0], (DECODER, "A model".into(), vec![2, 0, 3]), "{names:?}");
        }
        let parts = [0, 1, 2].map(|part| source("x", "llama", Some(part)));
        let whole = Whole::of(&parts).unwrap();
        assert_eq!(
            (whole.size - whole.header_size, whole.ranges[2].clone()),
            (96, parts[2].data_offset..parts[2].file_size)
        );
        assert_eq!(whole.header.unwrap().len() as u64, whole.header_size);
    }

    #[test]
    fn every_wrong_choice_is_named() {
        let (decoder, encoder) = (|| source("a.gguf", "llama", None), || source("b.gguf", "clip", None));
        let cases = [
            (vec![], "The language model is missing."),
            (vec![encoder()], "The language model is missing."),
            (vec![decoder(), decoder()], "Both files are language models."),
            (vec![encoder(), encoder()], "Both files are image encoders."),
            (vec![source("c", "bert", None)], "c is neither a language model of the Llama kind nor an image encoder."),
            (vec![decoder(), source("p", "llama", Some(0))], "p is one of 3 parts, and the others are missing."),
            (
                vec![source("p", "llama", Some(1)), source("q", "llama", Some(0))],
                "q is one of 3 parts, and some are missing.",
            ),
        ];
        for (sources, problem) in cases {
            assert_eq!(found(sources).unwrap_err().to_string(), problem);
        }
    }
}
