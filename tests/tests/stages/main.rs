//! Every stage against PyTorch, on the small random checkpoints of `golden/`: each starts from the golden output of the stage before it, so that a
//! failure names its stage. Then the whole way, on several ranks and in 4 bits; then other implementations as a second opinion.

mod candle;
mod decoder;
mod families;
mod golden;
mod image;
mod large;
mod lies;
mod llama_cpp;
mod pair;
mod parts;
mod quantized;
mod qwen2;
mod whole;
