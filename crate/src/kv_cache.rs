//! Keys and values of the positions seen so far, in pages that are allocated when they are first needed.
//!
//! Pages do not move when the conversation grows: nothing is copied, and memory follows the conversation, not the largest context.

use crate::attention::Page;
use crate::error::{Error, Result};

/// Positions per page.
pub const PAGE_LEN: usize = 64;

/// The cache of one rank: its key/value heads of every layer.
pub struct KvCache {
    kv_dim: usize,
    layers: Vec<Vec<Buffers>>,
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

    /// Makes room for positions up to `n_positions` in every layer.
    pub fn reserve(&mut self, n_positions: usize) -> Result<()> {
        for pages in &mut self.layers {
            while pages.len() * PAGE_LEN < n_positions {
                pages.push(Buffers { k: page(self.kv_dim)?, v: page(self.kv_dim)? });
            }
        }
        Ok(())
    }

    /// Stores the rows `k` and `v` (n, kv_dim) from position `first` on, over what stood there.
    pub fn write(&mut self, layer: usize, first: usize, k: &[f32], v: &[f32]) {
        if self.kv_dim == 0 {
            return;
        }
        for (i, (k, v)) in k.chunks_exact(self.kv_dim).zip(v.chunks_exact(self.kv_dim)).enumerate() {
            let (page, row) = ((first + i) / PAGE_LEN, (first + i) % PAGE_LEN * self.kv_dim);
            let page = &mut self.layers[layer][page];
            page.k[row..row + self.kv_dim].copy_from_slice(k);
            page.v[row..row + self.kv_dim].copy_from_slice(v);
        }
    }

    /// The first `n_positions` positions of a layer.
    pub fn pages(&self, layer: usize, n_positions: usize) -> Vec<Page<'_>> {
        let pages = self.layers[layer].iter().take(n_positions.div_ceil(PAGE_LEN)).enumerate();
        pages
            .map(|(i, page)| {
                let n = (n_positions - i * PAGE_LEN).min(PAGE_LEN) * self.kv_dim;
                Page { k: &page.k[..n], v: &page.v[..n] }
            })
            .collect()
    }

    /// Bytes allocated.
    pub fn n_bytes(&self) -> usize {
        let n_pages: usize = self.layers.iter().map(Vec::len).sum();
        n_pages * 2 * PAGE_LEN * self.kv_dim * size_of::<f32>()
    }
}

fn page(kv_dim: usize) -> Result<Vec<f32>> {
    let len = PAGE_LEN * kv_dim;
    let mut page = Vec::new();
    page.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { what: "keys and values".into(), bytes: 4 * len })?;
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
        cache.reserve(n).unwrap();
        let k: Vec<f32> = (0..2 * n).map(|i| i as f32).collect();
        let v: Vec<f32> = k.iter().map(|k| -k).collect();
        cache.write(1, 0, &k[..20], &v[..20]);
        cache.write(1, 10, &k[20..], &v[20..]);
        let pages = cache.pages(1, n - 1);
        assert_eq!(pages.iter().flat_map(|page| page.k).copied().collect::<Vec<_>>(), k[..2 * (n - 1)]);
        assert_eq!(pages.iter().flat_map(|page| page.v).copied().collect::<Vec<_>>(), v[..2 * (n - 1)]);
        assert_eq!(cache.n_bytes(), 2 * 2 * 2 * PAGE_LEN * 2 * 4);
    }
}
