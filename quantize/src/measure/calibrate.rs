//! Measures which columns of each matrix matter: an importance matrix in llama.cpp's sense, the mean square of each
//! column's input.
//!
//! The unquantized model answers prompts, with or without pictures, while the inputs of its matrices are observed, for
//! prompt and answer alike. Weights that meet large activations are then rounded more exactly, at the cost of others:
//! see [`crate::convert::encode::encode_for`].

use crate::convert::Understood;
use crate::convert::encode::Importance;
use crate::files::decode;
use crate::files::plan::Unwritten;
use crate::measure::prompts::{self, Prompt};
use crate::native::with_files;
use indicatif::{ProgressBar, ProgressStyle};
use llama3med::device::cpu::Cpu;
use llama3med::device::ranks::{Threads, block_on};
use llama3med::model::session::{AskOptions, Chat, Session};
use llama3med::spec::watch::{Place, Point, Watch};
use llama3med::{Error, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

/// Maximum number of tokens per answer.
const MAX_TOKENS: usize = 32;

/// Minimum weight of a column, relative to the mean: other prompts may use what these never touched.
const FLOOR: f32 = 1e-3;

/// What to calibrate on.
#[derive(Debug, Clone)]
pub struct Options {
    /// The prompts: a text file with one per line, or a question set.
    pub prompts: PathBuf,
    /// The folder of their pictures.
    pub images: Option<PathBuf>,
}

/// Sums of squares by column, and their number of rows.
type Squares = BTreeMap<Place, (usize, Vec<f64>)>;

/// Runs the unquantized model over the prompts, on one rank, which sees whole rows.
pub fn calibrate(understood: &Understood, options: &Options) -> Result<Importance> {
    let prompts = prompts::read(&options.prompts, options.images.as_deref())?;
    let files = understood.exact_plans()?.map(Unwritten::from);
    let squares = with_files(files.bytes(), 1, None, None, |session| {
        let squares = Rc::new(RefCell::new(Squares::new()));
        let seen = squares.clone();
        session.watch(Watch::new(move |place, n_tokens, value| {
            if place.point != Point::Residual && n_tokens > 0 {
                add(&mut seen.borrow_mut(), place, n_tokens, value);
            }
        }));
        block_on(answer(session, &prompts))?;
        Ok(squares.take())
    })?;
    let (tensors, mut columns) = (understood.tensors(), BTreeMap::new());
    for (place, (n_rows, sums)) in squares {
        let weights = weights(n_rows, &sums).ok_or_else(|| {
            let problem = "the matrix's inputs are all zero, or not finite: its columns cannot be weighted";
            Error::corrupt(options.prompts.display().to_string(), format!("{place:?}"), problem)
        })?;
        let matrices = tensors.iter().filter(|(_, tensor)| tensor.input == Some(place));
        columns.extend(matrices.map(|(_, tensor)| (tensor.name.clone(), weights.clone())));
    }
    Ok(Importance { columns })
}

async fn answer(session: &mut Session<Cpu<Threads>>, prompts: &[Prompt]) -> Result<()> {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta} left");
    let bar = ProgressBar::new(prompts.len() as u64).with_style(style.expect("the template is a constant"));
    bar.set_message("calibrating");
    bar.tick();
    let options = AskOptions { max_tokens: MAX_TOKENS, stop_repetition: false, ..AskOptions::default() };
    for group in prompts.chunk_by(|a, b| a.image == b.image) {
        let mut chat = Chat::default();
        if let Some(path) = &group[0].image {
            chat = Chat::about(session.look(&decode(path)?, &mut ()).await?.key);
        }
        for prompt in group {
            session.ask(&mut chat.clone(), &prompt.question, &options, &mut ()).await?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn add(squares: &mut Squares, place: Place, n_tokens: usize, value: &[f32]) {
    let n_cols = value.len() / n_tokens;
    let (n_rows, sums) = squares.entry(place).or_insert_with(|| (0, vec![0.0; n_cols]));
    *n_rows += n_tokens;
    for row in value.chunks_exact(n_cols) {
        sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x as f64 * x as f64);
    }
}

/// Mean squares, relative to their mean.
fn weights(n_rows: usize, sums: &[f64]) -> Option<Vec<f32>> {
    let mean = sums.iter().sum::<f64>() / (n_rows * sums.len()) as f64;
    let weight = |sum: &f64| ((sum / n_rows as f64 / mean) as f32).max(FLOOR);
    (mean.is_finite() && mean > 0.0).then(|| sums.iter().map(weight).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use llama3med::spec::watch::Part;

    #[test]
    fn columns_count_by_their_mean_squares() {
        let place = Place { part: Part::Tower, layer: 3, point: Point::Mlp };
        let mut squares = Squares::new();
        add(&mut squares, place, 2, &[1.0, 0.0, 3.0, 2.0, 0.0, -1.0]);
        add(&mut squares, place, 1, &[1.0, 0.0, 1.0]);
        let (n_rows, sums) = &squares[&place];
        assert_eq!((*n_rows, sums.as_slice()), (3, [6.0, 0.0, 11.0].as_slice()));
        let weights = weights(*n_rows, sums).unwrap();
        let expected = [18.0 / 17.0, FLOOR, 33.0 / 17.0];
        assert!(weights.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{weights:?}");
        assert_eq!(super::weights(3, &[0.0; 3]), None);
        assert_eq!(super::weights(3, &[1.0, f64::NAN]), None);
    }
}
