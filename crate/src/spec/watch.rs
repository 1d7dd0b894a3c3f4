//! For measuring a model: the inputs of its large matrices, and the residual stream after each layer.

use crate::device::Device;
use crate::error::Result;
use std::cell::RefCell;
use std::rc::Rc;

/// A part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The language model. The input of its output matrix is seen at [`Point::Mlp`] of a layer after the last.
    Decoder,
    /// The image tower.
    Tower,
    /// Between tower and decoder; every product counts as a layer, whose input is seen at [`Point::Mlp`].
    Connector,
}

/// A point within a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// Input of the matrices q, k and v: (n_tokens, dim).
    Attention,
    /// Input of the attention's output matrix: (n_tokens, n_heads * head_dim), this rank's heads.
    Heads,
    /// Input of the gate and up matrices: (n_tokens, dim).
    Mlp,
    /// Input of the down matrix: (n_tokens, hidden_dim), this rank's columns.
    Hidden,
    /// The residual stream after the layer: (n_tokens, dim).
    Residual,
}

/// Where a value was observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Which part.
    pub part: Part,
    /// Which of its layers.
    pub layer: usize,
    /// Which point in it.
    pub point: Point,
}

/// An observer of one rank's model; none by default.
#[derive(Clone, Default)]
pub struct Watch(Option<Watcher>);

type Watcher = Rc<RefCell<dyn FnMut(Place, usize, &[f32])>>;

impl Watch {
    /// `see` is called for every value: where, how many tokens, and the value (n_tokens, width).
    pub fn new(see: impl FnMut(Place, usize, &[f32]) + 'static) -> Self {
        Self(Some(Rc::new(RefCell::new(see))))
    }

    /// Shows the observer, if there is one, the rows of `value`.
    pub(crate) async fn see<D: Device>(&self, device: &mut D, place: Place, value: &D::Buffer) -> Result<()> {
        if let Some(see) = &self.0 {
            let values = device.download(value).await?;
            see.borrow_mut()(place, device.n_rows(value), &values);
        }
        Ok(())
    }
}
