//! What passes through a model, for those who measure it: the inputs of its large matrices, and the residual stream after each layer.

use std::cell::RefCell;
use std::rc::Rc;

/// A part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The language model. The input of its output matrix is seen at [`Point::Mlp`] of a layer after the last.
    Decoder,
    /// The image tower.
    Tower,
    /// Between tower and decoder; every product is a layer, whose input is seen at [`Point::Mlp`].
    Connector,
}

/// A point in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// Into the matrices q, k and v: (n_tokens, dim).
    Attention,
    /// Into the attention's output matrix: (n_tokens, n_heads * head_dim), this rank's heads.
    Heads,
    /// Into the gate and up matrices: (n_tokens, dim).
    Mlp,
    /// Into the down matrix: (n_tokens, hidden_dim), this rank's columns.
    Hidden,
    /// The residual stream after the layer: (n_tokens, dim).
    Residual,
}

/// Where a value was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// In which part.
    pub part: Part,
    /// In which of its layers.
    pub layer: usize,
    /// Where there.
    pub point: Point,
}

/// Somebody who watches one rank's model; nobody by default.
#[derive(Clone, Default)]
pub struct Watch(Option<Watcher>);

type Watcher = Rc<RefCell<dyn FnMut(Place, usize, &[f32])>>;

impl Watch {
    /// `see` hears of every value: where, how many tokens, and the value (n_tokens, width).
    pub fn new(see: impl FnMut(Place, usize, &[f32]) + 'static) -> Self {
        Self(Some(Rc::new(RefCell::new(see))))
    }

    /// Tells whoever watches.
    pub(crate) fn see(&self, part: Part, layer: usize, point: Point, n_tokens: usize, value: &[f32]) {
        if let Some(see) = &self.0 {
            see.borrow_mut()(Place { part, layer, point }, n_tokens, value);
        }
    }
}
