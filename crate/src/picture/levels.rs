//! Maps samples of more than 8 bits to the 256 levels of a picture.
//!
//! A few numbers far from all others (a marker of 65535 in a 12-bit film, the border of a CT slice, a "no data" value)
//! say nothing about the picture and must not decide its contrast: outliers are removed first, then the range follows
//! from the remaining values.

/// A 16-bit picture whose values span less than this is stretched to the whole range; a picture of floats is stretched
/// if its values span less than the same fraction of the possible range.
const NARROW_SPAN: f64 = 16384.0;
const WHOLE_SPAN: f64 = 65536.0;
/// At most one in this many distinct values may be an outlier.
const MIN_VALUES_EACH: usize = 8;
/// When a range is stretched, one in this many of the remaining values is ignored at either end.
const LEFT_OUT: u64 = 1000;
/// Number of floats that are sampled.
const MAX_SAMPLED: usize = 1 << 18;
/// Bytes that counting needs.
pub(super) const ROOM: u64 = 24 << 20;

/// How values are mapped to levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Levels {
    /// The high byte of 16 bits.
    HighByte,
    /// These two values become 0 and 255; values outside are clipped.
    Range(f64, f64),
}

impl Levels {
    /// The level of a value; NaN is black.
    pub(super) fn level(self, value: f64) -> u8 {
        match self {
            Self::HighByte => (value as u16 >> 8) as u8,
            Self::Range(low, high) => ((value - low) / (high - low) * 255.0).round() as u8,
        }
    }
}

/// A value and how often it occurs.
type Count = (f64, u64);

/// The levels of 16-bit values: their high byte if the values span at least a quarter of the 16 bits, otherwise the
/// range of most of them.
pub(super) fn of_16_bit(values: impl Iterator<Item = u16>) -> Levels {
    let mut counts = vec![0u64; 1 << 16];
    values.for_each(|value| counts[usize::from(value)] += 1);
    let counts: Vec<Count> =
        counts.into_iter().enumerate().filter(|count| count.1 > 0).map(|(value, n)| (value as f64, n)).collect();
    let inside = bulk(&counts);
    let (low, high) = percentiles(inside);
    if span(inside) >= NARROW_SPAN || low == high { Levels::HighByte } else { Levels::Range(low, high) }
}

/// The levels of `n` floats: 0..1 or 0..255 if nearly all of them are within that range and span a quarter of it,
/// otherwise the range of most of them.
pub(super) fn of_floats(n: usize, value: impl Fn(usize) -> Option<f32>) -> Levels {
    // Golden-ratio steps do not align with rows or columns.
    let place = |idx: usize| {
        let part = u128::from((idx as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if n <= MAX_SAMPLED { idx } else { ((part * n as u128) >> 64) as usize }
    };
    let mut sample: Vec<f32> = (0..n.min(MAX_SAMPLED)).filter_map(|idx| value(place(idx))).collect();
    sample.retain(|value| value.is_finite());
    sample.sort_unstable_by(f32::total_cmp);
    let counts: Vec<Count> =
        sample.chunk_by(|a, b| a == b).map(|equal| (f64::from(equal[0]), equal.len() as u64)).collect();
    let (low, high) = percentiles(bulk(&counts));
    let whole = [1.0, 255.0].into_iter().find(|&white| {
        let is_wide = (high - low) / white >= NARROW_SPAN / WHOLE_SPAN;
        low >= 0.0 && high <= white && (is_wide || low == high)
    });
    whole.map_or(Levels::Range(low, high), |white| Levels::Range(0.0, white))
}

/// Distance from the first to the last value.
fn span(counts: &[Count]) -> f64 {
    counts.last().map_or(0.0, |last| last.0 - counts[0].0)
}

/// The values without outliers: a few distinct values at one end, separated by a gap of at least half the span of the
/// others.
fn bulk(counts: &[Count]) -> &[Count] {
    let mut inside = counts;
    loop {
        let may_go = (counts.len() / MIN_VALUES_EACH).saturating_sub(counts.len() - inside.len());
        let is_apart = |end: &f64, rest: &[Count], next: &f64| (next - end).abs() * 2.0 >= span(rest);
        let last = inside.len();
        let low = (1..=may_go).rev().find(|&n| is_apart(&inside[n - 1].0, &inside[n..], &inside[n].0));
        let high =
            (1..=may_go).rev().find(|&n| is_apart(&inside[last - n].0, &inside[..last - n], &inside[last - n - 1].0));
        inside = match (low, high) {
            (Some(n), _) => &inside[n..],
            (None, Some(n)) => &inside[..last - n],
            (None, None) => return inside,
        };
    }
}

/// First and last value after ignoring a thousandth of the values at either end.
fn percentiles(counts: &[Count]) -> (f64, f64) {
    let left_out = counts.iter().map(|count| count.1).sum::<u64>() / LEFT_OUT;
    fn reached<'a>(mut counts: impl Iterator<Item = &'a Count>, left_out: u64) -> f64 {
        let mut n = 0;
        counts
            .find(|count| {
                n += count.1;
                n > left_out
            })
            .map_or(0.0, |count| count.0)
    }
    (reached(counts.iter(), left_out), reached(counts.iter().rev(), left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_list(values: &[f32]) -> Levels {
        of_floats(values.len(), |idx| Some(values[idx]))
    }

    #[test]
    fn extremes_apart_do_not_decide() {
        let film = || (0..5000u32).map(|i| (100 + i * 37 % 3800) as u16);
        let plain = of_16_bit(film());
        assert_eq!(plain, Levels::Range(103.0, 3896.0));
        assert_eq!(of_16_bit(film().chain([65535])), plain);
        assert_eq!(of_16_bit(film().chain([65535; 900])), plain, "text burnt in");
        let slice = || film().map(|value| value + 31768);
        assert_eq!(of_16_bit(slice().chain([0; 4000]).chain([65535])), of_16_bit(slice()), "both ends");
        let deep = || (0..5000u32).map(|i| (i * 13 % 16000) as u16);
        assert_eq!(of_16_bit(deep().chain([30000])), of_16_bit(deep()), "14 bits");
    }

    #[test]
    fn wide_and_sparse_pictures_keep_their_high_byte() {
        assert_eq!(of_16_bit((0..5000u32).map(|i| (i * 13) as u16)), Levels::HighByte);
        assert_eq!(of_16_bit([0, 65535, 0, 65535].into_iter()), Levels::HighByte, "two levels");
        assert_eq!(of_16_bit((0..640u32).map(|i| (i % 16 * 4369) as u16)), Levels::HighByte, "4 bits");
        assert_eq!(of_16_bit([7; 9].into_iter()), Levels::HighByte, "one level");
        assert_eq!(of_16_bit(std::iter::empty()), Levels::HighByte);
        // Spots of all intensities on a dark background are the picture, not a marker.
        let spots = (0..9000u32).map(|i| if i % 100 == 0 { (i * 7) as u16 } else { (i % 500) as u16 });
        assert_eq!(of_16_bit(spots), Levels::HighByte);
    }

    #[test]
    fn floats_are_fractions_bytes_or_neither() {
        let fractions: Vec<f32> = (0..3000).map(|i| (i * 7 % 1000) as f32 / 999.0).collect();
        let with = |extra: &[f32]| of_list(&[&fractions, extra].concat());
        assert_eq!(with(&[]), Levels::Range(0.0, 1.0));
        for extra in [&[1.0001][..], &[-3.4e38], &[f32::NAN, f32::INFINITY], &[-1e-5, 65535.0], &[-9999.0; 900]] {
            assert_eq!(with(extra), Levels::Range(0.0, 1.0), "{extra:?}");
        }
        let bytes: Vec<f32> = fractions.iter().map(|value| value * 255.0).collect();
        assert_eq!(of_list(&bytes), Levels::Range(0.0, 255.0));
        let faint: Vec<f32> = fractions.iter().map(|value| value * 0.01).collect();
        assert!(matches!(of_list(&faint), Levels::Range(low, high) if low < 1e-4 && (0.0098..0.0101).contains(&high)));
        assert_eq!(of_list(&[0.5; 20]), Levels::Range(0.0, 1.0), "one level");
        assert_eq!(of_list(&[]).level(3.0), 255);
        assert_eq!(of_list(&[f32::NAN]).level(f64::NAN), 0);
    }

    #[test]
    fn a_sample_of_a_large_picture_is_enough() {
        let n = 3 * MAX_SAMPLED + 1;
        let levels = of_floats(n, |idx| Some((idx % 2048) as f32));
        assert!(matches!(levels, Levels::Range(low, high) if low <= 4.0 && high >= 2043.0), "{levels:?}");
    }
}
