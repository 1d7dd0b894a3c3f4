//! From text to tokens: the tokenizer, and conversations in the format that a model was trained on.

pub mod conversation;
pub mod keys;
pub mod tokenizer;
