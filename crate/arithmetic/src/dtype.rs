//! The number formats of tensors.

/// Number formats of tensors, with ggml's names, numbers and block layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)] // the names are the documentation
pub enum Dtype {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4_NL,
    IQ4_XS,
}

impl Dtype {
    /// Every format, in the order of [`Dtype::name`] listings.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::IQ4_NL,
        Self::IQ4_XS,
    ];

    /// ggml's id and name, weights per block, bytes per block.
    const fn traits(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::F32 => (0, "f32", 1, 4),
            Self::F16 => (1, "f16", 1, 2),
            Self::Bf16 => (30, "bf16", 1, 2),
            Self::Q4_0 => (2, "q4_0", 32, 18),
            Self::Q4_1 => (3, "q4_1", 32, 20),
            Self::Q5_0 => (6, "q5_0", 32, 22),
            Self::Q5_1 => (7, "q5_1", 32, 24),
            Self::Q8_0 => (8, "q8_0", 32, 34),
            Self::Q2K => (10, "q2_k", 256, 84),
            Self::Q3K => (11, "q3_k", 256, 110),
            Self::Q4K => (12, "q4_k", 256, 144),
            Self::Q5K => (13, "q5_k", 256, 176),
            Self::Q6K => (14, "q6_k", 256, 210),
            Self::IQ4_NL => (20, "iq4_nl", 32, 18),
            Self::IQ4_XS => (23, "iq4_xs", 256, 136),
        }
    }

    /// ggml's id of the format, as in tensor infos.
    pub const fn id(self) -> u32 {
        self.traits().0
    }

    /// ggml's name in lower case, as on the command line.
    pub const fn name(self) -> &'static str {
        self.traits().1
    }

    /// Weights per block; a row is a whole number of blocks.
    pub const fn block_len(self) -> usize {
        self.traits().2
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        self.traits().3
    }

    /// Bytes of a row of `n_cols` weights, a multiple of the block length.
    pub const fn row_bytes(self, n_cols: usize) -> usize {
        n_cols / self.block_len() * self.block_bytes()
    }

    /// The format with ggml's id `id`, if it is one of these.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.id() == id)
    }
}
