//! Model operations, one folder each: contract and checks in `mod.rs`, the CPU form in `cpu.rs`, the form for every GPU in
//! `kernel.metal`, and one test for all devices in `tests.rs`.

mod argmax;
mod attention;
mod batched_matmul;
mod binary;
mod cast;
mod causal_conv1d;
mod check;
mod compare;
mod copy;
mod cumsum;
mod embedding;
mod expert_matmul;
mod expert_schedule;
mod fill;
mod gated_delta_gates;
mod gated_delta_rule;
mod gather;
mod glu;
mod hadamard_transform;
mod head_norm_rope_cache;
mod kv_quantize;
mod kv_quantize_affine;
mod kv_write;
mod l2_norm;
mod layer_norm;
pub mod matmul;
#[cfg(test)]
mod nvidia_tests;
mod parts;
mod penalize;
mod quantized_attention;
mod reduce;
mod resize;
mod rms_norm;
mod rms_norm_gated;
mod rope;
mod rope_multi;
mod router;
mod rows;
mod sample;
mod select;
mod softmax;
mod sort;
#[cfg(test)]
mod tests;
mod top_k;
mod triangular_solve;
mod unary;
mod walk;
mod weighted_reduce;

pub use argmax::{argmax, argmax_into};
pub use attention::{Attention, CacheLayout, Mask, attention, attention_into};
pub use batched_matmul::{batched_matmul, batched_matmul_into};
pub use binary::{Binary, Operand, binary, binary_into};
pub use cast::{cast, cast_into};
pub use causal_conv1d::{CausalConv1d, causal_conv1d, causal_conv1d_into};
pub use compare::{Compare, compare, compare_into};
pub use copy::{concat, copy, copy_into};
pub use cumsum::{Cumsum, cumsum, cumsum_into};
pub use embedding::embedding;
pub use expert_matmul::{ExpertWeight, expert_matmul, expert_matmul_glu, expert_matmul_glu_into, expert_matmul_into};
pub use expert_schedule::{ExpertSchedule, expert_schedule};
pub use fill::{arange, full, full_into};
pub use gated_delta_gates::{DecayRate, GatedDeltaGates, gated_delta_gates, gated_delta_gates_into};
pub use gated_delta_rule::{Decay, GatedDeltaRule, HeadMap, gated_delta_rule, gated_delta_rule_into};
pub use gather::{gather, gather_into, take_along_axis, take_along_axis_into};
pub use glu::{Gate, glu, glu_halves, glu_into};
pub use hadamard_transform::{Hadamard, hadamard_signs, hadamard_transform, hadamard_transform_into};
pub use head_norm_rope_cache::{CacheSlots, HeadNorm, head_norm_rope_cache, head_norm_rope_multi_cache};
pub use kv_quantize::{
    KvCodec, KvCodecOptions, KvDomain, kv_dequantize, kv_dequantize_into, kv_quantize, kv_quantize_with,
};
pub use kv_quantize_affine::{
    AffineOptions, AffineRows, kv_dequantize_affine, kv_dequantize_affine_into, kv_quantize_affine,
};
pub use kv_write::{kv_write, kv_write_with};
pub use l2_norm::{l2_norm, l2_norm_into};
pub use layer_norm::{layer_norm, layer_norm_into};
pub use matmul::{
    Precision, Product, Weight, matmul, matmul_each, matmul_each_into, matmul_glu, matmul_glu_into, matmul_into,
};
pub use penalize::{Penalties, penalize_in_place};
pub use quantized_attention::{QuantizedRows, quantized_attention, quantized_attention_into};
pub use reduce::{Reduce, reduce, reduce_all, reduce_all_into, reduce_into};
pub use resize::{Resize, ResizeFilter, resize, resize_into};
pub use rms_norm::{RmsNormOptions, rms_norm, rms_norm_into, rms_norm_with};
pub use rms_norm_gated::{rms_norm_gated, rms_norm_gated_into};
pub use rope::{Llama3Scaling, Pairing, Rope, RopeFrequencies, YarnScaling, rope, rope_in_place, rope_into};
pub use rope_multi::{
    FallbackAxis, RopeMulti, RopeMultiMode, RopeSections, rope_multi, rope_multi_in_place, rope_multi_into,
};
pub use router::{ExpertGroups, GroupScore, Router, RouterScore, router, router_into};
pub use sample::{Sampling, sample, sample_into, sample_state};
pub use select::{select, select_into};
pub use softmax::{Softmax, softmax, softmax_into};
pub use sort::{Order, argsort, argsort_into, sort, sort_into};
pub use top_k::{top_k, top_k_into};
pub use triangular_solve::{triangular_solve, triangular_solve_into};
pub use unary::{Unary, unary, unary_into};
pub use weighted_reduce::{WeightedReduce, weighted_reduce, weighted_reduce_into};
