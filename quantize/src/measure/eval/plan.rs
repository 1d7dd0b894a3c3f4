//! What is asked: each question's text, its picture, and the settings that its answer depends on.

use super::Options;
use crate::files::decode;
use crate::measure::questions::{AnswerType, Question, QuestionSet, find_image};
use llama3med::picture::Picture;
use llama3med::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::PathBuf;

/// Grey between black and white.
const GREY: u8 = 128;

/// One question as it is asked.
pub struct Asked {
    /// The question's id.
    pub id: Value,
    /// Its text.
    pub prompt: String,
    /// The picture that is shown, or why there is none.
    pub image: Result<PathBuf>,
    /// Which of the set's pictures it is.
    pub image_idx: usize,
    /// What the answer depends on, besides model and prompt.
    pub metadata: Map<String, Value>,
    file: String,
    place: String,
}

impl Asked {
    /// The picture, or a grey one of its size.
    pub fn picture(&self, is_blank: bool) -> Result<Picture> {
        let mut picture = decode(self.image.as_ref().map_err(Error::clone)?)?;
        if is_blank {
            picture.rgb.fill(GREY);
        }
        Ok(picture)
    }

    /// An engine error that concerns only this question: it is too long for the context.
    pub fn located(&self, error: Error) -> Error {
        match error {
            Error::ContextFull { .. } => Error::corrupt(&self.file, &self.place, error.to_string()),
            other => other,
        }
    }
}

/// The whole run.
pub struct Plan {
    /// Which model answers.
    pub model_id: String,
    /// "none", "blank" or "shuffle".
    pub control: &'static str,
    /// How many questions are asked.
    pub n_asked: usize,
    /// Every question of the file, so that answers to those beyond the limit are recognised too.
    pub all: Vec<Asked>,
}

impl Plan {
    /// Plans to ask the first questions of a set; checks whether their pictures exist, and fails if none does.
    pub fn new(options: &Options, set: &QuestionSet, model_id: &str) -> Result<Self> {
        let control = match (options.blank, options.shuffle) {
            (true, _) => "blank",
            (_, true) => "shuffle",
            _ => "none",
        };
        // Different pictures, in the order of their first questions.
        let mut images: Vec<&Question> = Vec::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        for question in &set.questions {
            places.entry(set.image(question)?).or_insert_with(|| {
                images.push(question);
                images.len() - 1
            });
        }
        if options.shuffle && images.len() < 2 {
            return Err(Error::corrupt(&set.file, "--shuffle", "expected two different pictures, found one"));
        }
        let shown = if options.shuffle { derangement(images.len()) } else { (0..images.len()).collect() };
        let n_asked = options.limit.unwrap_or(usize::MAX).min(set.questions.len());
        let mut all = Vec::new();
        for (question_idx, question) in set.questions.iter().enumerate() {
            let image_idx = shown[places[set.image(question)?]];
            let image = if question_idx < n_asked {
                find_image(&options.images, set, images[image_idx])
            } else {
                Ok(PathBuf::new())
            };
            let metadata = json!({
                "image": images[image_idx].image, "control": control, "max_tokens": options.max_tokens,
                "temperature": options.temperature, "top_p": options.top_p, "seed": options.seed,
            });
            let Value::Object(metadata) = metadata else { unreachable!("it is written as an object") };
            let (file, place) = (set.file.clone(), question.place.clone());
            let prompt = prompt(question, options.closed_suffix.as_deref());
            all.push(Asked { id: question.id.clone(), prompt, image, image_idx, metadata, file, place });
        }
        if let Some(Asked { image: Err(error), .. }) = all[..n_asked].iter().min_by_key(|asked| asked.image.is_err()) {
            return Err(error.clone());
        }
        Ok(Self { model_id: model_id.into(), control, n_asked, all })
    }

    /// Questions to ask, in file order.
    pub fn asked(&self) -> &[Asked] {
        &self.all[..self.n_asked]
    }

    /// Questions to ask, grouped by picture.
    pub fn in_order_of_work(&self) -> impl Iterator<Item = &Asked> {
        let mut asked: Vec<&Asked> = self.asked().iter().collect();
        asked.sort_by_key(|asked| asked.image_idx);
        asked.into_iter()
    }
}

fn prompt(question: &Question, closed_suffix: Option<&str>) -> String {
    let is_closed = matches!(question.answer_type, Some(AnswerType::Closed | AnswerType::YesNo));
    match closed_suffix.filter(|_| is_closed) {
        Some(suffix) => format!("{} {suffix}", question.text),
        None => question.text.clone(),
    }
}

/// Another index for each of `n`, always the same: one random cycle through all of them (Sattolo's algorithm).
fn derangement(n: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..n).collect();
    let mut state: u64 = 0x5eed;
    for last in (1..n).rev() {
        // Knuth's linear congruential generator; its upper half is good enough for shuffling.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        places.swap(last, (state >> 33) as usize % last);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::derangement;

    #[test]
    fn every_picture_gets_another() {
        for n in 2..50 {
            let mut places = derangement(n);
            assert!(places.iter().enumerate().all(|(from, &to)| from != to), "{n}");
            places.sort();
            assert_eq!(places, (0..n).collect::<Vec<_>>());
        }
    }
}
