//! Scaled dot-product attention, one function for encoder (full) and decoder (causal, grouped heads).
//!
//! Streams over the keys page by page with a running softmax (as in FlashAttention, arXiv 2205.14135): no (queries x keys) matrix is kept.

/// Keys and values of consecutive positions: both (n_positions, kv_dim), heads side by side in a row.
#[derive(Clone, Copy)]
pub struct Page<'a> {
    /// Keys, rotated already where rotation applies.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
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

/// `out` (n_queries, n_heads * head_dim) = softmax(q k^T / sqrt(head_dim)) v.
///
/// With `first_pos`, query i stands at position first_pos + i and sees the keys up to its own position; without, it sees all.
pub fn attend(q: &[f32], pages: &[Page], heads: &Heads, first_pos: Option<usize>, out: &mut [f32]) {
    let head_dim = heads.head_dim;
    let (dim, kv_dim) = (heads.kv_head.len() * head_dim, heads.n_kv_heads * head_dim);
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (query, (q, out)) in q.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
        let n_visible = first_pos.map_or(usize::MAX, |first| first + query + 1);
        for (head, &kv_head) in heads.kv_head.iter().enumerate() {
            let q = &q[head * head_dim..][..head_dim];
            let out = &mut out[head * head_dim..][..head_dim];
            let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
            out.fill(0.0);
            let keys = pages.iter().flat_map(|page| page.k.chunks_exact(kv_dim).zip(page.v.chunks_exact(kv_dim)));
            for (k, v) in keys.take(n_visible) {
                let at = kv_head * head_dim..(kv_head + 1) * head_dim;
                let score = scale * q.iter().zip(&k[at.clone()]).map(|(q, k)| q * k).sum::<f32>();
                if score > max {
                    let shrink = (max - score).exp();
                    sum *= shrink;
                    out.iter_mut().for_each(|out| *out *= shrink);
                    max = score;
                }
                let weight = (score - max).exp();
                sum += weight;
                out.iter_mut().zip(&v[at]).for_each(|(out, v)| *out += weight * v);
            }
            out.iter_mut().for_each(|out| *out /= sum);
        }
    }
}
