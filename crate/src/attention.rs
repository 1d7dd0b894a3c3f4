//! Scaled dot-product attention, one function for encoder (full) and decoder (causal, grouped heads).
//!
//! Streams over the keys block by block with a running softmax (as in FlashAttention, arXiv 2205.14135): no (queries x keys) matrix is kept. Many
//! queries meet a block of keys as a small matrix product, for which the keys are transposed once; few take the keys as they lie. Query heads that read
//! the same key/value head are rows of the same product.

use crate::kernels::fetch;
use crate::kernels::float::{dots, exp, panel_products, sum, vectorized};

/// Keys and values of consecutive positions.
#[derive(Clone, Copy)]
pub struct Page<'a> {
    /// Keys, rotated already where rotation applies.
    pub k: &'a [f32],
    /// Values, in the same order.
    pub v: &'a [f32],
    /// How many positions.
    pub n_positions: usize,
    /// From a position of a head to its next.
    pub row: usize,
    /// From a head to the next of the same position.
    pub head: usize,
}

impl<'a> Page<'a> {
    /// Of `k` and `v` (n_positions, kv_dim), heads side by side in a row.
    pub fn of_rows(k: &'a [f32], v: &'a [f32], heads: &Heads) -> Self {
        let row = heads.n_kv_heads * heads.head_dim;
        Self { k, v, n_positions: k.len() / row.max(1), row, head: heads.head_dim }
    }
}

/// The shape of one attention.
#[derive(Debug, Clone)]
pub struct Heads {
    /// Width of a head.
    pub head_dim: usize,
    /// For every query head of this rank, the key/value head that it reads, counted in this rank's rows of [`Page`].
    pub kv_head: Vec<usize>,
    /// Key/value heads of this rank: kv_dim / head_dim.
    pub n_kv_heads: usize,
}

/// Keys of a block.
const KEYS: usize = 64;

/// Rows that meet a block at a time.
const ROWS: usize = 4;

/// From so many rows on, transposing the keys pays.
const MANY_ROWS: usize = 12;

vectorized! {
    /// `out` (n_queries, n_heads * head_dim) = softmax(q k^T / sqrt(head_dim)) v.
    ///
    /// With `first_pos`, query i stands at position first_pos + i and sees the keys up to its own position; without, it sees all.
    pub fn attend(q: &[f32], pages: &[Page], heads: &Heads, first_pos: Option<usize>, out: &mut [f32]) {
        attend_heads(q, pages, heads, first_pos, out)
    }
}

#[inline(always)]
fn attend_heads(q: &[f32], pages: &[Page], heads: &Heads, first_pos: Option<usize>, out: &mut [f32]) {
    out.fill(0.0);
    let head_dim = heads.head_dim;
    let mut scratch = Scratch::new(head_dim);
    for kv_head in 0..heads.n_kv_heads {
        let mut rows = Row::all(q, heads, kv_head);
        let mut first_key = 0;
        for page in pages {
            for first in (0..page.n_positions).step_by(KEYS) {
                let block = Block::new(page, kv_head, first, head_dim);
                let visible = |row: &Row| match first_pos {
                    Some(first) => (first + row.query + 1).saturating_sub(first_key).min(block.n_keys),
                    None => block.n_keys,
                };
                scratch.meet(q, &mut rows, &block, visible, out);
                first_key += block.n_keys;
            }
        }
        for row in &rows {
            out[row.at..row.at + head_dim].iter_mut().for_each(|out| *out /= row.sum);
        }
    }
}

/// One query of one head: where it stands in `q` and `out`, and its running softmax.
#[derive(Clone, Copy)]
struct Row {
    query: usize,
    at: usize,
    max: f32,
    sum: f32,
}

impl Row {
    /// The rows that read `kv_head`, query by query.
    fn all(q: &[f32], heads: &Heads, kv_head: usize) -> Vec<Self> {
        let dim = heads.kv_head.len() * heads.head_dim;
        let mut rows = Vec::new();
        for query in 0..q.len() / dim {
            let mine = heads.kv_head.iter().enumerate().filter(|(_, reads)| **reads == kv_head);
            rows.extend(mine.map(|(head, _)| {
                let at = query * dim + head * heads.head_dim;
                Self { query, at, max: f32::MIN, sum: 0.0 }
            }));
        }
        rows
    }

    /// Turns scores into weights relative to the running maximum; gives the factor by which what was added up before shrinks.
    #[inline(always)]
    fn soften(&mut self, scores: &mut [f32], scale: f32) -> f32 {
        let mut max = self.max;
        for score in scores.iter_mut() {
            *score *= scale;
            max = if *score > max { *score } else { max };
        }
        let shrink = exp(self.max - max);
        scores.iter_mut().for_each(|score| *score = exp(*score - max));
        self.sum = self.sum * shrink + sum(scores, |weight| weight);
        self.max = max;
        shrink
    }
}

/// Up to [`KEYS`] keys and values of one head, `row` apart.
struct Block<'a> {
    k: &'a [f32],
    v: &'a [f32],
    row: usize,
    n_keys: usize,
    head_dim: usize,
}

impl<'a> Block<'a> {
    /// From position `first` of a page on.
    fn new(page: &Page<'a>, kv_head: usize, first: usize, head_dim: usize) -> Self {
        let n_keys = KEYS.min(page.n_positions - first);
        let from = kv_head * page.head + first * page.row;
        let range = from..from + (n_keys - 1) * page.row + head_dim;
        Self { k: &page.k[range.clone()], v: &page.v[range], row: page.row, n_keys, head_dim }
    }

    /// Nothing lies between the rows.
    fn is_dense(&self) -> bool {
        self.row == self.head_dim
    }
}

/// Buffers of one call.
struct Scratch {
    /// (head_dim, KEYS): the keys of a block, transposed.
    keys: Vec<f32>,
    /// (KEYS, padded): its values side by side; `padded` is head_dim rounded up to whole panels.
    values: Vec<f32>,
    padded: usize,
    scores: [[f32; KEYS]; ROWS],
}

impl Scratch {
    fn new(head_dim: usize) -> Self {
        let padded = head_dim.next_multiple_of(8);
        let (keys, values) = (vec![0.0; head_dim * KEYS], vec![0.0; padded * KEYS]);
        Self { keys, values, padded, scores: [[0.0; KEYS]; ROWS] }
    }

    /// Whether values are used side by side in `values`: rows that lie far apart compete for the same lines of the processor's cache, and the last panel must
    /// be whole.
    fn copies_values(&self, block: &Block) -> bool {
        !block.is_dense() || self.padded > block.head_dim
    }

    /// All rows with a block, in fours, as products of small matrices.
    #[inline(always)]
    fn meet(&mut self, q: &[f32], rows: &mut [Row], block: &Block, visible: impl Fn(&Row) -> usize, out: &mut [f32]) {
        let is_transposed = rows.len() >= MANY_ROWS;
        if is_transposed {
            for (key, k) in block.k.chunks(block.row).enumerate() {
                for (column, k) in self.keys.chunks_exact_mut(KEYS).zip(&k[..block.head_dim]) {
                    column[key] = *k;
                }
            }
        } else if block.is_dense() {
            // Few rows do little with what they read: they would wait for it line by line.
            [block.k, block.v].map(bytemuck::cast_slice).into_iter().for_each(fetch);
        }
        if self.copies_values(block) {
            for (values, v) in self.values.chunks_exact_mut(self.padded).zip(block.v.chunks(block.row)) {
                values[..block.head_dim].copy_from_slice(&v[..block.head_dim]);
            }
        }
        for rows in rows.chunks_mut(ROWS) {
            match rows.len() {
                1 => self.meet_rows::<1>(q, rows, block, is_transposed, &visible, out),
                _ => self.meet_rows::<ROWS>(q, rows, block, is_transposed, &visible, out),
            }
        }
    }

    /// Up to `R` rows.
    #[inline(always)]
    fn meet_rows<const R: usize>(
        &mut self,
        q: &[f32],
        rows: &mut [Row],
        block: &Block,
        is_transposed: bool,
        visible: impl Fn(&Row) -> usize,
        out: &mut [f32],
    ) {
        let Block { k, v, row, head_dim, .. } = *block;
        let n_visible: [usize; R] = std::array::from_fn(|i| rows.get(i).map_or(0, &visible));
        let n = n_visible.into_iter().max().unwrap_or(0);
        if n == 0 {
            return;
        }
        // Rows that are missing in the last four repeat the first.
        let at: [usize; R] = std::array::from_fn(|i| rows.get(i).unwrap_or(&rows[0]).at);
        let queries = at.map(|at| &q[at..at + head_dim]);
        if is_transposed {
            for first in (0..n).step_by(8) {
                let products = panel_products(&self.keys[first..], KEYS, &queries);
                for (scores, products) in self.scores.iter_mut().zip(&products) {
                    scores[first..first + 8].copy_from_slice(products);
                }
            }
        } else {
            for (key, k) in k.chunks(row).take(n).enumerate() {
                let products = dots(&k[..head_dim], &queries);
                (0..R).for_each(|i| self.scores[i][key] = products[i]);
            }
        }
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut shrink = [1.0; R];
        for (i, row) in rows.iter_mut().enumerate() {
            let (seen, hidden) = self.scores[i].split_at_mut(n_visible[i]);
            shrink[i] = if seen.is_empty() { 1.0 } else { row.soften(seen, scale) };
            hidden.fill(0.0);
        }
        let weights: [&[f32]; R] = std::array::from_fn(|i| &self.scores[i][..n]);
        let (values, stride) = if self.copies_values(block) { (&self.values[..], self.padded) } else { (v, row) };
        for dim in (0..head_dim).step_by(8) {
            let width = 8.min(head_dim - dim);
            let products = panel_products(&values[dim..], stride, &weights);
            for i in 0..rows.len() {
                let out = &mut out[at[i] + dim..][..width];
                out.iter_mut().zip(&products[i]).for_each(|(out, more)| *out = *out * shrink[i] + more);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula, in f64, all keys at once.
    fn plain(q: &[f32], k: &[f32], v: &[f32], heads: &Heads, first_pos: Option<usize>) -> Vec<f32> {
        let head_dim = heads.head_dim;
        let (dim, kv_dim) = (heads.kv_head.len() * head_dim, heads.n_kv_heads * head_dim);
        let mut out = Vec::new();
        for (query, q) in q.chunks_exact(dim).enumerate() {
            let n = first_pos.map_or(usize::MAX, |first| first + query + 1);
            for (q, kv_head) in q.chunks_exact(head_dim).zip(&heads.kv_head) {
                let head = kv_head * head_dim..(kv_head + 1) * head_dim;
                let score = |k: &[f32]| q.iter().zip(k).map(|(q, k)| *q as f64 * *k as f64).sum::<f64>();
                let scores = k.chunks_exact(kv_dim).take(n).map(|k| score(&k[head.clone()]) / (head_dim as f64).sqrt());
                let weights: Vec<f64> = scores.map(f64::exp).collect();
                let total: f64 = weights.iter().sum();
                for d in head {
                    let terms = weights.iter().zip(v.chunks_exact(kv_dim)).map(|(weight, v)| weight * v[d] as f64);
                    out.push((terms.sum::<f64>() / total) as f32);
                }
            }
        }
        out
    }

    #[test]
    fn equals_the_formula_for_all_shapes() {
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 250.0 - 2.0;
        for (head_dim, kv_head, n_kv_heads) in [
            (8, vec![0], 1),
            (5, vec![0, 0, 1], 2),
            (64, vec![0, 0, 0, 0], 1),
            (33, vec![1, 0], 2),
            (72, vec![0, 1, 1], 2),
        ] {
            let heads = Heads { head_dim, kv_head, n_kv_heads };
            let (dim, kv_dim) = (heads.kv_head.len() * head_dim, n_kv_heads * head_dim);
            for (n_queries, n_keys) in [(1, 1), (1, 200), (3, 65), (16, 16), (17, 130), (40, 64)] {
                let q: Vec<f32> = (0..n_queries * dim).map(value).collect();
                let k: Vec<f32> = (0..n_keys * kv_dim).map(|i| value(3 * i + 1)).collect();
                let v: Vec<f32> = (0..n_keys * kv_dim).map(|i| value(5 * i + 2)).collect();
                for page_len in [64, 1000] {
                    let chunks = k.chunks(page_len * kv_dim).zip(v.chunks(page_len * kv_dim));
                    let pages: Vec<Page> = chunks.map(|(k, v)| Page::of_rows(k, v, &heads)).collect();
                    for first_pos in [None, n_keys.checked_sub(n_queries)] {
                        let mut out = vec![f32::NAN; n_queries * dim];
                        attend(&q, &pages, &heads, first_pos, &mut out);
                        let expected = plain(&q, &k, &v, &heads, first_pos);
                        for (out, expected) in out.iter().zip(&expected) {
                            assert!((out - expected).abs() < 4e-6, "{heads:?} {n_queries} {n_keys}: {out} {expected}");
                        }
                    }
                }
            }
        }
    }
}
