//! Scores one answer against the true one: by the published definitions with all their quirks, and by strict ones.
//!
//! Texts come from `protocol`, which also aggregates the results. Follows `eval_metrics/` of Llama3-Med, which is
//! LLaVA-Med's, and nltk's `sentence_bleu`. A quirk belongs to the definition: published numbers include it.
//! tests/golden/metrics.py writes the expected values.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

/// Punctuation that is deleted or replaced by a space, in this order.
const PUNCTUATION: [char; 21] =
    [';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!'];

/// `period_strip.sub("", text, re.UNICODE)`: the flag is passed as the count of replacements, and its value is 32.
const MAX_PERIODS: usize = 32;

const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];

/// Words that get apostrophes in regular places: `word|word with them`. Entries with capitals are left out, since words
/// arrive in lower case.
const WITHOUT_APOSTROPHES: &str = "aint|ain't arent|aren't cant|can't couldve|could've couldnt|couldn't couldn'tve|couldn't've \
    couldnt've|couldn't've didnt|didn't doesnt|doesn't dont|don't hadnt|hadn't hadnt've|hadn't've hadn'tve|hadn't've \
    hasnt|hasn't havent|haven't hed|he'd hed've|he'd've he'dve|he'd've hes|he's howd|how'd howll|how'll hows|how's \
    isnt|isn't itd|it'd itd've|it'd've it'dve|it'd've itll|it'll maam|ma'am mightnt|mightn't mightnt've|mightn't've \
    mightn'tve|mightn't've mightve|might've mustnt|mustn't mustve|must've neednt|needn't notve|not've oclock|o'clock \
    oughtnt|oughtn't ow's'at|'ow's'at 'ows'at|'ow's'at 'ow'sat|'ow's'at shant|shan't shed've|she'd've she'dve|she'd've \
    shouldve|should've shouldnt|shouldn't shouldnt've|shouldn't've shouldn'tve|shouldn't've somebody'd|somebodyd \
    somebodyd've|somebody'd've somebody'dve|somebody'd've somebodyll|somebody'll somebodys|somebody's someoned|someone'd \
    someoned've|someone'd've someone'dve|someone'd've someonell|someone'll someones|someone's somethingd|something'd \
    somethingd've|something'd've something'dve|something'd've somethingll|something'll thats|that's thered|there'd \
    thered've|there'd've there'dve|there'd've therere|there're theres|there's theyd|they'd theyd've|they'd've \
    they'dve|they'd've theyll|they'll theyre|they're theyve|they've twas|'twas wasnt|wasn't wed've|we'd've we'dve|we'd've \
    weve|we've werent|weren't whatll|what'll whatre|what're whats|what's whatve|what've whens|when's whered|where'd \
    wheres|where's whereve|where've whod|who'd whod've|who'd've who'dve|who'd've wholl|who'll whos|who's whove|who've \
    whyll|why'll whyre|why're whys|why's wont|won't wouldve|would've wouldnt|wouldn't wouldnt've|wouldn't've \
    wouldn'tve|wouldn't've yall|y'all yall'll|y'all'll y'allll|y'all'll yall'd've|y'all'd've y'alld've|y'all'd've \
    y'all'dve|y'all'd've youd|you'd youd've|you'd've you'dve|you'd've youll|you'll youre|you're youve|you've";

static CONTRACTIONS: LazyLock<HashMap<&str, &str>> =
    LazyLock::new(|| WITHOUT_APOSTROPHES.split(' ').filter_map(|pair| pair.split_once('|')).collect());

/// The zeros of Unicode's decimal digits, which Python's `\d` matches; nine more digits follow each.
const ZEROS: [u32; 76] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0,
    0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620,
    0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x10d40, 0x11066, 0x110f0, 0x11136,
    0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x116d0, 0x116da, 0x11730, 0x118e0, 0x11950, 0x11bf0,
    0x11c50, 0x11d50, 0x11da0, 0x11f50, 0x16130, 0x16a60, 0x16ac0, 0x16b50, 0x16d70, 0x1ccf0, 0x1d7ce, 0x1d7d8,
    0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e4f0, 0x1e5f1, 0x1e950, 0x1fbf0,
];

fn is_digit(c: char) -> bool {
    let place = ZEROS.partition_point(|&zero| zero <= c as u32);
    place > 0 && c as u32 - ZEROS[place - 1] < 10
}

/// Where Python's `split()` splits: white space, and four separators that Unicode's property does not include.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Words in lower case, as `text.lower().split()` gives them.
pub fn words(text: &str) -> Vec<String> {
    text.to_lowercase().split(is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The VQA challenge's answer normalisation: no punctuation, no articles, digits for number words, apostrophes in
/// contractions.
pub fn normalize_word(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    // If one such number occurs anywhere, all punctuation is deleted: "T2-weighted, 1,5 T" becomes "t2weighted 15 t".
    let has_number = chars.windows(3).any(|three| is_digit(three[0]) && three[1] == ',' && is_digit(three[2]));
    let mut cleaned = text.to_owned();
    for mark in PUNCTUATION {
        let is_beside_space = text.contains(&format!("{mark} ")) || text.contains(&format!(" {mark}"));
        cleaned = cleaned.replace(mark, if is_beside_space || has_number { "" } else { " " });
    }
    let mut kept = Vec::new();
    for word in words(&strip_periods(&cleaned)) {
        let number = NUMBERS.iter().find(|(name, _)| *name == word).map(|(_, digits)| *digits);
        let word = number.unwrap_or(&word);
        if !["a", "an", "the"].contains(&word) {
            kept.push(CONTRACTIONS.get(word).copied().unwrap_or(word).to_owned());
        }
    }
    kept.join(" ")
}

/// Deletes periods that are not followed by a digit. The intention was to check for a preceding digit too; a typo in
/// the pattern prevents it.
fn strip_periods(text: &str) -> String {
    let (mut n_stripped, mut chars, mut kept) = (0, text.chars().peekable(), String::new());
    while let Some(c) = chars.next() {
        let is_stripped = c == '.' && n_stripped < MAX_PERIODS && !chars.peek().copied().is_some_and(is_digit);
        n_stripped += is_stripped as usize;
        if !is_stripped {
            kept.push(c);
        }
    }
    kept
}

fn counts(words: &[String]) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for word in words {
        *counts.entry(word.as_str()).or_insert(0) += 1;
    }
    counts
}

/// Shared words as fractions of the answer and of the truth.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overlap {
    /// Harmonic mean of the other two.
    pub f1: f64,
    /// Fraction of the answer.
    pub precision: f64,
    /// Fraction of the truth.
    pub recall: f64,
}

impl Overlap {
    fn new(precision: f64, recall: f64) -> Self {
        Self { f1: 2.0 * precision * recall / (precision + recall), precision, recall }
    }
}

/// Published "f1 score", "precision" and "recall"; the papers' "Open" is this recall. A word that the answer repeats
/// counts as a hit each time.
pub fn published_overlap(answer: &str, truth: &str) -> Overlap {
    let (answer, truth) = (words(&normalize_word(answer)), words(&normalize_word(truth)));
    let (in_answer, in_truth) = (counts(&answer), counts(&truth));
    let n_hits = answer.iter().filter(|word| in_truth.contains_key(word.as_str())).count();
    let n_missing = truth.iter().filter(|word| !in_answer.contains_key(word.as_str())).count();
    if n_hits == 0 {
        return Overlap::default();
    }
    Overlap::new(n_hits as f64 / answer.len() as f64, n_hits as f64 / (n_hits + n_missing) as f64)
}

/// Published "exact match score": the truth's distinct words that occur in the answer, divided by the number of words
/// in the answer.
pub fn published_exact_match(answer: &str, truth: &str) -> f64 {
    let (answer, truth) = (words(&normalize_word(answer)), words(&normalize_word(truth)));
    let (in_answer, in_truth) = (counts(&answer), counts(&truth));
    let n_found = in_truth.keys().filter(|word| in_answer.contains_key(*word)).count();
    if answer.is_empty() { 0.0 } else { n_found as f64 / answer.len() as f64 }
}

/// Candidate answers for published "open accuracy".
#[derive(Debug, Clone)]
pub struct Candidates {
    entries: Vec<(String, HashSet<String>)>,
}

impl Candidates {
    /// In this order: among equally near ones the first wins. Duplicates change nothing.
    pub fn new<'a>(answers: impl IntoIterator<Item = &'a str>) -> Self {
        let mut seen = HashSet::new();
        let normal = answers.into_iter().map(normalize_word).filter(|answer| seen.insert(answer.clone()));
        Self { entries: normal.map(|answer| (answer.clone(), words(&answer).into_iter().collect())).collect() }
    }

    /// Number of distinct candidates.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the truth is the candidate with the largest overlap as a fraction of the candidate. A short candidate
    /// beats a longer correct one.
    pub fn published_hit(&self, answer: &str, truth: &str) -> bool {
        let answer: HashSet<String> = words(&normalize_word(answer)).into_iter().collect();
        let mut best: Option<(&str, f64)> = None;
        for (candidate, its_words) in &self.entries {
            let n_shared = its_words.intersection(&answer).count();
            let part = if its_words.is_empty() { 0.0 } else { n_shared as f64 / its_words.len() as f64 };
            if best.is_none_or(|(_, largest)| part > largest) {
                best = Some((candidate, part));
            }
        }
        best.is_some_and(|(candidate, _)| candidate == normalize_word(truth))
    }
}

/// Weights of 1- to 4-grams for the four published BLEU scores; the last three use one order only.
pub const BLEU_WEIGHTS: [[f64; 4]; 4] = [[0.25; 4], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];

/// nltk's `sentence_bleu` for one reference. Without smoothing, a precision of 0 becomes the smallest normal number, so
/// that the score is nearly 0; with smoothing (its method1), a tenth of a hit.
pub fn bleu(answer: &[String], truth: &[String], weights: &[f64; 4], is_smoothed: bool) -> f64 {
    let mut log_sum = 0.0;
    for (n, weight) in (1..).zip(weights) {
        let mut left: HashMap<&[String], usize> = HashMap::new();
        truth.windows(n).for_each(|gram| *left.entry(gram).or_insert(0) += 1);
        let is_hit = |gram: &&[String]| match left.get_mut(*gram) {
            Some(n_left) if *n_left > 0 => {
                *n_left -= 1;
                true
            }
            _ => false,
        };
        let n_hits = answer.windows(n).filter(is_hit).count();
        if n == 1 && n_hits == 0 {
            return 0.0;
        }
        let n_grams = answer.windows(n).len().max(1) as f64;
        let precision = match n_hits {
            0 if is_smoothed => 0.1 / n_grams,
            0 => f64::MIN_POSITIVE,
            _ => n_hits as f64 / n_grams,
        };
        log_sum += weight * precision.ln();
    }
    let ratio = truth.len() as f64 / answer.len() as f64;
    let brevity_penalty = if ratio < 1.0 { 1.0 } else { (1.0 - ratio).exp() };
    brevity_penalty * log_sum.exp()
}

/// Published rule for closed questions, on normalised texts: "normal", "know" and "not" count as "no", and "yes and no"
/// matches either truth.
pub fn published_closed_hit(answer: &str, truth: &str) -> bool {
    says_yes_or_no(answer) && answer.contains(truth)
}

/// Whether the published rule finds "yes" or "no" anywhere, even inside words.
pub fn says_yes_or_no(answer: &str) -> bool {
    answer.contains("yes") || answer.contains("no")
}

/// Whether both texts are equal after normalisation. If nothing is left of either ("A" is an article), they are
/// compared unchanged.
pub fn is_exact(answer: &str, truth: &str) -> bool {
    let (clean, clean_truth) = (normalize_word(answer), normalize_word(truth));
    clean == clean_truth && (!clean.is_empty() || answer.trim().to_lowercase() == truth.trim().to_lowercase())
}

/// "yes" or "no" if the text is this word alone, as in the truth of most closed questions.
pub fn yes_or_no(truth: &str) -> Option<&'static str> {
    let clean = normalize_word(truth);
    ["yes", "no"].into_iter().find(|word| clean == *word)
}

/// Whether a closed question is answered correctly: for a truth of yes or no by the whole first word, otherwise
/// exactly.
pub fn is_closed_hit(answer: &str, truth: &str) -> bool {
    let Some(word) = yes_or_no(truth) else { return is_exact(answer, truth) };
    let answer = answer.to_lowercase();
    answer.split(|c: char| !c.is_alphanumeric()).find(|part| !part.is_empty()) == Some(word)
}

/// Shared words, where each word of the truth can be matched once.
pub fn overlap(answer: &str, truth: &str) -> Overlap {
    let (answer, truth) = (words(&normalize_word(answer)), words(&normalize_word(truth)));
    let in_truth = counts(&truth);
    let n_hits: usize = counts(&answer).iter().map(|(word, &n)| n.min(in_truth.get(word).copied().unwrap_or(0))).sum();
    if n_hits == 0 {
        return Overlap::default();
    }
    Overlap::new(n_hits as f64 / answer.len() as f64, n_hits as f64 / truth.len() as f64)
}

/// The 97.5th percentile of the normal distribution.
const Z: f64 = 1.959963984540054;

/// Wilson's 95 % interval of a rate, `n > 0`. Questions are treated as independent, though several are about one
/// picture.
pub fn wilson(n_hits: usize, n: usize) -> [f64; 2] {
    let (n, rate) = (n as f64, n_hits as f64 / n as f64);
    let center = rate + Z * Z / (2.0 * n);
    let half = Z * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt();
    [center - half, center + half].map(|end| (end / (1.0 + Z * Z / n)).clamp(0.0, 1.0))
}

/// The 95 % interval of a mean of numbers from 0 to 1, by its standard error; `None` for fewer than two.
pub fn mean_interval(values: &[f64]) -> Option<[f64; 2]> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = Z * (variance / n).sqrt();
    (values.len() > 1).then(|| [mean - half, mean + half].map(|end| end.clamp(0.0, 1.0)))
}
