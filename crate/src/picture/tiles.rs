//! The multi-scale wrapper around the encoder (S2, arXiv 2403.13043): a square becomes tiles at several scales, and the
//! tiles' features become one grid of tokens.
//!
//! The prepared square comes from `image`; its tiles go to `encoder` one by one; the merged features go to `connector`.
//! At each scale the square is resized as `torch.nn.functional.interpolate(mode="bicubic")` does, without a low-pass
//! filter, since the weights were trained on pixels made that way.

use crate::picture::Pixels;
use crate::{Error, Result};

/// Largest edge of a scale: a square of this size takes 192 MiB.
const MAX_SCALE: usize = 4096;
/// Largest number of scales.
const MAX_SCALES: usize = 16;

/// The scales at which the model sees a picture: each is an edge in pixels, cut into tiles of the encoder's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scales {
    /// Edge of a tile, the encoder's input and the smallest scale.
    pub tile: usize,
    /// Edges of the squares, ascending.
    pub scales: Vec<usize>,
}

impl Scales {
    /// Checks that the scales ascend from the tile's size and that each splits into tiles of that size.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the scales and the one that does not fit.
    pub fn new(tile: usize, scales: &[usize]) -> Result<Self> {
        let wrong = |problem: String| Err(Error::corrupt("scales", format!("{scales:?}"), problem));
        let (Some(&first), Some(&last)) = (scales.first(), scales.last()) else {
            return wrong("expected at least one scale, found none".to_owned());
        };
        if scales.len() > MAX_SCALES {
            return wrong(format!("expected at most {MAX_SCALES} scales, found {}", scales.len()));
        }
        if let Some(pair) = scales.windows(2).find(|pair| pair[0] >= pair[1]) {
            return wrong(format!("expected ascending scales, found {} before {}", pair[0], pair[1]));
        }
        if first == 0 || last > MAX_SCALE {
            return wrong(format!("expected scales from 1 to {MAX_SCALE}, found {first} to {last}"));
        }
        if first != tile {
            return wrong(format!("expected the encoder's input size {tile} as the smallest scale, found {first}"));
        }
        for &scale in scales {
            let n_splits = scale.div_ceil(tile);
            if scale % n_splits != 0 {
                return wrong(format!("{scale} pixels do not divide into {n_splits} tiles a side"));
            }
            if scale / n_splits != tile {
                let found = scale / n_splits;
                return wrong(format!("{scale} pixels make tiles of {found}, but the encoder takes {tile}"));
            }
        }
        Ok(Self { tile, scales: scales.to_vec() })
    }

    /// Edge of the largest scale, at which the picture is prepared.
    pub fn size(&self) -> usize {
        self.scales.last().copied().unwrap_or(self.tile)
    }

    /// Number of tiles over all scales.
    pub fn n_tiles(&self) -> usize {
        self.scales.iter().map(|scale| (scale / self.tile).pow(2)).sum()
    }

    /// Scale, row and column of a tile: by scale from the smallest, row by row.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn place(&self, tile_idx: usize) -> Place {
        let mut idx = tile_idx;
        for (scale_idx, scale) in self.scales.iter().enumerate() {
            let n_splits = scale / self.tile;
            if idx < n_splits * n_splits {
                return Place { scale_idx, row: idx / n_splits, column: idx % n_splits, n_splits };
            }
            idx -= n_splits * n_splits;
        }
        panic!("tile {tile_idx} of {}", self.n_tiles());
    }

    /// One tile's pixels: (3, tile, tile). Any tile can be computed at any time, so ranks can share them out.
    ///
    /// # Panics
    /// If there is no such tile, or the pixels were not prepared at the largest scale.
    pub fn tile(&self, pixels: &Pixels, tile_idx: usize) -> Vec<f32> {
        assert_eq!(pixels.size, self.size(), "pixels prepared at another size than the largest scale");
        let place = self.place(tile_idx);
        let scale = self.scales[place.scale_idx];
        let (top, left) = (place.row * self.tile, place.column * self.tile);
        let mut values = Vec::with_capacity(3 * self.tile * self.tile);
        let planes = pixels.values.chunks_exact(pixels.size * pixels.size);
        if scale == pixels.size {
            let rows = planes.flat_map(|plane| plane.chunks_exact(pixels.size).skip(top).take(self.tile));
            rows.for_each(|row| values.extend_from_slice(&row[left..][..self.tile]));
            return values;
        }
        let rows = taps(pixels.size, scale, top, self.tile);
        let columns = taps(pixels.size, scale, left, self.tile);
        for plane in planes {
            for row in &rows {
                let lines = row.idx.map(|y| &plane[y * pixels.size..][..pixels.size]);
                values.extend(columns.iter().map(|column| column.sum(&row.weigh(&lines, column))));
            }
        }
        values
    }
}

/// The position of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the scale.
    pub scale_idx: usize,
    /// Row among the scale's tiles.
    pub row: usize,
    /// Column among the scale's tiles.
    pub column: usize,
    /// Tiles per side at this scale.
    pub n_splits: usize,
}

/// The tiles of a prepared picture, by scale from the smallest, row by row: each (3, tile, tile).
pub fn split<'a>(pixels: &'a Pixels, scales: &'a Scales) -> impl Iterator<Item = Vec<f32>> + 'a {
    (0..scales.n_tiles()).map(|tile_idx| scales.tile(pixels, tile_idx))
}

/// The four source positions of one output position along one axis, and their weights.
struct Taps {
    idx: [usize; 4],
    weights: [f32; 4],
}

impl Taps {
    /// Weighted sum of four values.
    fn sum(&self, values: &[f32; 4]) -> f32 {
        (0..4).map(|tap| values[tap] * self.weights[tap]).sum()
    }

    /// For each tap of `column`, that column's value over four lines, weighted for this row.
    fn weigh(&self, lines: &[&[f32]; 4], column: &Taps) -> [f32; 4] {
        column.idx.map(|x| self.sum(&[lines[0][x], lines[1][x], lines[2][x], lines[3][x]]))
    }
}

/// Taps of the output positions `first..first + n` when `n_in` positions are resized to `n_out`: align_corners=False,
/// antialias=False, Keys' cubic with a = -0.75, positions outside clamped to the border.
fn taps(n_in: usize, n_out: usize, first: usize, n: usize) -> Vec<Taps> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = n_in as f32 / n_out as f32;
    let tap = |x: usize| {
        let at = scale * (x as f32 + 0.5) - 0.5;
        let start = at.floor();
        let t = at - start;
        let idx = std::array::from_fn(|tap| (start as isize + tap as isize - 1).clamp(0, n_in as isize - 1) as usize);
        Taps { idx, weights: [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)] }
    };
    (first..first + n).map(tap).collect()
}

/// Merges the tiles' features, taken one tile at a time, into one grid of tokens.
///
/// A scale's tiles form one large grid, which is averaged down to the grid of a single tile
/// (`interpolate(mode="area")`); the scales' channels are concatenated. Every tile has the same grid, so each token is
/// the mean over a block of `n_splits` x `n_splits` features, and a tile can be added as soon as it is encoded.
#[derive(Debug, Clone)]
pub struct Merge {
    scales: Scales,
    grid: usize,
    n_channels: usize,
    n_pushed: usize,
    merged: Vec<f32>, // (grid * grid, n_scales * n_channels)
}

impl Merge {
    /// Nothing merged yet; a tile's features are (grid * grid, n_channels).
    pub fn new(scales: &Scales, grid: usize, n_channels: usize) -> Self {
        let merged = vec![0.0; grid * grid * scales.scales.len() * n_channels];
        Self { scales: scales.clone(), grid, n_channels, n_pushed: 0, merged }
    }

    /// Number of tiles taken so far.
    pub fn n_pushed(&self) -> usize {
        self.n_pushed
    }

    /// Adds the next tile's features: (grid * grid, n_channels).
    ///
    /// # Errors
    /// [`Error::Shape`] if the features have another size, or if there are more tiles than the scales have.
    pub fn push(&mut self, features: &[f32]) -> Result<()> {
        let shape = |expected: String, found: String| {
            Err(Error::Shape { tensor: format!("features of tile {}", self.n_pushed), expected, found })
        };
        let expected = self.grid * self.grid * self.n_channels;
        if features.len() != expected {
            return shape(format!("{expected} values"), format!("{} values", features.len()));
        }
        let n_tiles = self.scales.n_tiles();
        if self.n_pushed >= n_tiles {
            return shape(format!("{n_tiles} tiles"), "one more".to_owned());
        }
        let place = self.scales.place(self.n_pushed);
        let width = self.scales.scales.len() * self.n_channels;
        let share = 1.0 / (place.n_splits * place.n_splits) as f32;
        for (idx, feature) in features.chunks_exact(self.n_channels).enumerate() {
            let y = (place.row * self.grid + idx / self.grid) / place.n_splits;
            let x = (place.column * self.grid + idx % self.grid) / place.n_splits;
            let start = (y * self.grid + x) * width + place.scale_idx * self.n_channels;
            for (sum, &value) in self.merged[start..][..self.n_channels].iter_mut().zip(feature) {
                *sum += value * share;
            }
        }
        self.n_pushed += 1;
        Ok(())
    }

    /// The merged features, (grid * grid, n_scales * n_channels), row by row.
    ///
    /// # Errors
    /// [`Error::Shape`] if tiles are missing.
    pub fn finish(self) -> Result<Vec<f32>> {
        let n_tiles = self.scales.n_tiles();
        if self.n_pushed != n_tiles {
            return Err(Error::Shape {
                tensor: "features".to_owned(),
                expected: format!("{n_tiles} tiles"),
                found: format!("{} tiles", self.n_pushed),
            });
        }
        Ok(self.merged)
    }
}
