//! The weights of a linear layer, y = x W^T + b, as one rank holds them.
//!
//! Split by rows, a rank computes some of the outputs ([`Linear`]). Split by columns, it computes part of every
//! output's sum ([`LinearSum`]), and the parts are summed over the ranks before the bias is added.

use crate::device::Device;
use crate::device::shard::Tensors;
use crate::error::Result;

/// Split by rows, or whole.
pub struct Linear<D: Device> {
    /// (this rank's outputs, n_inputs)
    pub weight: D::Matrix,
    /// (1, this rank's outputs)
    pub bias: Option<D::Buffer>,
}

impl<D: Device> Linear<D> {
    /// Takes `name.weight` and, if the model has it, `name.bias`.
    pub fn new(name: &str, tensors: &mut Tensors<D>) -> Result<Self> {
        Ok(Self { weight: tensors.matrix(&format!("{name}.weight"))?, bias: tensors.bias(name)? })
    }
}

/// Split by columns.
pub struct LinearSum<D: Device> {
    /// This rank's columns, in the parts given by [`crate::device::shard::Shard::parts`].
    pub parts: Vec<D::Matrix>,
    /// Column of the input that is the first part's first: 0 if the input is only this rank's columns.
    pub first: usize,
    /// (1, n_outputs): whole, added after the sum.
    pub bias: Option<D::Buffer>,
}

impl<D: Device> LinearSum<D> {
    /// Takes all parts of `name.weight` and, if the model has it, the whole of `name.bias`.
    pub fn new(name: &str, first: usize, tensors: &mut Tensors<D>) -> Result<Self> {
        Ok(Self { parts: tensors.parts(&format!("{name}.weight"))?, first, bias: tensors.bias(name)? })
    }
}
