//! Attention compared with its formula, over keys and values as they are and as the cache keeps them.

use llama3med::device::Cache;
use llama3med::device::attention::{Heads, Page, attend};
use llama3med::device::cpu::kv_cache::KvCache;

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
    for (head_dim, kv_head, n_kv_heads) in
        [(8, vec![0], 1), (5, vec![0, 0, 1], 2), (64, vec![0, 0, 0, 0], 1), (33, vec![1, 0], 2), (72, vec![0, 1, 1], 2)]
    {
        let heads = Heads { head_dim, kv_head, n_kv_heads };
        let (dim, kv_dim) = (heads.kv_head.len() * head_dim, n_kv_heads * head_dim);
        for (n_queries, n_keys) in [(1, 1), (1, 200), (3, 65), (16, 16), (17, 130), (40, 64)] {
            let q: Vec<f32> = (0..n_queries * dim).map(value).collect();
            let k: Vec<f32> = (0..n_keys * kv_dim).map(|i| value(3 * i + 1)).collect();
            let v: Vec<f32> = (0..n_keys * kv_dim).map(|i| value(5 * i + 2)).collect();
            let chunks = k.chunks(64 * kv_dim).zip(v.chunks(64 * kv_dim));
            let floats: Vec<Page> = chunks.map(|(k, v)| Page::of_rows(k, v, &heads)).collect();
            let [exact, rounded] = [true, false].map(|is_exact| {
                let mut cache = KvCache::new(1, n_kv_heads, head_dim, is_exact);
                cache.reserve(0, n_keys).unwrap();
                cache.write(0, 0, &k, &v);
                cache
            });
            let whole = [Page::of_rows(&k, &v, &heads)];
            for first_pos in [None, n_keys.checked_sub(n_queries)] {
                let expected = plain(&q, &k, &v, &heads, first_pos);
                // Keys and values up to 2, in the cache's steps of 2 / 32767: scores and values are each off by less
                // than 2e-4.
                for (pages, bound) in [
                    (&whole[..], 4e-6),
                    (&floats, 4e-6),
                    (&exact.pages(0, n_keys), 4e-6),
                    (&rounded.pages(0, n_keys), 2e-4),
                ] {
                    let mut out = vec![f32::NAN; n_queries * dim];
                    attend(&q, pages, &heads, first_pos, &mut out);
                    for (out, expected) in out.iter().zip(&expected) {
                        let is_close = (out - expected).abs() < bound;
                        assert!(is_close, "{heads:?} {n_queries} {n_keys}: {out} {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_cache_that_rounds_nothing_changes_nothing() {
    let heads = Heads { head_dim: 16, kv_head: vec![0, 0], n_kv_heads: 1 };
    let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 250.0 - 2.0;
    // Multiples of a step, the largest of which is 32767 steps: integers represent them exactly.
    let whole = |i: usize| if i % 16 == 3 { 1.999_939 } else { (value(i) * 100.0).round() / 16384.0 };
    let (k, v): (Vec<f32>, Vec<f32>) = (0..90 * 16).map(|i| (whole(i), whole(3 * i + 16))).unzip();
    let mut cache = KvCache::new(1, 1, 16, false);
    cache.reserve(0, 90).unwrap();
    cache.write(0, 0, &k, &v);
    for n_queries in [1, 3, 40] {
        let q: Vec<f32> = (0..n_queries * 32).map(value).collect();
        let [mut kept, mut given] = [(); 2].map(|()| vec![f32::NAN; q.len()]);
        attend(&q, &cache.pages(0, 90), &heads, None, &mut kept);
        attend(&q, &[Page::of_rows(&k, &v, &heads)], &heads, None, &mut given);
        assert!(kept.iter().zip(&given).all(|(kept, given)| (kept - given).abs() < 2e-6), "{kept:?} {given:?}");
    }
}
