//! Prompts for measuring a model: lines of a text file, a question set, or the model's own suggestions.

use crate::files::decode;
use crate::files::folder::{failed, read_small};
use crate::measure::questions::{QuestionSet, find_image};
use llama3med::file::manifest::Manifest;
use llama3med::{Error, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A larger file of prompts is refused.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// File extensions by which a folder's pictures are found.
const PICTURES: [&str; 9] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "dib"];

/// Asked if a model suggests nothing itself: short and long answers, with and without pictures.
const GENERAL: [&str; 12] = [
    "What does the picture show?",
    "Which modality is this picture?",
    "Is there anything abnormal? Answer yes or no.",
    "Describe the picture in detail.",
    "Which organ is shown, and from which direction?",
    "Where is the largest abnormality?",
    "Write a short report with findings and impression.",
    "What would you look at first, and why?",
    "What are the signs of heart failure on a chest film?",
    "Explain the difference between CT and MRI in two sentences.",
    "List three causes of a pleural effusion.",
    "What does a pathologist look for in a biopsy of the colon?",
];

/// One question, with or without a picture.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prompt {
    /// The picture's file.
    pub image: Option<PathBuf>,
    /// The question.
    pub question: String,
}

/// Prompts from a file: a question set (`.json`, `.jsonl`) with its pictures in `images`, or one prompt per line.
/// Prompts about one picture follow each other.
///
/// Lines are combined with the folder's pictures in turn, until every line and every picture has been used; without a
/// folder, there are no pictures.
pub fn read(file: &Path, images: Option<&Path>) -> Result<Vec<Prompt>> {
    let is_json = file.extension().is_some_and(|extension| extension == "json" || extension == "jsonl");
    if is_json {
        return from_questions(file, images);
    }
    let name = file.display().to_string();
    let text = String::from_utf8(read_small(file, MAX_TEXT_BYTES)?)
        .map_err(|error| Error::corrupt(&name, "text", error.to_string()))?;
    let lines: Vec<&str> =
        text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return Err(Error::corrupt(name, "text", "expected a prompt a line, found none"));
    }
    pair(&lines, images)
}

/// Without a file: the questions that the model in `folder` suggests for its sample pictures, or those questions about
/// the pictures in `images`; general ones if it suggests none.
pub fn offered(folder: &Path, manifest: &Manifest, images: Option<&Path>) -> Result<Vec<Prompt>> {
    let suggested: Vec<&str> = manifest.suggested_questions.iter().map(String::as_str).collect();
    if images.is_none() && !manifest.samples.is_empty() {
        let about = |sample: &llama3med::file::manifest::Sample| {
            let image = folder.join(&sample.path);
            let questions = sample.questions.iter().map(String::as_str).chain(suggested.iter().copied());
            questions
                .map(move |question| Prompt { image: Some(image.clone()), question: question.into() })
                .collect::<Vec<_>>()
        };
        let prompts: Vec<Prompt> = manifest.samples.iter().flat_map(about).collect();
        if !prompts.is_empty() {
            return Ok(prompts);
        }
    }
    pair(if suggested.is_empty() { &GENERAL } else { &suggested }, images)
}

fn from_questions(file: &Path, images: Option<&Path>) -> Result<Vec<Prompt>> {
    let set = QuestionSet::read(file)?;
    let Some(folder) = images else {
        return Err(Error::Invalid(format!("--images is missing: the questions of {} are about pictures", set.file)));
    };
    let prompt =
        |question| Ok(Prompt { image: Some(find_image(folder, &set, question)?), question: question.text.clone() });
    let mut prompts = set.questions.iter().map(prompt).collect::<Result<Vec<_>>>()?;
    prompts.sort_by(|a, b| a.image.cmp(&b.image));
    Ok(prompts)
}

fn pair(questions: &[&str], images: Option<&Path>) -> Result<Vec<Prompt>> {
    let Some(folder) = images else {
        return Ok(questions.iter().map(|&question| Prompt { image: None, question: question.into() }).collect());
    };
    let pictures = pictures_in(folder)?;
    let n = questions.len().max(pictures.len());
    let prompt = |i: usize| Prompt {
        image: Some(pictures[i % pictures.len()].clone()),
        question: questions[i % questions.len()].into(),
    };
    let mut prompts: Vec<Prompt> = (0..n).map(prompt).collect();
    prompts.sort_by(|a, b| a.image.cmp(&b.image));
    Ok(prompts)
}

/// The picture files of a folder, sorted by name. Each is decoded once, so that a broken one is found now and not after
/// an hour.
fn pictures_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|error| failed(folder, "open", error))?;
    let is_picture = |path: &PathBuf| {
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        path.is_file() && PICTURES.contains(&ending.as_str())
    };
    let pictures: BTreeSet<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_picture).collect();
    if pictures.is_empty() {
        let problem = format!("expected files ending in {}, found none", PICTURES.join(", "));
        return Err(Error::corrupt(folder.display().to_string(), "pictures", problem));
    }
    pictures.iter().try_for_each(|path| decode(path).map(drop))?;
    Ok(pictures.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("llama3med-prompts-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn lines_and_pictures_are_used_up() {
        let folder = folder("lines");
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/samples/chest.png");
        for name in ["b.png", "a.png"] {
            fs::copy(&sample, folder.join(name)).unwrap();
        }
        let file = folder.join("prompts.txt");
        fs::write(&file, "\u{feff}one\r\n\n  two \nthree").unwrap();
        let prompts = read(&file, Some(&folder)).unwrap();
        let shown: Vec<_> = prompts
            .iter()
            .map(|p| (p.image.as_ref().unwrap().file_name().unwrap().to_str().unwrap(), p.question.as_str()))
            .collect();
        assert_eq!(shown, [("a.png", "one"), ("a.png", "three"), ("b.png", "two")]);
        assert_eq!(read(&file, None).unwrap().len(), 3);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        let folder = folder("bad");
        let error = |bytes: &[u8], name: &str, images: Option<&Path>| {
            let file = folder.join(name);
            fs::write(&file, bytes).unwrap();
            read(&file, images).unwrap_err().to_string()
        };
        assert!(error(b" \n\n", "empty.txt", None).contains("text: expected a prompt a line, found none"));
        assert!(error(b"\xff\xfe", "latin.txt", None).contains("text: invalid utf-8"));
        assert!(
            error(b"[{\"question_id\":1,\"text\":\"x\",\"image\":\"x.png\"}]", "set.json", None)
                .contains("--images is missing")
        );
        assert!(error(b"x", "no_pictures.txt", Some(&folder)).contains("pictures: expected files ending in png"));
        assert!(error(b"x", "nowhere.txt", Some(Path::new("/nowhere"))).contains("/nowhere: cannot open"));
        fs::write(folder.join("broken.png"), b"x").unwrap();
        assert!(error(b"x", "broken.txt", Some(&folder)).contains("broken.png: "));
        fs::remove_dir_all(folder).unwrap();
    }
}
