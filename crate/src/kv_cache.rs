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
    kv_dim: usize,
    layers: Vec<Vec<Arc<Buffers>>>,
}

struct Buffers {
    /// (PAGE_LEN, kv_dim)
    k: Vec<f32>,
    /// (PAGE_LEN, kv_dim)
    v: Vec<f32>,
}

impl KvCache {
    /// An empty cache for rows of `kv_dim` = n_kv_heads * head_dim of this rank.
    pub fn new(n_layers: usize, kv_dim: usize) -> Self {
        Self { kv_dim, layers: (0..n_layers).map(|_| Vec::new()).collect() }
    }

    /// Another conversation that begins with the first `n_positions` of this one: it shares their pages.
    pub fn fork(&self, n_positions: usize) -> Self {
        let first_pages = |pages: &Vec<Arc<Buffers>>| pages.iter().take(n_pages(n_positions)).cloned().collect();
        Self { kv_dim: self.kv_dim, layers: self.layers.iter().map(first_pages).collect() }
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
        for pages in &mut self.layers {
            pages.truncate(n_pages(end));
            for page in pages.iter_mut().skip(first / PAGE_LEN) {
                if Arc::get_mut(page).is_none() {
                    let copy = Buffers { k: copied(&page.k, self.kv_dim)?, v: copied(&page.v, self.kv_dim)? };
                    *page = Arc::new(copy);
                }
            }
            while pages.len() < n_pages(end) {
                let page = Buffers { k: copied(&[], self.kv_dim)?, v: copied(&[], self.kv_dim)? };
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
        if self.kv_dim == 0 {
            return;
        }
        for (i, (k, v)) in k.chunks_exact(self.kv_dim).zip(v.chunks_exact(self.kv_dim)).enumerate() {
            let (page, row) = ((first + i) / PAGE_LEN, (first + i) % PAGE_LEN * self.kv_dim);
            let page = Arc::get_mut(&mut self.layers[layer][page]).expect("pages are made writable before");
            page.k[row..row + self.kv_dim].copy_from_slice(k);
            page.v[row..row + self.kv_dim].copy_from_slice(v);
        }
    }

    /// The first `n_positions` positions of a layer.
    pub fn pages(&self, layer: usize, n_positions: usize) -> Vec<Page<'_>> {
        let pages = self.layers[layer].iter().take(n_pages(n_positions)).enumerate();
        pages
            .map(|(i, page)| {
                let n = (n_positions - i * PAGE_LEN).min(PAGE_LEN) * self.kv_dim;
                Page { k: &page.k[..n], v: &page.v[..n] }
            })
            .collect()
    }

    /// Bytes of its pages, also of those that it shares.
    pub fn n_bytes(&self) -> usize {
        let n_pages: usize = self.layers.iter().map(Vec::len).sum();
        n_pages * 2 * PAGE_LEN * self.kv_dim * size_of::<f32>()
    }
}

fn n_pages(n_positions: usize) -> usize {
    n_positions.div_ceil(PAGE_LEN)
}

/// Rows of a page (PAGE_LEN, kv_dim) that begins as `rows`.
fn copied(rows: &[f32], kv_dim: usize) -> Result<Vec<f32>> {
    let len = PAGE_LEN * kv_dim;
    let mut page = Vec::new();
    page.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { what: "keys and values".into(), bytes: 4 * len })?;
    page.extend_from_slice(rows);
    page.resize(len, 0.0);
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_in_order_across_pages() {
        let mut cache = KvCache::new(2, 2);
        let n = PAGE_LEN + 3;
        cache.reserve(0, n).unwrap();
        let k: Vec<f32> = (0..2 * n).map(|i| i as f32).collect();
        let v: Vec<f32> = k.iter().map(|k| -k).collect();
        cache.write(1, 0, &k[..20], &v[..20]);
        cache.write(1, 10, &k[20..], &v[20..]);
        let pages = cache.pages(1, n - 1);
        assert_eq!(pages.iter().flat_map(|page| page.k).copied().collect::<Vec<_>>(), k[..2 * (n - 1)]);
        assert_eq!(pages.iter().flat_map(|page| page.v).copied().collect::<Vec<_>>(), v[..2 * (n - 1)]);
        assert_eq!(cache.n_bytes(), 2 * 2 * 2 * PAGE_LEN * 2 * 4);
    }
    #[test]
    fn conversations_that_begin_alike_share_pages_and_do_not_disturb_each_other() {
        let rows = |cache: &KvCache, n| cache.pages(0, n).iter().flat_map(|page| page.k).copied().collect::<Vec<f32>>();
        let mut cache = KvCache::new(1, 1);
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
