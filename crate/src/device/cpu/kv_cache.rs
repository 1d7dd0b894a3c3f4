//! Keys and values of past positions, in pages that are allocated when they are first needed.
//!
//! Pages do not move when the conversation grows: nothing is copied, and memory follows the length of the conversation,
//! not the size of the context. Conversations with a common prefix share their first pages until one of them writes to
//! such a page.
//!
//! Each key and each value of a head is stored as 16-bit integers with one scale: half the bytes of f32, off by at most
//! 1/65534 of its largest number. (Half-precision floats would be off by 1/4096 of each number, and wasm has no
//! instruction that reads them.) A cache may also be exact, in f32.

use crate::device::attention::{Page, Rows};
use crate::device::kernels::float::quantize_row;
use crate::device::{Cache, PAGE_LEN};
use crate::error::{Error, Result};
use std::sync::Arc;

/// The cache of one conversation on one rank: its key/value heads of every layer.
pub struct KvCache {
    n_kv_heads: usize,
    head_dim: usize,
    is_exact: bool,
    layers: Vec<Vec<Arc<Buffers>>>,
}

struct Buffers {
    k: Kept,
    v: Kept,
}

/// Keys or values of a page. What attention reads for a head is contiguous.
enum Kept {
    Ints {
        ints: Vec<i16>,   // (n_kv_heads, PAGE_LEN, head_dim)
        scales: Vec<f32>, // (n_kv_heads, PAGE_LEN)
    },
    Floats(Vec<f32>), // (n_kv_heads, PAGE_LEN, head_dim)
}

/// Allocated pages that are not part of a cache yet: for each layer, the index of the first page and the new pages from
/// there on.
pub struct NewPages(Vec<Vec<(usize, Arc<Buffers>)>>);

impl KvCache {
    /// An empty cache for this rank's key/value heads.
    pub fn new(n_layers: usize, n_kv_heads: usize, head_dim: usize, is_exact: bool) -> Self {
        Self { n_kv_heads, head_dim, is_exact, layers: (0..n_layers).map(|_| Vec::new()).collect() }
    }

    /// Bytes that one position of `n_kv_heads` heads takes per layer.
    pub const fn bytes_per_position(n_kv_heads: usize, head_dim: usize, is_exact: bool) -> usize {
        let row = if is_exact { head_dim * size_of::<f32>() } else { head_dim * size_of::<i16>() + size_of::<f32>() };
        2 * n_kv_heads * row
    }

    /// Stores the rows `k` and `v` (n, kv_dim) starting at position `first`, overwriting what was there.
    ///
    /// # Panics
    /// If [`Cache::reserve`] has not made room for them.
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
        let head_dim = self.head_dim;
        let pages = self.layers[layer].iter().take(n_pages(n_positions)).enumerate();
        pages
            .map(|(i, page)| {
                let n_positions = (n_positions - i * PAGE_LEN).min(PAGE_LEN);
                Page { k: page.k.rows(head_dim), v: page.v.rows(head_dim), n_positions }
            })
            .collect()
    }

    /// Bytes of its pages, including shared ones.
    pub fn n_bytes(&self) -> usize {
        let n_pages: usize = self.layers.iter().map(Vec::len).sum();
        n_pages * PAGE_LEN * Self::bytes_per_position(self.n_kv_heads, self.head_dim, self.is_exact)
    }
}

impl Cache for KvCache {
    type Pages = NewPages;

    fn fork(&self, n_positions: usize) -> Self {
        let first_pages = |pages: &Vec<Arc<Buffers>>| pages.iter().take(n_pages(n_positions)).cloned().collect();
        Self { layers: self.layers.iter().map(first_pages).collect(), ..*self }
    }

    fn has_room(&self, first: usize, end: usize) -> bool {
        self.layers.iter().all(|pages| {
            let mut written = pages.iter().take(n_pages(end)).skip(first / PAGE_LEN);
            pages.len() >= n_pages(end) && written.all(|page| Arc::strong_count(page) == 1)
        })
    }

    /// Pages after the last one, and copies of shared pages.
    fn new_pages(&self, first: usize, end: usize) -> Result<NewPages> {
        let of_layer = |pages: &Vec<Arc<Buffers>>| {
            let missing = (first / PAGE_LEN..n_pages(end)).filter_map(|place| match pages.get(place) {
                Some(page) if Arc::strong_count(page) == 1 => None,
                page => Some((place, page)),
            });
            let allocate = |(place, page): (usize, Option<&Arc<Buffers>>)| {
                let allocate = |of: Option<&Kept>| match of {
                    Some(kept) => kept.copy(),
                    None => Kept::new(self.n_kv_heads, self.head_dim, self.is_exact),
                };
                let k = allocate(page.map(|page| &page.k))?;
                let v = allocate(page.map(|page| &page.v))?;
                Ok((place, Arc::new(Buffers { k, v })))
            };
            missing.map(allocate).collect()
        };
        Ok(NewPages(self.layers.iter().map(of_layer).collect::<Result<_>>()?))
    }

    fn take(&mut self, new: NewPages, end: usize) {
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
}

impl Kept {
    /// Room for a page's keys or values.
    fn new(n_kv_heads: usize, head_dim: usize, is_exact: bool) -> Result<Self> {
        let n_rows = PAGE_LEN * n_kv_heads;
        Ok(match is_exact {
            true => Self::Floats(zeros(n_rows * head_dim)?),
            false => Self::Ints { ints: zeros(n_rows * head_dim)?, scales: zeros(n_rows)? },
        })
    }

    fn copy(&self) -> Result<Self> {
        Ok(match self {
            Self::Floats(values) => Self::Floats(copied(values)?),
            Self::Ints { ints, scales } => Self::Ints { ints: copied(ints)?, scales: copied(scales)? },
        })
    }

    /// Stores the row (n_kv_heads * head_dim) of one position.
    fn write(&mut self, position: usize, row: &[f32], head_dim: usize) {
        for (head, row) in row.chunks_exact(head_dim).enumerate() {
            let place = head * PAGE_LEN + position;
            let at = place * head_dim..(place + 1) * head_dim;
            match self {
                Self::Floats(values) => values[at].copy_from_slice(row),
                Self::Ints { ints, scales } => scales[place] = quantize_row(row, &mut ints[at]),
            }
        }
    }

    fn rows(&self, head_dim: usize) -> Rows<'_> {
        match self {
            Self::Floats(values) => Rows::Floats { values, row: head_dim, head: PAGE_LEN * head_dim },
            Self::Ints { ints, scales } => Rows::Ints { ints, scales },
        }
    }
}

fn n_pages(n_positions: usize) -> usize {
    n_positions.div_ceil(PAGE_LEN)
}

fn room<T>(len: usize) -> Result<Vec<T>> {
    let mut room = Vec::new();
    let reserved = room.try_reserve_exact(len);
    reserved.map_err(|_| Error::OutOfMemory { what: "keys and values".into(), bytes: len * size_of::<T>() })?;
    Ok(room)
}

fn zeros<T: Copy + Default>(len: usize) -> Result<Vec<T>> {
    let mut zeros = room(len)?;
    zeros.resize(len, T::default());
    Ok(zeros)
}

fn copied<T: Copy>(values: &[T]) -> Result<Vec<T>> {
    let mut copy = room(values.len())?;
    copy.extend_from_slice(values);
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept for a head: keys and values of its positions, in order.
    fn of_head(cache: &KvCache, layer: usize, head: usize, n: usize) -> [Vec<f32>; 2] {
        let pages = cache.pages(layer, n);
        let head_dim = cache.head_dim;
        [0, 1].map(|which| {
            let positions = pages.iter().flat_map(|page| (0..page.n_positions).map(move |row| (page, row)));
            let kept = positions.flat_map(|(page, row)| {
                let place = (head * PAGE_LEN + row) * head_dim;
                match if which == 0 { page.k } else { page.v } {
                    Rows::Ints { ints, scales } => {
                        let scale = scales[place / head_dim];
                        ints[place..place + head_dim].iter().map(|&int| scale * int as f32).collect::<Vec<_>>()
                    }
                    Rows::Floats { values, .. } => values[place..place + head_dim].to_vec(),
                }
            });
            kept.collect()
        })
    }

    /// Whether all are within the stated error, for rows of width `head_dim`.
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
        for is_exact in [true, false] {
            let mut cache = KvCache::new(2, 3, 2, is_exact);
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
                for (kept, given) in of_head(&cache, 1, head, n - 1).iter().zip([expected(&k), expected(&v)]) {
                    assert!(if is_exact { *kept == given } else { is_close(kept, &given, 2) });
                }
            }
            let kept = |kept: &Kept| match kept {
                Kept::Ints { ints, scales } => size_of_val(&ints[..]) + size_of_val(&scales[..]),
                Kept::Floats(values) => size_of_val(&values[..]),
            };
            let n_bytes: usize = cache.layers.iter().flatten().map(|page| kept(&page.k) + kept(&page.v)).sum();
            assert_eq!(cache.n_bytes(), n_bytes);
        }
    }

    #[test]
    fn numbers_of_any_size_come_back_within_the_stated_error() {
        let mut cache = KvCache::new(1, 1, 5, false);
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
        let mut cache = KvCache::new(1, 1, 1, false);
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
        // A row of one number is its own maximum.
        let is = |kept: &[f32], given: &[f32]| is_close(kept, given, 1);
        assert!(is(&rows(&cache, n), &k));
        assert!(is(&rows(&other, n), &[&k[..first], &vec![-1.0; n - first]].concat()));
        // The first page is still shared, the second is not: the older conversation writes to its own copy.
        assert!(!cache.has_room(0, n) && cache.has_room(PAGE_LEN, n));
        cache.reserve(0, first).unwrap();
        let page = PAGE_LEN * KvCache::bytes_per_position(1, 1, false);
        assert_eq!(cache.n_bytes(), 2 * page, "pages after the last position are given back");
        cache.write(0, 0, &[-2.0], &[-2.0]);
        assert!(is(&rows(&other, first), &k[..first]));
    }
}
