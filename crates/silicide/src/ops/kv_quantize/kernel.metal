// kv_quantize, kv_dequantize: one simdgroup a row, of which lane l holds elements l, l + 32 and so on, PER_LANE of
// them. Rows of floats and of codes are read once and written once, side by side. The host defines PER_LANE, and RING as
// ring.h has it.

#include "silicide.h"
#include "hadamard.h"
#include "ring.h"

constant constexpr uint SIMDGROUPS = 4;

template <typename T>
kernel void kv_quantize(
    device const T* x [[buffer(0)]],
    device const uint* positions [[buffer(1)]],
    device const float* table [[buffer(2)]],
    device const uint* signs [[buffer(3)]],
    device uint* codes [[buffer(4)]],
    device float* norms [[buffer(5)]],
    constant Params& p [[buffer(6)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup int newest_of[SIMDGROUPS];
  threadgroup float midpoints[256];
  threadgroup uchar staged[SIMDGROUPS * 32 * PER_LANE];
  for (uint i = thread_index; i < 1u << p.bits; i += 32 * SIMDGROUPS) {
    midpoints[i] = table[(1u << p.bits) + i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  uint row = group * SIMDGROUPS + simdgroup;
  uint token = row / p.heads;
  uint head = row % p.heads;
  int newest = newest_position(positions, p.rows / p.heads, newest_of, thread_index, 32 * SIMDGROUPS, lane);
  uint slot = row_of(positions[min(token, p.rows / p.heads - 1)], newest, p.capacity);
  // The lanes of a row that is not there, or that has no slot, work on zeros: barriers and sums need all of them.
  bool present = row < p.rows && slot < p.capacity;
  x += present ? ulong(token) * p.row_strides[0] + ulong(head) * p.row_strides[1] : 0;

  float values[PER_LANE];
  for (uint i = 0; i < PER_LANE; ++i) {
    uint at = lane + 32 * i;
    float value = present ? float(x[at]) * p.rotation_scale : 0.0f;
    values[i] = p.has_signs && negative_sign(signs, at) ? -value : value;
  }
  hadamard_registers(values, PER_LANE);
  hadamard_lanes(values, lane, 32);

  // Every lane has elements of both halves, so that no sum is inside a branch.
  float squares[2] = {0.0f, 0.0f};
  for (uint i = 0; i < PER_LANE; ++i) {
    squares[i / (PER_LANE / 2)] += values[i] * values[i];
  }
  squares[0] = simd_sum(squares[0]);
  squares[1] = simd_sum(squares[1]);
  if (p.norms == 1) {
    squares[0] += squares[1];
    squares[1] = squares[0];
  }
  float norm[2];
  float to_unit[2];
  for (uint i = 0; i < 2; ++i) {
    norm[i] = metal::precise::sqrt(squares[i]);
    norm[i] = norm[i] < INFINITY ? norm[i] : NAN;
    to_unit[i] = norm[i] > 0.0f ? p.unit / norm[i] : 0.0f;
  }

  threadgroup uchar* row_codes = staged + simdgroup * 32 * PER_LANE;
  for (uint i = 0; i < PER_LANE; ++i) {
    float unit = values[i] * to_unit[i / (PER_LANE / 2)];
    uint code = 0;
    for (uint step = 1u << (p.bits - 1); step > 0; step /= 2) {
      code += unit > midpoints[code + step - 1] ? step : 0;
    }
    row_codes[lane + 32 * i] = uchar(code);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (!present) {
    return;
  }
  codes += ulong(slot) * p.code_strides[0] + ulong(head) * p.code_strides[1];
  norms += ulong(slot) * p.norm_strides[0] + ulong(head) * p.norm_strides[1];
  for (uint w = lane; w < PER_LANE * p.bits; w += 32) {
    uint word = 0;
    for (uint i = 32 * w / p.bits; i * p.bits < 32 * (w + 1); ++i) {
      int shift = int(i * p.bits) - int(32 * w);
      uint code = row_codes[i];
      word |= shift < 0 ? code >> -shift : code << shift;
    }
    codes[w] = word;
  }
  if (lane < p.norms) {
    norms[lane * p.norm_strides[2]] = lane == 0 ? norm[0] : norm[1];
  }
}

template <typename T>
kernel void kv_dequantize(
    device const uint* codes [[buffer(0)]],
    device const float* norms [[buffer(1)]],
    device const float* table [[buffer(2)]],
    device const uint* signs [[buffer(3)]],
    device T* out [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float levels[256];
  for (uint i = thread_index; i < 1u << p.bits; i += 32 * SIMDGROUPS) {
    levels[i] = table[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  uint row = group * SIMDGROUPS + simdgroup;
  if (row >= p.rows) {
    return;
  }
  uint head = row / p.capacity;
  uint slot = row % p.capacity;
  codes += ulong(slot) * p.code_strides[0] + ulong(head) * p.code_strides[1];
  norms += ulong(slot) * p.norm_strides[0] + ulong(head) * p.norm_strides[1];
  out += ulong(slot) * p.row_strides[0] + ulong(head) * p.row_strides[1];
  float from_unit[2];
  from_unit[0] = norms[0] / p.unit;
  from_unit[1] = p.norms == 1 ? from_unit[0] : norms[p.norm_strides[2]] / p.unit;

  float values[PER_LANE];
  for (uint i = 0; i < PER_LANE; ++i) {
    uint bit = (lane + 32 * i) * p.bits;
    uint shift = bit % 32;
    uint code = codes[bit / 32] >> shift;
    if (shift + p.bits > 32) {
      code |= codes[bit / 32 + 1] << (32 - shift);
    }
    values[i] = levels[code & ((1u << p.bits) - 1)] * from_unit[i / (PER_LANE / 2)];
  }
  if (!p.rotated) {
    hadamard_registers(values, PER_LANE);
    hadamard_lanes(values, lane, 32);
    for (uint i = 0; i < PER_LANE; ++i) {
      bool negative = p.has_signs && negative_sign(signs, lane + 32 * i);
      values[i] *= negative ? -p.rotation_scale : p.rotation_scale;
    }
  }
  for (uint i = 0; i < PER_LANE; ++i) {
    out[lane + 32 * i] = T(values[i]);
  }
}

instantiate_floats("kv_quantize", kv_quantize)
instantiate_floats("kv_dequantize", kv_dequantize)
