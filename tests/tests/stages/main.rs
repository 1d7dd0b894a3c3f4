//! Every stage compared with PyTorch, on the small random checkpoints in `golden/`: each starts from the golden output
//! of the previous stage, so that a failure names its stage. Then the whole pipeline, on several ranks and in 4 bits;
//! then other implementations as a second opinion.

mod candle;
mod decoder;
mod families;
mod golden;
mod image;
mod images;
mod large;
mod lies;
mod llama_cpp;
mod pair;
mod parts;
mod plain;
mod quantized;
mod qwen2;
mod whole;
