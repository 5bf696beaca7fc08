//! ggml's tensor types by number.

use crate::DType;
use crate::formats::StoredType;
use crate::quant::GgmlFormat;

/// How the name of a type that ggml did not have when this was written starts.
pub(super) const UNKNOWN: &str = "ggml type ";

/// The type with this number, and the elements and bytes of its blocks where they are known.
pub(super) fn stored_type(id: u32) -> (StoredType, Option<(usize, usize)>) {
    if let Some(format) = GgmlFormat::from_id(id) {
        return (StoredType::Ggml(format), Some((format.block_elements(), format.block_bytes())));
    }
    if let Some(&(_, dtype)) = DENSE.iter().find(|(n, _)| *n == id) {
        return (StoredType::Dense(dtype), Some((1, dtype.size())));
    }
    match OTHER.iter().find(|(n, ..)| *n == id) {
        Some(&(_, name, block, bytes)) => (StoredType::Other(name.into()), Some((block, bytes))),
        None => (StoredType::Other(format!("{UNKNOWN}{id}").into()), None),
    }
}

const DENSE: &[(u32, DType)] =
    &[(0, DType::F32), (1, DType::F16), (24, DType::I8), (26, DType::I32), (27, DType::I64), (30, DType::BF16)];

/// Types without arithmetic here: number, name, elements and bytes of a block.
const OTHER: &[(u32, &str, usize, usize)] = &[
    (9, "Q8_1", 32, 36),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (25, "I16", 1, 2),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];
