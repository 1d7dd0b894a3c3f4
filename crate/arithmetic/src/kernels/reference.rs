//! The definition of the products: plain loops, integers first, then f32 in the order of the blocks.

use super::{Sums, Tile};
use crate::layout::{Factors, Form, GROUP, Group};

/// `out` [token][row] = the products of a group of 8 rows with a tile of tokens.
pub(super) fn multiply(group: &Group, tile: &Tile, out: &mut Sums) {
    *out = Default::default();
    for block in 0..tile.n_blocks {
        for row in 0..GROUP {
            let quants = group.quants(block, row);
            let Factors { factor, offset, scale, min } = group.factors(block, row);
            for (token, out) in out[..tile.n_tokens].iter_mut().enumerate() {
                let (mut dots, mut sums) = ([0; 2], [0; 2]);
                for (col, &quant) in quants.iter().enumerate() {
                    let activation = tile.quant(block, token, col);
                    dots[col / 16] += quant as i32 * activation;
                    sums[col / 16] += activation;
                }
                let product = scale[0] * dots[0] + scale[1] * dots[1];
                let correction = min[0] * sums[0] + min[1] * sums[1];
                let weighted = if group.layout.form == Form::Q4K {
                    factor * product as f32 - offset * correction as f32
                } else {
                    factor * (product - correction) as f32
                };
                out[row] += tile.scale(block, token) * weighted;
            }
        }
    }
}
