//! Keys and values of the positions seen so far, in pages that are allocated when they are first needed.
//!
//! Pages do not move when the conversation grows: nothing is copied, and memory follows the conversation, not the largest context. Conversations that
//! begin alike share their first pages until one of them writes there.
//!
//! Each key and each value of a head is kept as integers of 16 bits with one scale: half the bytes of f32, off by at most 1/65534 of its largest number.
//! (Half-precision floats would be off by 1/4096 of each number, and wasm has no instruction that reads them.)

use crate::attention::{Page, Rows};
use crate::error::{Error, Result};
use crate::kernels::float::quantize_row;
use std::sync::Arc;

/// Positions per page.
pub const PAGE_LEN: usize = 64;

/// The cache of one conversation on one rank: its key/value heads of every layer.
pub struct KvCache {
    n_kv_heads: usize,
    head_dim: usize,
    layers: Vec<Vec<Arc<Buffers>>>,
}

struct Buffers {
    k: Kept,
    v: Kept,
}

/// Keys or values of a page.
struct Kept {
    ints: Vec<i16>,   // (n_kv_heads, PAGE_LEN, head_dim): what attention reads for a head lies together
    scales: Vec<f32>, // (n_kv_heads, PAGE_LEN)
}

/// Pages that have been allocated and are no part of a cache yet: for each layer, the place of the first page and the pages from there on that are new.
pub struct NewPages(Vec<Vec<(usize, Arc<Buffers>)>>);

impl KvCache {
    /// An empty cache for this rank's key/value heads.
    pub fn new(n_layers: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        Self { n_kv_heads, head_dim, layers: (0..n_layers).map(|_| Vec::new()).collect() }
    }

    /// Bytes that one position of `n_kv_heads` heads takes in each layer.
    pub const fn bytes_per_position(n_kv_heads: usize, head_dim: usize) -> usize {
        2 * n_kv_heads * (head_dim * size_of::<i16>() + size_of::<f32>())
    }

    /// Another conversation that begins with the first `n_positions` of this one: it shares their pages.
    pub fn fork(&self, n_positions: usize) -> Self {
        let first_pages = |pages: &Vec<Arc<Buffers>>| pages.iter().take(n_pages(n_positions)).cloned().collect();
        Self { layers: self.layers.iter().map(first_pages).collect(), ..*self }
    }

    /// Whether the positions `first..end` can be written without new memory. The same on every rank that has seen the same positions.
    pub fn has_room(&self, first: usize, end: usize) -> bool {
        self.layers.iter().all(|pages| {
            let mut written = pages.iter().take(n_pages(end)).skip(first / PAGE_LEN);
            pages.len() >= n_pages(end) && written.all(|page| Arc::strong_count(page) == 1)
        })
    }

    /// Allocates what the positions `first..end` lack: pages after the last one, and copies of pages that another conversation reads too. Changes nothing.
    pub fn new_pages(&self, first: usize, end: usize) -> Result<NewPages> {
        let of_layer = |pages: &Vec<Arc<Buffers>>| {
            let missing = (first / PAGE_LEN..n_pages(end)).filter_map(|place| match pages.get(place) {
                Some(page) if Arc::strong_count(page) == 1 => None,
                page => Some((place, page)),
            });
            let allocate = |(place, page): (usize, Option<&Arc<Buffers>>)| {
                let allocate = |of: Option<&Kept>| Kept::new(of, self.n_kv_heads, self.head_dim);
                let k = allocate(page.map(|page| &page.k))?;
                let v = allocate(page.map(|page| &page.v))?;
                Ok((place, Arc::new(Buffers { k, v })))
            };
            missing.map(allocate).collect()
        };
        Ok(NewPages(self.layers.iter().map(of_layer).collect::<Result<_>>()?))
    }

    /// Puts [`KvCache::new_pages`] in their places and gives back the pages after the position `end`.
    pub fn take(&mut self, new: NewPages, end: usize) {
        for (pages, new) in self.layers.iter_mut().zip(new.0) {
            pages.truncate(n_pages(end));
            for (place, page) in new {
                match pages.get_mut(place) {
                    Some(old) => *old = page,
                    None => pages.push(page),
                }
            }
        }
    }

    /// Makes the positions `first..end` writable in every layer and gives back the pages after them. On an error nothing has changed.
    pub fn reserve(&mut self, first: usize, end: usize) -> Result<()> {
        let new = self.new_pages(first, end)?;
        self.take(new, end);
        Ok(())
    }

    /// Stores the rows `k` and `v` (n, kv_dim) from position `first` on, over what stood there.
    ///
    /// # Panics
    /// When [`KvCache::reserve`] has not made room for them.
    pub fn write(&mut self, layer: usize, first: usize, k: &[f32], v: &[f32]) {
        let (kv_dim, head_dim) = (self.n_kv_heads * self.head_dim, self.head_dim);
        if kv_dim == 0 {
            return;
        }
        for (i, (k, v)) in k.chunks_exact(kv_dim).zip(v.chunks_exact(kv_dim)).enumerate() {
            let (page, position) = ((first + i) / PAGE_LEN, (first + i) % PAGE_LEN);
            let page = Arc::get_mut(&mut self.layers[layer][page]).expect("pages are made writable before");
            page.k.write(position, k, head_dim);
            page.v.write(position, v, head_dim);
        }
    }

    /// The first `n_positions` positions of a layer.
    pub fn pages(&self, layer: usize, n_positions: usize) -> Vec<Page<'_>> {
        let pages = self.layers[layer].iter().take(n_pages(n_positions)).enumerate();
        pages
            .map(|(i, page)| {
                let n_positions = (n_positions - i * PAGE_LEN).min(PAGE_LEN);
                Page { k: page.k.rows(), v: page.v.rows(), n_positions }
            })
            .collect()
    }

    /// Bytes of its pages, also of those that it shares.
    pub fn n_bytes(&self) -> usize {
        let n_pages: usize = self.layers.iter().map(Vec::len).sum();
        n_pages * PAGE_LEN * Self::bytes_per_position(self.n_kv_heads, self.head_dim)
    }
}

impl Kept {
    /// A copy of `other`, or room for a page's keys or values.
    fn new(other: Option<&Self>, n_kv_heads: usize, head_dim: usize) -> Result<Self> {
        Ok(Self {
            ints: filled(other.map(|other| &other.ints[..]), PAGE_LEN * n_kv_heads * head_dim)?,
            scales: filled(other.map(|other| &other.scales[..]), PAGE_LEN * n_kv_heads)?,
        })
    }

    /// The row (n_kv_heads * head_dim) of one position.
    fn write(&mut self, position: usize, row: &[f32], head_dim: usize) {
        for (head, row) in row.chunks_exact(head_dim).enumerate() {
            let place = head * PAGE_LEN + position;
            self.scales[place] = quantize_row(row, &mut self.ints[place * head_dim..][..head_dim]);
        }
    }

    fn rows(&self) -> Rows<'_> {
        Rows::Ints { ints: &self.ints, scales: &self.scales }
    }
}

fn n_pages(n_positions: usize) -> usize {
    n_positions.div_ceil(PAGE_LEN)
}

/// A copy of `values`, or `len` zeros.
fn filled<T: Copy + Default>(values: Option<&[T]>, len: usize) -> Result<Vec<T>> {
    let mut filled = Vec::new();
    let reserved = filled.try_reserve_exact(len);
    reserved.map_err(|_| Error::OutOfMemory { what: "keys and values".into(), bytes: len * size_of::<T>() })?;
    match values {
        Some(values) => filled.extend_from_slice(values),
        None => filled.resize(len, T::default()),
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept for a head: keys and values of its positions, one after the other.
    fn of_head(cache: &KvCache, layer: usize, head: usize, n: usize) -> [Vec<f32>; 2] {
        let pages = cache.pages(layer, n);
        let head_dim = cache.head_dim;
        [0, 1].map(|which| {
            let positions = pages.iter().flat_map(|page| (0..page.n_positions).map(move |row| (page, row)));
            let kept = positions.flat_map(|(page, row)| {
                let Rows::Ints { ints, scales } = (if which == 0 { page.k } else { page.v }) else { unreachable!() };
                let place = head * PAGE_LEN + row;
                ints[place * head_dim..][..head_dim].iter().map(move |&int| scales[place] * int as f32)
            });
            kept.collect()
        })
    }

    /// Whether all are within the stated error, their rows having the width `head_dim`.
    fn is_close(kept: &[f32], given: &[f32], head_dim: usize) -> bool {
        let rows = kept.chunks(head_dim).zip(given.chunks(head_dim));
        let mut close = rows.map(|(kept, given)| {
            let largest = given.iter().fold(0.0f32, |max, given| max.max(given.abs()));
            kept.iter().zip(given).all(|(kept, given)| (kept - given).abs() <= 1.01 / 65534.0 * largest)
        });
        kept.len() == given.len() && close.all(|close| close)
    }

    #[test]
    fn rows_come_back_in_order_across_pages() {
        let mut cache = KvCache::new(2, 3, 2);
        let n = PAGE_LEN + 3;
        cache.reserve(0, n).unwrap();
        let k: Vec<f32> = (0..6 * n).map(|i| i as f32).collect();
        let v: Vec<f32> = k.iter().map(|k| -k).collect();
        cache.write(1, 0, &k[..60], &v[..60]);
        cache.write(1, 10, &k[60..], &v[60..]);
        for head in 0..3 {
            let expected = |rows: &[f32]| {
                rows.chunks(6).take(n - 1).flat_map(|row| row[2 * head..][..2].to_vec()).collect::<Vec<_>>()
            };
            let [kept_k, kept_v] = of_head(&cache, 1, head, n - 1);
            assert!(is_close(&kept_k, &expected(&k), 2) && is_close(&kept_v, &expected(&v), 2));
        }
        let kept = |buffers: &Buffers| {
            [&buffers.k, &buffers.v].map(|kept| size_of_val(&kept.ints[..]) + size_of_val(&kept.scales[..]))
        };
        let n_bytes: usize = cache.layers.iter().flatten().flat_map(|page| kept(page)).sum();
        assert_eq!(cache.n_bytes(), n_bytes);
    }

    #[test]
    fn numbers_of_any_size_come_back_within_the_stated_error() {
        let mut cache = KvCache::new(1, 1, 5);
        cache.reserve(0, 6).unwrap();
        let rows = [
            [1.0, -0.3, 1e-5, 0.0, 0.999],
            [3e38, -3e38, 1e38, 1.0, 0.0],
            [1e-30, 2e-30, -3e-31, 0.0, 1e-34],
            [0.0; 5],
            [1.0, f32::NAN, 2.0, 3.0, 4.0],
            [1.0, 2.0, f32::NEG_INFINITY, 3.0, 4.0],
        ];
        cache.write(0, 0, rows.as_flattened(), rows.as_flattened());
        let [k, v] = of_head(&cache, 0, 0, 6);
        for kept in [k, v] {
            assert!(is_close(&kept[..20], rows[..4].as_flattened(), 5), "{kept:?}");
            assert!(kept[20..].iter().all(|kept| kept.is_nan()), "what is no number spoils its row: {kept:?}");
        }
    }

    #[test]
    fn conversations_that_begin_alike_share_pages_and_do_not_disturb_each_other() {
        let rows = |cache: &KvCache, n| of_head(cache, 0, 0, n)[0].clone();
        let mut cache = KvCache::new(1, 1, 1);
        let n = 2 * PAGE_LEN + 10;
        let k: Vec<f32> = (0..n).map(|i| i as f32).collect();
        cache.reserve(0, n).unwrap();
        cache.write(0, 0, &k, &k);
        let first = PAGE_LEN + 5;
        let mut other = cache.fork(first);
        assert!(!other.has_room(first, first + 1) && cache.has_room(2 * PAGE_LEN, n));
        other.reserve(first, n).unwrap();
        assert!(other.has_room(first, n) && !other.has_room(first, n + PAGE_LEN));
        other.write(0, first, &vec![-1.0; n - first], &vec![-1.0; n - first]);
        // A row of one number is its own largest.
        let is = |kept: &[f32], given: &[f32]| is_close(kept, given, 1);
        assert!(is(&rows(&cache, n), &k));
        assert!(is(&rows(&other, n), &[&k[..first], &vec![-1.0; n - first]].concat()));
        // The first page is still shared, the second no longer: the older conversation writes into its own.
        assert!(!cache.has_room(0, n) && cache.has_room(PAGE_LEN, n));
        cache.reserve(0, first).unwrap();
        let page = PAGE_LEN * KvCache::bytes_per_position(1, 1);
        assert_eq!(cache.n_bytes(), 2 * page, "pages after the last position are given back");
        cache.write(0, 0, &[-2.0], &[-2.0]);
        assert!(is(&rows(&other, first), &k[..first]));
    }
}
