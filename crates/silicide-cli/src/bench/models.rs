//! The shapes of the models whose ops are timed, from their published configurations.

/// What of a model's configuration decides shapes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dims {
    /// As `--model` takes it.
    pub(super) name: &'static str,
    pub(super) hidden: usize,
    /// Of the feed-forward layer, or of one expert.
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab: usize,
    pub(super) experts: usize,
    pub(super) experts_per_token: usize,
    /// Key and value heads of linear attention, of 128 elements each.
    pub(super) linear_heads: [usize; 2],
}

/// Elements of a head of linear attention, in both models that have it.
pub(super) const LINEAR_DIM: usize = 128;

pub(super) const LLAMA: Dims = Dims {
    name: "Llama-3-8B",
    hidden: 4096,
    intermediate: 14336,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocab: 128_256,
    experts: 0,
    experts_per_token: 0,
    linear_heads: [0, 0],
};

pub(super) const QWEN_27B: Dims = Dims {
    name: "Qwen3.6-27B",
    hidden: 5120,
    intermediate: 17408,
    heads: 24,
    kv_heads: 4,
    head_dim: 256,
    vocab: 248_320,
    experts: 0,
    experts_per_token: 0,
    linear_heads: [16, 48],
};

pub(super) const QWEN_35B: Dims = Dims {
    name: "Qwen3.6-35B-A3B",
    hidden: 2048,
    intermediate: 512,
    heads: 16,
    kv_heads: 2,
    head_dim: 256,
    vocab: 248_320,
    experts: 256,
    experts_per_token: 8,
    linear_heads: [16, 32],
};

pub(super) const GPT_OSS: Dims = Dims {
    name: "gpt-oss-20b",
    hidden: 2880,
    intermediate: 2880,
    heads: 64,
    kv_heads: 8,
    head_dim: 64,
    vocab: 201_088,
    experts: 32,
    experts_per_token: 4,
    linear_heads: [0, 0],
};

/// Keys that a query of gpt-oss sees in every other layer.
pub(super) const GPT_OSS_WINDOW: usize = 128;

/// For ops that no one of the models has.
pub(super) const ANY: &str = "any";

/// Patches and widths of Qwen3-VL's vision tower, which the Qwen3.6 models share.
pub(super) const VISION: &str = "Qwen3.6 vision";
