//! What the command line does, apart from measuring and making models up.

pub mod ask;
pub mod convert;
pub mod inspect;
