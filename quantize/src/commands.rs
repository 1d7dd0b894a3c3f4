//! The commands of the tool, except those that measure and the random models.

pub mod ask;
pub mod convert;
pub mod inspect;
