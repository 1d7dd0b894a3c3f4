//! A checkpoint's chat template: its family's, or the texts between messages as its own Jinja template writes them.
//!
//! The Jinja template is run here, once, on a conversation of marked messages; the model file gets the texts between
//! them. A template that does more than put texts between messages is refused.

use crate::checkpoint::Checkpoint;
use crate::checkpoint::family::Family;
use llama3med::text::conversation::{LLAMA3_MED_SYSTEM, LLAMA3_TOKENS, Marks, Template};
use llama3med::text::tokenizer::Tokenizer;
use llama3med::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, context};
use serde_json::{Value, json};

/// Steps that a template may take; real ones need a few hundred per message.
const FUEL: u64 = 100_000;
/// The longest template accepted; real ones have a few kilobytes.
const MAX_TEMPLATE_BYTES: usize = 1 << 16;
/// Stack size for parsing a template: minijinja recurses over expressions, and every second byte of one may add a
/// level.
const STACK_BYTES: usize = 256 << 20;

/// System prompt of LLaVA's Llama-3 conversations, identical to Vicuna's.
const LLAVA_SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
    The assistant gives helpful, detailed, and polite answers to the user's questions.";

/// The template, given the tokenizer and the text of its file: the named one, or else the checkpoint's.
pub fn template(checkpoint: &Checkpoint, tokenizer: &Tokenizer, json: &str, named: Option<&str>) -> Result<Template> {
    let ends = ends(checkpoint, tokenizer, json);
    let asked_for = || Some("it was asked for".into());
    let (template, why) = match named.map(Template::named).transpose()? {
        Some(Template::Marks(marks)) => (Template::Marks(marks.with_tokens(&ends.begin, &ends.end)), asked_for()),
        Some(llama3) => (llama3, asked_for()),
        None => choose(checkpoint, tokenizer, &ends)?,
    };
    if let Some(why) = why {
        template.check(&checkpoint.tokenizer_name(), tokenizer, &why)?;
    }
    Ok(template)
}

/// A template, and why it was chosen; no reason if it is the checkpoint's own, which may write token names as text.
type Choice = (Template, Option<String>);

/// The template that configuration and tokenizer indicate.
fn choose(checkpoint: &Checkpoint, tokenizer: &Tokenizer, ends: &Ends) -> Result<Choice> {
    let is_llama3 = LLAMA3_TOKENS.iter().any(|token| tokenizer.find(token).is_some());
    let is_mistral = ["model_type", "text_config.model_type"]
        .iter()
        .any(|path| checkpoint.config.string(path).ok().flatten().is_some_and(|kind| kind.ends_with("mistral")));
    let llama3 = |system: &str| Template::Llama3 { system: system.into() };
    let is_chat_ml = ["<|im_start|>", "<|im_end|>"].iter().all(|token| tokenizer.find(token).is_some());
    let vicuna = || Template::Marks(Marks::vicuna());
    let (template, family) = match checkpoint.family {
        Family::Llama3Med if is_llama3 => (llama3(LLAMA3_MED_SYSTEM), "Llama3-Med"),
        Family::Llava if is_llama3 && !ends.is_added => (llama3(LLAVA_SYSTEM), "LLaVA on Llama-3"),
        // The beginning-of-text token is in the template's text, and the tokenizer adds another one.
        Family::Llava if is_llama3 => {
            let marks = llama3(LLAVA_SYSTEM).marks();
            let first = format!("<|begin_of_text|>{}", marks.first);
            (Template::Marks(Marks { first, ..marks }), "LLaVA on Llama-3")
        }
        // The tokenizer takes precedence over the family, which has no published model with ChatML.
        Family::Llama3Med | Family::Llava if is_chat_ml => return chat_ml(checkpoint, ends),
        Family::Llama3Med => (vicuna(), "Llama3-Med or TinyLLaVA without Llama-3's headers"),
        Family::Llava if is_mistral => (Template::Marks(Marks::mistral()), "LLaVA on Mistral"),
        Family::Llava => (vicuna(), "LLaVA on Llama-2"),
        Family::Transformers | Family::Language => match source(checkpoint)? {
            Some((file, source)) => {
                let marks = marks(&source, ends).map_err(|problem| Error::corrupt(file, "chat_template", problem))?;
                return Ok((Template::Marks(marks), None));
            }
            // A base model has the same tokens as its instruct model: they do not show what it was trained to answer.
            None if checkpoint.family == Family::Language => {
                let problem = "the form of conversations is not known: there is no chat_template.jinja, nor this key in tokenizer_config.json; name it with --template";
                return Err(Error::corrupt(checkpoint.folder.display().to_string(), "chat_template", problem));
            }
            None if is_llama3 => (llama3(""), "transformers' Llama-3 without a chat_template"),
            None if is_chat_ml => return chat_ml(checkpoint, ends),
            None => {
                let marks = Marks { first: "<s>USER: ".into(), ..Marks::vicuna() };
                (Template::Marks(marks), "transformers' LLaVA without a chat_template")
            }
        },
    };
    Ok((template, Some(format!("config.json and the tokenizer are of {family}"))))
}

/// ChatML as the checkpoint's own Jinja template writes it, with its system prompt, or plain ChatML if there is no
/// usable template.
fn chat_ml(checkpoint: &Checkpoint, ends: &Ends) -> Result<Choice> {
    if let Some((_, source)) = source(checkpoint)?
        && source.contains("<|im_start|>")
        && let Ok(marks) = marks(&source, ends)
    {
        return Ok((Template::Marks(marks), None));
    }
    let begin = if ends.is_added { &ends.begin } else { "" };
    let marks = Marks::chat_ml("").with_tokens(begin, &ends.end);
    Ok((Template::Marks(marks), Some("the tokenizer has <|im_start|>".into())))
}

/// Whether the tokenizer puts a token before every text.
fn adds_bos(json: &str) -> bool {
    let value: Value = serde_json::from_str(json).unwrap_or_default();
    let steps = value["post_processor"]["processors"].as_array().cloned();
    let steps = steps.unwrap_or_else(|| vec![value["post_processor"].clone()]);
    steps.iter().any(|step| step["single"][0].get("SpecialToken").is_some())
}

/// The beginning and end tokens that `tokenizer_config.json` names.
fn ends(checkpoint: &Checkpoint, tokenizer: &Tokenizer, json: &str) -> Ends {
    let config = checkpoint.tokenizer_config();
    let named = |key: &str| {
        let token = match &config.as_ref()?.value[key] {
            Value::String(token) => token.clone(),
            other => other["content"].as_str()?.to_owned(),
        };
        tokenizer.find(&token).map(|_| token)
    };
    let usual = |tokens: &[&str]| tokens.iter().find(|token| tokenizer.find(token).is_some()).map(|t| t.to_string());
    Ends {
        begin: named("bos_token").or_else(|| usual(&["<|begin_of_text|>", "<s>"])).unwrap_or_default(),
        is_added: adds_bos(json),
        end: named("eos_token").unwrap_or_else(|| "</s>".into()),
    }
}

/// A tokenizer's beginning and end tokens.
pub struct Ends {
    /// Name of the beginning-of-text token; empty if there is none.
    pub begin: String,
    /// Whether the tokenizer puts it before every text.
    pub is_added: bool,
    /// Name of the token that ends an answer.
    pub end: String,
}

/// The Jinja template and the file it is in; transformers has stored it in several places.
fn source(checkpoint: &Checkpoint) -> Result<Option<(&'static str, String)>> {
    if let Some(text) = checkpoint.text("chat_template.jinja", MAX_TEMPLATE_BYTES)? {
        return Ok(Some(("chat_template.jinja", text)));
    }
    for file in ["chat_template.json", "processor_config.json", "tokenizer_config.json"] {
        let Some(json) = checkpoint.json(file)? else { continue };
        match &json.value["chat_template"] {
            Value::Null => {}
            Value::String(text) if text.len() <= MAX_TEMPLATE_BYTES => return Ok(Some((file, text.clone()))),
            _ => {
                return Err(
                    json.error("chat_template", format!("expected a text of at most {MAX_TEMPLATE_BYTES} bytes"))
                );
            }
        }
    }
    Ok(None)
}

type Problem<T> = std::result::Result<T, String>;

const QUESTIONS: [&str; 3] = ["Question<1>", "Question<2>", "Question<3>"];
const ANSWERS: [&str; 2] = ["Answer<1>", "Answer<2>"];
const IMAGE: &str = "<image>";

/// The texts that a Jinja template puts between messages, or the reason why it cannot be used.
pub fn marks(source: &str, ends: &Ends) -> std::result::Result<Marks, String> {
    if source.len() > MAX_TEMPLATE_BYTES {
        return Err(format!("expected at most {MAX_TEMPLATE_BYTES} bytes, found {}", source.len()));
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || read(source, ends));
        let thread = thread.map_err(|error| format!("no thread to read it on: {error}"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// [`marks`] for a template that is not too long, on a large enough stack.
fn read(source: &str, ends: &Ends) -> Problem<Marks> {
    let two = run(source, 2, ends)?;
    let [first, answered, next, reply] = cut(&two, &[QUESTIONS[0], ANSWERS[0], QUESTIONS[1]])?[..] else {
        return Err("it does not write every message once and in order".into());
    };
    let Some((first, after_image)) = first.split_once(IMAGE) else {
        return Err("it does not put the image before the first question".into());
    };
    // The text that opens an answer may end in a space only if the answer follows.
    if answered.trim_end() != reply.trim_end() {
        return Err(format!("it opens finished answers by {answered:?}, new ones by {reply:?}"));
    }
    let three = run(source, 3, ends)?;
    let expected = [
        first,
        IMAGE,
        after_image,
        QUESTIONS[0],
        answered,
        ANSWERS[0],
        next,
        QUESTIONS[1],
        answered,
        ANSWERS[1],
        next,
        QUESTIONS[2],
        reply,
    ];
    if three != expected.concat() {
        return Err(format!("three turns are not written like two: {three:?}"));
    }
    let is_missing = ends.is_added && !first.starts_with(&ends.begin);
    Ok(Marks {
        first: format!("{}{first}", if is_missing { &ends.begin } else { "" }),
        after_image: after_image.into(),
        reply: reply.into(),
        next: next.into(),
    })
}

/// The texts between the words, each of which must occur once, in this order.
fn cut<'a>(text: &'a str, words: &[&str]) -> Problem<Vec<&'a str>> {
    let (mut parts, mut rest) = (Vec::new(), text);
    for word in words {
        let (part, after) = rest.split_once(word).ok_or_else(|| format!("it does not write {word:?}: {text:?}"))?;
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    Ok(parts)
}

/// A conversation of `n` questions, with an image in the first, as the template writes it. Processors' templates take
/// lists of contents; tokenizers' templates take texts.
fn run(source: &str, n: usize, ends: &Ends) -> Problem<String> {
    let mut env = Environment::new();
    // As transformers sets it.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(|error| message(&error))?);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |message: String| -> std::result::Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    let template = env.template_from_str(source).map_err(|error| message(&error))?;
    let mut failure = String::new();
    for is_list in [true, false] {
        let content = |text: &str, has_image: bool| match (is_list, has_image) {
            (true, true) => json!([{ "type": "image" }, { "type": "text", "text": text }]),
            (true, false) => json!([{ "type": "text", "text": text }]),
            (false, true) => json!(format!("{IMAGE}\n{text}")),
            (false, false) => json!(text),
        };
        let mut messages = Vec::new();
        for (i, question) in QUESTIONS.iter().enumerate().take(n) {
            messages.push(json!({ "role": "user", "content": content(question, i == 0) }));
            if i + 1 < n {
                messages.push(json!({ "role": "assistant", "content": content(ANSWERS[i], false) }));
            }
        }
        let messages = Serde(&messages);
        match template.render(
            context! { messages, add_generation_prompt => true, bos_token => ends.begin.as_str(), eos_token => ends.end.as_str() },
        ) {
            // A template for texts writes a list as a program literal.
            Ok(text) if text.contains(QUESTIONS[0]) && text.contains(IMAGE) => return Ok(text),
            Ok(text) if text.contains(QUESTIONS[0]) => failure = "it does not write the image".into(),
            Ok(_) => failure = "it does not write the first question".into(),
            Err(error) => failure = message(&error),
        }
    }
    Err(failure)
}

fn message(error: &minijinja::Error) -> String {
    let mut text: String = error.to_string().lines().next().unwrap_or_default().chars().take(200).collect();
    if let Some(line) = error.line() {
        text = format!("line {line}: {text}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(is_added: bool) -> Ends {
        Ends { begin: "<s>".into(), is_added, end: "</s>".into() }
    }

    #[test]
    fn texts_between_messages_are_found() {
        // llava-hf/llava-1.5-7b-hf
        let llava = "{% for message in messages %}{{ message['role'].upper() + ': ' }}{# images first #}\
            {% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}\
            {% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}\
            {% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";
        let expected = Marks {
            first: "<s>USER: ".into(),
            after_image: "\n".into(),
            reply: " ASSISTANT:".into(),
            next: " USER: ".into(),
        };
        assert_eq!(marks(llava, &ends(true)), Ok(expected.clone()));
        assert_eq!(marks(llava, &ends(false)), Ok(Marks { first: "USER: ".into(), ..expected }));
        // A tokenizer's template, with texts as contents, Llama-3's headers and its own beginning-of-text token.
        let llama3 = "{% set loop_messages = messages %}{% for message in loop_messages %}\
            {% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}\
            {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
            {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";
        let ends = Ends { begin: "<|begin_of_text|>".into(), is_added: true, end: "<|eot_id|>".into() };
        assert_eq!(marks(llama3, &ends), Ok(Template::Llama3 { system: String::new() }.marks()));
    }

    #[test]
    fn templates_that_do_more_are_refused() {
        let cases = [
            ("{% for m in messages %}", "line 1"),
            ("{{ raise_exception('no images here') }}", "no images here"),
            ("{{ strftime_now('%d') }}", "strftime_now"),
            ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", ""),
            ("{% for i in range(100000000) %}{% for j in range(100000000) %}x{% endfor %}{% endfor %}", ""),
            ("{% include 'self' %}", ""),
            ("hello", "does not write the first question"),
            (
                "{% for m in messages %}{{ m['content'] }}{% if loop.index0 == 3 %}!{% endif %}{% endfor %}",
                "three turns are not written like two",
            ),
            (
                "{% for m in messages %}{{ m['content'] | replace('<image>', '') }}{% endfor %}",
                "does not write the image",
            ),
            ("{{ messages[-1]['content'] }}", "does not write"),
        ];
        for (source, word) in cases {
            let problem = marks(source, &ends(false)).unwrap_err();
            assert!(problem.contains(word) && !problem.contains('\n'), "{source}: {problem}");
        }
    }
}
