//! Keys and values of the positions seen so far, in pages that are allocated when they are first needed.
//!
//! Pages do not move when the conversation grows: nothing is copied, and memory follows the conversation, not the largest context. Conversations that
//! begin alike share their first pages until one of them writes there.

use crate::attention::Page;
use crate::error::{Error, Result};
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
    /// (n_kv_heads, PAGE_LEN, head_dim): what attention reads for a head lies together.
    k: Vec<f32>,
    /// (n_kv_heads, PAGE_LEN, head_dim)
    v: Vec<f32>,
}

impl KvCache {
    /// An empty cache for this rank's key/value heads.
    pub fn new(n_layers: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        Self { n_kv_heads, head_dim, layers: (0..n_layers).map(|_| Vec::new()).collect() }
    }

    /// Values of one position.
    fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
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

    /// Makes the positions `first..end` writable in every layer and gives back the pages after them. A page that another conversation reads too is
    /// copied.
    pub fn reserve(&mut self, first: usize, end: usize) -> Result<()> {
        let kv_dim = self.kv_dim();
        for pages in &mut self.layers {
            pages.truncate(n_pages(end));
            for page in pages.iter_mut().skip(first / PAGE_LEN) {
                if Arc::get_mut(page).is_none() {
                    let copy = Buffers { k: copied(&page.k, kv_dim)?, v: copied(&page.v, kv_dim)? };
                    *page = Arc::new(copy);
                }
            }
            while pages.len() < n_pages(end) {
                let page = Buffers { k: copied(&[], kv_dim)?, v: copied(&[], kv_dim)? };
                pages.push(Arc::new(page));
            }
        }
        Ok(())
    }

    /// Stores the rows `k` and `v` (n, kv_dim) from position `first` on, over what stood there.
    ///
    /// # Panics
    /// When [`KvCache::reserve`] has not made room for them.
    pub fn write(&mut self, layer: usize, first: usize, k: &[f32], v: &[f32]) {
        let (kv_dim, head_dim) = (self.kv_dim(), self.head_dim);
        if kv_dim == 0 {
            return;
        }
        for (i, (k, v)) in k.chunks_exact(kv_dim).zip(v.chunks_exact(kv_dim)).enumerate() {
            let (page, row) = ((first + i) / PAGE_LEN, (first + i) % PAGE_LEN);
            let page = Arc::get_mut(&mut self.layers[layer][page]).expect("pages are made writable before");
            for (head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
                let at = (head * PAGE_LEN + row) * head_dim;
                page.k[at..at + head_dim].copy_from_slice(k);
                page.v[at..at + head_dim].copy_from_slice(v);
            }
        }
    }

    /// The first `n_positions` positions of a layer.
    pub fn pages(&self, layer: usize, n_positions: usize) -> Vec<Page<'_>> {
        let pages = self.layers[layer].iter().take(n_pages(n_positions)).enumerate();
        pages
            .map(|(i, page)| {
                let n_positions = (n_positions - i * PAGE_LEN).min(PAGE_LEN);
                Page { k: &page.k, v: &page.v, n_positions, row: self.head_dim, head: PAGE_LEN * self.head_dim }
            })
            .collect()
    }

    /// Bytes of its pages, also of those that it shares.
    pub fn n_bytes(&self) -> usize {
        let n_pages: usize = self.layers.iter().map(Vec::len).sum();
        n_pages * 2 * PAGE_LEN * self.kv_dim() * size_of::<f32>()
    }
}

fn n_pages(n_positions: usize) -> usize {
    n_positions.div_ceil(PAGE_LEN)
}

/// A page's keys or values that begin as `values`.
fn copied(values: &[f32], kv_dim: usize) -> Result<Vec<f32>> {
    let len = PAGE_LEN * kv_dim;
    let mut page = Vec::new();
    page.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { what: "keys and values".into(), bytes: 4 * len })?;
    page.extend_from_slice(values);
    page.resize(len, 0.0);
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept for a head: keys and values of its positions, one after the other.
    fn of_head(cache: &KvCache, layer: usize, head: usize, n: usize) -> [Vec<f32>; 2] {
        let pages = cache.pages(layer, n);
        [0, 1].map(|which| {
            let positions = pages.iter().flat_map(|page| (0..page.n_positions).map(move |row| (page, row)));
            let kept = positions.flat_map(|(page, row)| {
                let values = if which == 0 { page.k } else { page.v };
                &values[head * page.head + row * page.row..][..cache.head_dim]
            });
            kept.copied().collect()
        })
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
            assert_eq!(of_head(&cache, 1, head, n - 1), [expected(&k), expected(&v)]);
        }
        assert_eq!(cache.n_bytes(), 2 * 2 * 2 * PAGE_LEN * 6 * 4);
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
        assert_eq!(rows(&cache, n), k);
        assert_eq!(rows(&other, n), [&k[..first], &vec![-1.0; n - first]].concat());
        // The first page is still shared, the second no longer: the older conversation writes into its own.
        assert!(!cache.has_room(0, n) && cache.has_room(PAGE_LEN, n));
        cache.reserve(0, first).unwrap();
        assert_eq!(cache.n_bytes(), 2 * 2 * PAGE_LEN * 4, "pages after the last position are given back");
        cache.write(0, 0, &[-2.0], &[-2.0]);
        assert_eq!(rows(&other, first), k[..first]);
    }
}
