// kv_quantize, kv_dequantize. To quantise, LANES neighbouring lanes take a row, each EACH elements that follow one another, and then the
// same head of other tokens. Rows of floats are read once, and codes written once. The host defines DIM; WHOLE, which says that rows
// of floats and of codes lie aligned; and RING as ring.h has it. To dequantise, a simdgroup takes a row, of which lane l holds
// elements l, l + 32 and so on, PER_LANE of them.

#include "silicide.h"
#include "hadamard.h"
#include "packet.h"
#include "ring.h"

constant constexpr uint SIMDGROUPS = 4;
constant constexpr uint THREADS = 32 * SIMDGROUPS;
constant constexpr uint PER_LANE = DIM / 32;
constant constexpr uint EACH = 16;
constant constexpr uint LANES = DIM / EACH;

// Numbers in the bin of x, which is 0.01 wide, are above as many midpoints as the bin's start says, and maybe one more.
constant constexpr uint BINS = 1024;
inline uint bin_of(float x) { return uint(min(max(x * 100.0f + float(BINS / 2), 0.0f), float(BINS - 1))); }

// The codes of EACH elements as words, of which 5 bits share the last with the next lane, whose part comes before its own.
template <uint BITS>
inline void store_codes(device uint* row, thread const uint (&codes)[EACH], uint part, bool present) {
  constexpr uint WORDS = (EACH * BITS + 31) / 32;
  uint words[WORDS] = {};
  for (uint i = 0; i < EACH; ++i) {
    uint bit = i * BITS;
    words[bit / 32] |= codes[i] << (bit % 32);
    if (bit % 32 + BITS > 32) {
      words[bit / 32 + 1] |= codes[i] >> (32 - bit % 32);
    }
  }
  uint count = WORDS;
  if (EACH * BITS % 32 == 0) {
    row += part * WORDS;
  } else {
    uint before = simd_shuffle_xor(words[WORDS - 1], ushort(1));
    row += part * EACH * BITS / 32;
    if (part % 2 == 0) {
      count = WORDS - 1;
    } else {
      for (uint w = WORDS - 1; w > 0; --w) {
        words[w] = words[w] << 16 | words[w - 1] >> 16;
      }
      words[0] = words[0] << 16 | before;
    }
  }
  if (!present) {
    return;
  }
  if (WHOLE && EACH * BITS % 32 == 0) {
    store_words(row, words);
    return;
  }
  for (uint w = 0; w < WORDS; ++w) {
    if (w < count) {
      row[w] = words[w];
    }
  }
}

template <typename T>
kernel void kv_quantize(
    device const T* x [[buffer(0)]],
    device const uint* positions [[buffer(1)]],
    device const float* table [[buffer(2)]],
    device const uchar* starts [[buffer(3)]],
    device const uint* signs [[buffer(4)]],
    device uint* codes [[buffer(5)]],
    device float* norms [[buffer(6)]],
    constant Params& p [[buffer(7)]],
    uint group [[threadgroup_position_in_grid]],
    uint threadgroups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup int newest_of[SIMDGROUPS];
  threadgroup float midpoints[256];
  threadgroup uint start_words[BINS / 4];
  uint count = 1u << p.bits;
  for (uint i = thread_index; i < count; i += THREADS) {
    midpoints[i] = table[count + i];
  }
  for (uint i = thread_index; i < BINS / 4; i += THREADS) {
    start_words[i] = ((device const uint*)starts)[i];
  }
  threadgroup const uchar* start = (threadgroup const uchar*)start_words;
  threadgroup_barrier(mem_flags::mem_threadgroup);

  uint tokens = p.rows / p.heads;
  // Lanes of a token, and tokens at once, of which there is one at least.
  uint width = p.heads * LANES;
  uint together = threadgroups * THREADS / width;
  uint index = group * THREADS + thread_index;
  uint first = index / width;
  uint head = (index - first * width) / LANES;
  uint part = lane % LANES;
  x += ulong(head) * p.row_strides[1] + part * EACH;
  codes += ulong(head) * p.code_strides[1];
  norms += ulong(head) * p.norm_strides[1];
  float factors[EACH];
  for (uint i = 0; i < EACH; ++i) {
    factors[i] = p.has_signs && negative_sign(signs, part * EACH + i) ? -p.rotation_scale : p.rotation_scale;
  }
  int newest = newest_position(positions, tokens, newest_of, thread_index, THREADS, lane);
  // A simdgroup goes as one: lanes without a row have zeros, as the others talk to them.
  for (uint begin = 0; begin < tokens; begin += together) {
    uint token = begin + first;
    uint slot = p.capacity;
    // Rows are asked for before it is known whether they have a place.
    device const T* from = x + ulong(token) * p.row_strides[0];
    Packet<T, EACH> packet = Packet<T, EACH>::zeros();
    if (first < together && token < tokens) {
      packet = WHOLE ? Packet<T, EACH>::load(from) : Packet<T, EACH>::gather(from, 1, EACH);
      slot = row_of(positions[token], newest, p.capacity);
    }
    bool present = slot < p.capacity;
    float values[EACH];
    for (uint i = 0; i < EACH; ++i) {
      values[i] = float(packet.get(i)) * factors[i];
    }
    hadamard_registers(values, EACH);
    hadamard_lanes(values, part, LANES);

    float squares = 0.0f;
    for (uint i = 0; i < EACH; ++i) {
      squares += values[i] * values[i];
    }
    for (uint other = 1; other < LANES / p.norms; other *= 2) {
      squares += simd_shuffle_xor(squares, ushort(other));
    }
    float norm = metal::precise::sqrt(squares);
    norm = norm < INFINITY ? norm : NAN;
    float to_unit = norm > 0.0f ? p.unit / norm : 0.0f;
    uint all[EACH];
    for (uint i = 0; i < EACH; ++i) {
      float unit = values[i] * to_unit;
      uint code = start[bin_of(unit)];
      all[i] = code + (unit > midpoints[code] ? 1 : 0);
    }
    device uint* to = codes + ulong(slot) * p.code_strides[0];
    switch (p.bits) {
      case 4: store_codes<4>(to, all, part, present); break;
      case 5: store_codes<5>(to, all, part, present); break;
      case 6: store_codes<6>(to, all, part, present); break;
      default: store_codes<8>(to, all, part, present);
    }
    if (present && part % (LANES / p.norms) == 0) {
      norms[ulong(slot) * p.norm_strides[0] + part / (LANES / p.norms) * p.norm_strides[2]] = norm;
    }
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
