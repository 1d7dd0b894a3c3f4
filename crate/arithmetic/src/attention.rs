//! Scaled dot-product attention, one function for encoder (full) and decoder (causal, grouped heads).
//!
//! Streams over the keys block by block with a running softmax (as in FlashAttention, arXiv 2205.14135): no (queries x
//! keys) matrix is kept. For many queries, each block of keys is decoded and transposed once, and multiplied as a small
//! matrix product. For few queries, a cache's integers are used as stored, and the sums are multiplied by the scales.
//! Query heads that share a key/value head are rows of the same product.

use crate::kernels::fetch;
use crate::kernels::float::{dots, exp, panel_products, sum, vectorized};

/// Keys and values of consecutive positions.
#[derive(Clone, Copy)]
pub struct Page<'a> {
    /// Keys, already rotated where rotation applies.
    pub k: Rows<'a>,
    /// Values.
    pub v: Rows<'a>,
    /// Number of positions.
    pub n_positions: usize,
}

/// Keys or values, in one of two forms.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// In f32.
    Floats {
        /// Rows of head_dim values.
        values: &'a [f32],
        /// Distance from one position of a head to the next.
        row: usize,
        /// Distance from one head to the next at the same position.
        head: usize,
    },
    /// As a cache keeps them: each head is contiguous, and each position of a head has a scale.
    Ints {
        /// (n_kv_heads, positions of a whole page, head_dim)
        ints: &'a [i16],
        /// (n_kv_heads, positions of a whole page)
        scales: &'a [f32],
    },
}

impl<'a> Page<'a> {
    /// From `k` and `v` (n_positions, n_kv_heads * head_dim).
    pub fn of_rows(k: &'a [f32], v: &'a [f32], heads: &Heads) -> Self {
        let row = heads.n_kv_heads * heads.head_dim;
        let n_positions = k.len() / row.max(1);
        let [k, v] = [k, v].map(|values| Rows::Floats { values, row, head: heads.head_dim });
        Self { k, v, n_positions }
    }
}

/// The shape of one attention.
#[derive(Debug, Clone)]
pub struct Heads {
    /// Width of a head.
    pub head_dim: usize,
    /// For every query head of this rank, the key/value head that it reads, as an index into this rank's rows of
    /// [`Page`].
    pub kv_head: Vec<usize>,
    /// Key/value heads of this rank: kv_dim / head_dim.
    pub n_kv_heads: usize,
}

/// Keys per block.
const KEYS: usize = 64;

/// Rows multiplied with a block at a time.
const ROWS: usize = 4;

/// From this many queries on, decoding a block and transposing its keys pays off. (Queries, not rows: the number of
/// heads on a rank must not change a bit.)
const MANY_QUERIES: usize = 4;

vectorized! {
    /// `out` (n_queries, n_heads * head_dim) = softmax(q k^T / sqrt(head_dim)) v.
    ///
    /// With `first_pos`, query i is at position first_pos + i and sees the keys up to its own position; without it,
    /// every query sees all keys.
    #[inline(never)]
    pub fn attend(q: &[f32], pages: &[Page], heads: &Heads, first_pos: Option<usize>, out: &mut [f32]) {
        attend_heads(q, pages, heads, first_pos, out)
    }
}

#[inline(always)]
fn attend_heads(q: &[f32], pages: &[Page], heads: &Heads, first_pos: Option<usize>, out: &mut [f32]) {
    out.fill(0.0);
    let head_dim = heads.head_dim;
    let mut scratch = Scratch::new(head_dim, q.len() / (heads.kv_head.len() * head_dim).max(1));
    for kv_head in 0..heads.n_kv_heads {
        let mut rows = Row::all(q, heads, kv_head);
        let mut first_key = 0;
        for page in pages {
            for first in (0..page.n_positions).step_by(KEYS) {
                let block = Block::new(page, heads, kv_head, first);
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

/// One query of one head: its index in `q` and `out`, and its running softmax.
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

    /// Turns scores into weights relative to the running maximum; returns the factor by which the earlier sums shrink.
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

/// Up to [`KEYS`] keys and values of one head.
struct Block<'a> {
    k: HeadRows<'a>,
    v: HeadRows<'a>,
    n_keys: usize,
    head_dim: usize,
}

/// A head's part of [`Rows`].
#[derive(Clone, Copy)]
enum HeadRows<'a> {
    /// Rows at a distance of `row`.
    Floats { values: &'a [f32], row: usize },
    /// Contiguous rows, with a scale for each.
    Ints { ints: &'a [i16], scales: &'a [f32] },
}

impl<'a> Block<'a> {
    /// Starting at position `first` of a page.
    fn new(page: &Page<'a>, heads: &Heads, kv_head: usize, first: usize) -> Self {
        let head_dim = heads.head_dim;
        let n_keys = KEYS.min(page.n_positions - first);
        let part = |rows: Rows<'a>| match rows {
            Rows::Floats { values, row, head } => {
                let values = &values[kv_head * head + first * row..][..(n_keys - 1) * row + head_dim];
                HeadRows::Floats { values, row }
            }
            Rows::Ints { ints, scales } => {
                let from = scales.len() / heads.n_kv_heads * kv_head + first;
                let (ints, scales) = (&ints[from * head_dim..][..n_keys * head_dim], &scales[from..][..n_keys]);
                HeadRows::Ints { ints, scales }
            }
        };
        Self { k: part(page.k), v: part(page.v), n_keys, head_dim }
    }
}

impl HeadRows<'_> {
    /// The row of one position.
    #[inline(always)]
    fn decode(self, position: usize, out: &mut [f32]) {
        let head_dim = out.len();
        match self {
            Self::Floats { values, row } => out.copy_from_slice(&values[position * row..][..head_dim]),
            Self::Ints { ints, scales } => {
                let scale = scales[position];
                let ints = &ints[position * head_dim..][..head_dim];
                out.iter_mut().zip(ints).for_each(|(out, &int)| *out = scale * int as f32);
            }
        }
    }
}

/// Buffers of one call.
struct Scratch {
    /// (head_dim, KEYS): the keys of a block, transposed.
    keys: Vec<f32>,
    /// (KEYS, padded): its values; `padded` is head_dim rounded up to whole panels.
    values: Vec<f32>,
    padded: usize,
    row: Vec<f32>, // (head_dim)
    /// Whether there are at least [`MANY_QUERIES`] queries.
    has_many: bool,
    scores: [[f32; KEYS]; ROWS],
}

/// Keys and values that are used as stored: contiguous rows.
#[derive(Clone, Copy)]
enum Direct<'a> {
    Floats([&'a [f32]; 2]),
    /// Their scales.
    Ints([(&'a [i16], &'a [f32]); 2]),
}

impl Scratch {
    fn new(head_dim: usize, n_queries: usize) -> Self {
        let padded = head_dim.next_multiple_of(8);
        let (keys, values) = (vec![0.0; head_dim * KEYS], vec![0.0; padded * KEYS]);
        Self {
            keys,
            values,
            padded,
            row: vec![0.0; head_dim],
            has_many: n_queries >= MANY_QUERIES,
            scores: [[0.0; KEYS]; ROWS],
        }
    }

    /// Multiplies all rows with a block, four at a time, as small matrix products. With many queries, the block is
    /// first decoded and transposed.
    #[inline(always)]
    fn meet(&mut self, q: &[f32], rows: &mut [Row], block: &Block, visible: impl Fn(&Row) -> usize, out: &mut [f32]) {
        let can_be_direct = !self.has_many && self.padded == block.head_dim;
        let direct = match (block.k, block.v) {
            (HeadRows::Ints { ints: k, scales: k_scales }, HeadRows::Ints { ints: v, scales: v_scales })
                if can_be_direct =>
            {
                // With few rows, little is computed per byte read: the loop would wait for each line.
                [k, v].map(bytemuck::cast_slice).into_iter().for_each(fetch);
                Some(Direct::Ints([(k, k_scales), (v, v_scales)]))
            }
            (HeadRows::Floats { values: k, row }, HeadRows::Floats { values: v, .. })
                if can_be_direct && row == block.head_dim =>
            {
                [k, v].map(bytemuck::cast_slice).into_iter().for_each(fetch);
                Some(Direct::Floats([k, v]))
            }
            _ => {
                self.unpack(block);
                None
            }
        };
        for rows in rows.chunks_mut(ROWS) {
            match rows.len() {
                1 => self.meet_rows::<1>(q, rows, block, direct, &visible, out),
                _ => self.meet_rows::<ROWS>(q, rows, block, direct, &visible, out),
            }
        }
    }

    #[inline(always)]
    fn unpack(&mut self, block: &Block) {
        for position in 0..block.n_keys {
            block.k.decode(position, &mut self.row);
            for (column, k) in self.keys.chunks_exact_mut(KEYS).zip(&self.row) {
                column[position] = *k;
            }
            block.v.decode(position, &mut self.values[position * self.padded..][..block.head_dim]);
        }
    }

    /// Up to `R` rows; the block is in the buffers unless it is used as stored.
    #[inline(always)]
    fn meet_rows<const R: usize>(
        &mut self,
        q: &[f32],
        rows: &mut [Row],
        block: &Block,
        direct: Option<Direct>,
        visible: impl Fn(&Row) -> usize,
        out: &mut [f32],
    ) {
        let head_dim = block.head_dim;
        let n_visible: [usize; R] = std::array::from_fn(|i| rows.get(i).map_or(0, &visible));
        let n = n_visible.into_iter().max().unwrap_or(0);
        if n == 0 {
            return;
        }
        // If the last four are not all present, the first row fills the gaps.
        let at: [usize; R] = std::array::from_fn(|i| rows.get(i).unwrap_or(&rows[0]).at);
        let queries = at.map(|at| &q[at..at + head_dim]);
        match direct {
            Some(Direct::Floats([k, _])) => {
                for (key, k) in k.chunks_exact(head_dim).take(n).enumerate() {
                    let products = dots(k, &queries);
                    (0..R).for_each(|i| self.scores[i][key] = products[i]);
                }
            }
            Some(Direct::Ints([(k, scales), _])) => {
                for (key, (k, scale)) in k.chunks_exact(head_dim).zip(scales).take(n).enumerate() {
                    let products = dots(k, &queries);
                    (0..R).for_each(|i| self.scores[i][key] = scale * products[i]);
                }
            }
            None => {
                for first in (0..n).step_by(8) {
                    let products = panel_products(&self.keys[first..], KEYS, &queries);
                    for (scores, products) in self.scores.iter_mut().zip(&products) {
                        scores[first..first + 8].copy_from_slice(products);
                    }
                }
            }
        }
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut shrink = [1.0; R];
        for (i, row) in rows.iter_mut().enumerate() {
            let (seen, hidden) = self.scores[i].split_at_mut(n_visible[i]);
            shrink[i] = if seen.is_empty() { 1.0 } else { row.soften(seen, scale) };
            hidden.fill(0.0);
        }
        if let Some(Direct::Ints([_, (_, scales)])) = direct {
            for scores in &mut self.scores[..R] {
                scores.iter_mut().zip(scales).for_each(|(weight, scale)| *weight *= scale);
            }
        }
        let weights: [&[f32]; R] = std::array::from_fn(|i| &self.scores[i][..n]);
        for dim in (0..head_dim).step_by(8) {
            let width = 8.min(head_dim - dim);
            let products = match direct {
                Some(Direct::Floats([_, v])) => panel_products(&v[dim..], head_dim, &weights),
                Some(Direct::Ints([_, (v, _)])) => panel_products(&v[dim..], head_dim, &weights),
                None => panel_products(&self.values[dim..], self.padded, &weights),
            };
            for i in 0..rows.len() {
                let out = &mut out[at[i] + dim..][..width];
                out.iter_mut().zip(&products[i]).for_each(|(out, more)| *out = *out * shrink[i] + more);
            }
        }
    }
}
