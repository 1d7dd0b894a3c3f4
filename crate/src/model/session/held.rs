//! Tokens of an answer on their way to the listener: text that could begin a stop text is held back until this is
//! decided.

use crate::model::Token;
use std::collections::VecDeque;

/// The tokens held back, and their text.
pub(super) struct Held<'a> {
    stops: &'a [String],
    tokens: VecDeque<Token>,
    text: String,
    /// Tokens are released up to this byte of the text.
    n_certain: usize,
    /// A stop text has occurred: no token is to follow.
    is_stopped: bool,
}

impl<'a> Held<'a> {
    pub fn new(stops: &'a [String]) -> Self {
        Self { stops, tokens: VecDeque::new(), text: String::new(), n_certain: 0, is_stopped: false }
    }

    /// Takes the next token; returns whether a stop text has occurred.
    pub fn push(&mut self, token: Token) -> bool {
        self.text.push_str(&token.text);
        self.tokens.push_back(token);
        let first = self.stops.iter().filter_map(|stop| self.text.find(stop)).min();
        self.is_stopped = first.is_some();
        self.n_certain = first.unwrap_or(self.text.len() - self.n_pending());
        self.is_stopped
    }

    /// Bytes at the end of the text with which a stop text may begin.
    fn n_pending(&self) -> usize {
        let begins = |stop: &String, n: usize| stop.is_char_boundary(n) && self.text.ends_with(&stop[..n]);
        let longest = |stop: &String| (1..stop.len()).rev().find(|&n| begins(stop, n)).unwrap_or(0);
        self.stops.iter().map(longest).max().unwrap_or(0)
    }

    /// The next token that certainly belongs to the answer.
    pub fn release(&mut self) -> Option<Token> {
        let n_bytes = self.tokens.front()?.text.len();
        // A token without text just before a stop text may have begun that text's first character.
        let is_certain = n_bytes < self.n_certain || n_bytes == self.n_certain && (n_bytes > 0 || self.text.is_empty());
        if !is_certain {
            return None;
        }
        self.n_certain -= n_bytes;
        self.text.drain(..n_bytes);
        self.tokens.pop_front()
    }

    /// No more tokens follow, so the rest is certain, too. After a stop text, returns the part of the answer in the
    /// token in which the stop text began.
    pub fn end(&mut self) -> String {
        if self.is_stopped {
            self.text.truncate(self.n_certain);
            return std::mem::take(&mut self.text);
        }
        self.n_certain = self.text.len();
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens that are released after each input token, the rest of the last token that belongs to the answer, and
    /// whether a stop text occurred.
    fn run(stops: &[&str], texts: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut held = Held::new(&stops);
        let (mut steps, mut is_stopped) = (Vec::new(), false);
        for (id, &text) in texts.iter().enumerate() {
            is_stopped = held.push(Token { id: id as u32, text: text.into(), logprob: 0.0, alternatives: Vec::new() });
            steps.push(std::iter::from_fn(|| held.release()).map(|token| token.text + "|").collect());
            if is_stopped {
                break;
            }
        }
        let rest = held.end();
        if !is_stopped {
            steps.push(std::iter::from_fn(|| held.release()).map(|token| token.text + "|").collect());
        }
        (steps, rest, is_stopped)
    }

    #[test]
    fn tokens_pass_at_once_where_nothing_stops() {
        assert_eq!(run(&[], &["a", "", "b"]).0, ["a|", "|", "b|", ""]);
        assert_eq!(run(&["xyz"], &["a", "", "b"]).0, ["a|", "|", "b|", ""]);
    }

    #[test]
    fn a_stop_text_is_found_inside_and_across_tokens() {
        assert_eq!(run(&["END"], &["a", "bEN", "D", "c"]), (vec!["a|".into(), "".into(), "".into()], "b".into(), true));
        assert_eq!(run(&["END"], &["a", "EN", "", "DING"]).0, ["a|", "", "", ""]);
        assert_eq!(run(&["END", "b"], &["abEND"]), (vec!["".into()], "a".into(), true), "the first in the text counts");
        assert_eq!(run(&["\n\n"], &["a\n", "\nb"]), (vec!["".into(), "".into()], "a".into(), true));
        assert_eq!(run(&["é"], &["a", "", "é"]).0, ["a|", "|", ""]);
        assert_eq!(
            run(&["aab"], &["a", "a", "a", "b"]),
            (["", "", "a|", ""].map(String::from).to_vec(), String::new(), true)
        );
    }

    #[test]
    fn what_turns_out_to_be_none_is_let_go() {
        assert_eq!(run(&["END"], &["E", "N", "x", "EN"]).0, ["", "", "E|N|x|", "", "EN|"]);
        assert_eq!(run(&["éa"], &["é", "é", "", "b"]).0, ["", "é|", "", "é||b|", ""]);
    }
}
