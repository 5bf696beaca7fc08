// kv_quantize and kv_dequantize of many rows. A simdgroup takes the rows of one head of eight tokens, or eight rows of a head, as the columns of
// products with Hadamard's matrix of 16 x 16, by which tensor cores do four of the butterflies; the others are between registers of a thread.
//
// Lane (g, t) = (lane / 4, lane % 4) has of row g, on the side of products' factors, the runs of eight elements t, t + 4, t + 8 ...; and of rows
// 2 * t and 2 * t + 1, on the side of sums, the runs g, g + 8, g + 16 ... The host defines DIM, BITS, NORMS, SIMDGROUPS, SCALAR, the
// type of factors, which is that of rows to quantise, OUT, that of rows that were quantised, and RING as ring.h has it. Rows lie aligned for packets.
//
// What a lane looks up is in 32 copies, so that each lane has a bank of its own.

#include "silicide.h"
#include "hadamard.h"
#include "nvidia.h"
#include "ring.h"

constant constexpr uint THREADS = 32 * SIMDGROUPS;
constant constexpr uint ROWS = 8;
// Runs of eight elements that a lane has of a row as factors, and as sums.
constant constexpr uint FACTORS = DIM / 32;
constant constexpr uint RUNS = DIM / 64;
// Products, each of which leaves two elements of a run.
constant constexpr uint PRODUCTS = DIM / 16;
constant constexpr uint LEVELS = 1u << BITS;
constant constexpr uint COPIES = 32;
constant constexpr uint CHUNKS = COPIES / 4;
// Norms that a lane has elements of.
constant constexpr uint HALVES = NORMS == 2 && RUNS > 1 ? 2 : 1;

// The element of the matrix of 16 x 16: a power of two that is near the one that makes rows of DIM keep their norms.
constant constexpr float ELEMENT = DIM == 64 ? 0.125f : 0.0625f;

inline void hadamard_factors(thread uint* a, uint lane) {
  uint g = lane / 4;
  uint t = lane % 4;
  uint one = as_type<ushort>(SCALAR(ELEMENT));
  one |= one << 16;
  // Rows are (element of a pair, run) and columns (run, element of a pair).
  uint low = popcount(g & t) % 2 ? one ^ 0x80008000u : one;
  uint high = g / 4 ? low ^ 0x80008000u : low;
  a[0] = low;
  a[1] = low ^ 0x80000000u;
  a[2] = high;
  a[3] = high ^ 0x80000000u;
}

// Adds products with factors: what they leave of element h of pair w of run i of row 2 * t + r is in sums[2 * h + r][4 * i + w].
inline void products(thread float (&sums)[4][PRODUCTS], thread const uint* a, thread const uint4 (&factors)[FACTORS]) {
  for (uint i = 0; i < RUNS; ++i) {
    for (uint w = 0; w < 4; ++w) {
      uint b[2] = {factors[2 * i][w], factors[2 * i + 1][w]};
      float four[4] = {sums[0][4 * i + w], sums[1][4 * i + w], sums[2][4 * i + w], sums[3][4 * i + w]};
      multiply(four, a, b);
      for (uint c = 0; c < 4; ++c) {
        sums[c][4 * i + w] = four[c];
      }
    }
  }
}

// What a simdgroup works on: rows first to first + 7 of a head, then those `step` further on. Neighbouring simdgroups have other heads.
struct Share {
  uint head;
  uint first;
  uint step;
};
inline Share share_of(uint simdgroup, uint simdgroups, uint heads, uint rows) {
  uint together = simdgroups / heads;
  uint block = simdgroup / heads;
  return {simdgroup % heads, block < together ? block * ROWS : rows, together * ROWS};
}

// The signs of eight elements, where 16 bits have theirs.
inline uint4 sign_bits(device const uint* signs, uint run) {
  uint bits = signs[run / 4] >> run % 4 * 8;
  uint4 words;
  for (uint w = 0; w < 4; ++w) {
    words[w] = (bits >> 2 * w & 1) << 15 | (bits >> (2 * w + 1) & 1) << 31;
  }
  return words;
}

// Numbers within RANGE of zero lie in PLACES places, each with one midpoint of levels at most. The sum of what a place holds and of the bits of a
// float from 1 to 2, whose fraction begins with the number of the place, has the code as its first eight bits.
constant constexpr uint PLACES = 5 * LEVELS / 2;
constant constexpr float RANGE = 4.5f;
inline uint code_of(threadgroup const uint* places, float x) {
  uint bits = as_type<uint>(fma(saturated(x), float(PLACES - 1) / float(4 * LEVELS), 1.0f));
  uint place = hidden(bits >> (21 - BITS)) - (0x3f800000u >> (21 - BITS));
  return bits + places[place * COPIES];
}

// The first bytes of four words.
inline uint first_bytes(thread const uint* words) {
  return low_halves(pick_bytes(words[0], words[1], 0x73), pick_bytes(words[2], words[3], 0x73));
}

// What four bytes have in their low bits, without gaps.
inline uint join(uint bytes) {
  constexpr uint CODE = LEVELS - 1;
  constexpr uint PAIR = LEVELS * LEVELS - 1;
  if (BITS == 8) {
    return bytes;
  }
  bytes = (bytes & CODE * 0x10001u) | (bytes >> (8 - BITS) & CODE * (LEVELS * 0x10001u));
  return (bytes & PAIR) | (bytes >> (16 - 2 * BITS) & PAIR << 2 * BITS);
}

// And back.
inline uint spread(uint codes) {
  constexpr uint CODE = LEVELS - 1;
  constexpr uint PAIR = LEVELS * LEVELS - 1;
  if (BITS == 8) {
    return codes;
  }
  codes = (codes & PAIR) | (codes << (16 - 2 * BITS) & PAIR << 16);
  return (codes & CODE * 0x10001u) | (codes << (8 - BITS) & CODE * 0x1000100u);
}

// Eight codes: BITS bytes.
inline void store_eight(device uchar* to, uint first, uint second) {
  first = join(first);
  second = join(second);
  if (BITS == 8) {
    *(device uint2*)to = uint2(first, second);
    return;
  }
  uint low = first | second << 4 * BITS % 32;
  uint high = second >> (32 - 4 * BITS);
  if (BITS == 4) {
    *(device uint*)to = low;
  } else if (BITS == 6) {
    device ushort* halves = (device ushort*)to;
    halves[0] = ushort(low);
    halves[1] = ushort(low >> 16);
    halves[2] = ushort(high);
  } else {
    for (uint i = 0; i < 4; ++i) {
      to[i] = uchar(low >> 8 * i);
    }
    to[4] = uchar(high);
  }
}

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void kv_quantize_many(
    device const SCALAR* x [[buffer(0)]],
    device const uint* positions [[buffer(1)]],
    device const uint* places [[buffer(2)]],
    device const uint* signs [[buffer(3)]],
    device uchar* codes [[buffer(4)]],
    device float* norms [[buffer(5)]],
    constant Params& p [[buffer(6)]],
    threadgroup uint4* table [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint threadgroups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup int newest_of[SIMDGROUPS];
  threadgroup uint4 turned[DIM / 8];
  uint thread_index = simdgroup * 32 + lane;
  uint tokens = p.rows / p.heads;
  uint g = lane / 4;
  uint t = lane % 4;
  Share share = share_of(group * SIMDGROUPS + simdgroup, threadgroups * SIMDGROUPS, p.heads, tokens);
  x += ulong(share.head) * p.row_strides[1] + 8 * t;
  codes += 4 * ulong(share.head) * p.code_strides[1];
  norms += ulong(share.head) * p.norm_strides[1];
  // A block of rows is on its way while codes are found.
  threadgroup uint4* staged = table + PLACES * CHUNKS + simdgroup * (FACTORS * 32) + lane;
  auto load = [&](uint token) {
    for (uint f = 0; f < FACTORS; ++f) {
      copy_sixteen(shared_address(staged + f * 32), x + ulong(token) * p.row_strides[0] + 32 * f, token < tokens);
    }
    end_copies();
  };
  auto position_of = [&](uint token) { return token < tokens ? positions[token] : ~0u; };
  // No launch writes these.
#pragma unroll 1
  for (uint i = thread_index; i < PLACES; i += THREADS) {
    uint4 word = uint4(places[i]);
    // Lanes that write together write to different banks.
    for (uint chunk = 0; chunk < CHUNKS; ++chunk) {
      table[i * CHUNKS + (chunk + lane) % CHUNKS] = word;
    }
  }
  wait_for_inputs();
  uint token = share.first + g;
  load(token);
  uint position = position_of(token);

  int newest = newest_position(positions, tokens, newest_of, thread_index, THREADS, lane);
  if (thread_index < DIM / 8) {
    turned[thread_index] = p.has_signs ? sign_bits(signs, thread_index) : uint4(0);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  uint a[4];
  hadamard_factors(a, lane);
  threadgroup const uint* mine = (threadgroup const uint*)table + lane;
  float to_part = p.unit / (2 * RANGE);
  float to_norm = p.rotation_scale / ELEMENT;
  for (uint first = share.first; first < tokens; first += share.step) {
    uint slot = row_of(position, newest, p.capacity);
    wait_for_copies<0>();
    uint4 factors[FACTORS];
    for (uint f = 0; f < FACTORS; ++f) {
      factors[f] = staged[f * 32] ^ turned[4 * f + t];
    }
    token += share.step;
    load(token);
    position = position_of(token);
    float sums[4][PRODUCTS] = {};
    products(sums, a, factors);
    for (uint c = 0; c < 4; ++c) {
      hadamard_registers(sums[c], PRODUCTS);
    }

    uint to[2];
    float row_norms[2][HALVES];
    for (uint r = 0; r < 2; ++r) {
      to[r] = simd_shuffle(slot, ushort(4 * (2 * t + r)));
      float factor[HALVES];
      for (uint h = 0; h < HALVES; ++h) {
        float squares = 0.0f;
        for (uint j = h * (PRODUCTS / HALVES); j < (h + 1) * (PRODUCTS / HALVES); ++j) {
          squares = fma(sums[r][j], sums[r][j], fma(sums[2 + r][j], sums[2 + r][j], squares));
        }
        // Where a lane has but one run, a half of the row is half of the lanes.
        for (uint other = 4; other < (NORMS > HALVES ? 16 : 32); other *= 2) {
          squares += simd_shuffle_xor(squares, ushort(other));
        }
        float inverse = squares > 0.0f ? rsqrt(squares) : 0.0f;
        factor[h] = to_part * inverse;
        float norm = squares * inverse * to_norm;
        row_norms[r][h] = norm * norm < INFINITY ? norm : NAN;
      }
      device uchar* row = codes + 4 * (ulong(to[r]) * p.code_strides[0]);
      for (uint run = 0; run < RUNS; ++run) {
        uint all[8];
        for (uint e = 0; e < 8; ++e) {
          float y = sums[e % 2 * 2 + r][4 * run + e / 2];
          all[e] = code_of(mine, fma(y, factor[run / (RUNS / HALVES)], 0.5f));
        }
        if (to[r] < p.capacity) {
          store_eight(row + (8 * run + g) * BITS, first_bytes(all), first_bytes(all + 4));
        }
      }
    }
    if (g % (NORMS > HALVES ? 4 : 8) == 0) {
      for (uint r = 0; r < 2; ++r) {
        for (uint h = 0; h < HALVES; ++h) {
          if (to[r] < p.capacity) {
            norms[ulong(to[r]) * p.norm_strides[0] + (NORMS > HALVES ? g / 4 : h) * p.norm_strides[2]] = row_norms[r][h];
          }
        }
      }
    }
  }
}

// Eight codes as bytes.
inline uint2 load_eight(device const uchar* from) {
  if (BITS == 8) {
    return *(device const uint2*)from;
  }
  uint low;
  uint high = 0;
  if (BITS == 4) {
    low = *(device const uint*)from;
  } else if (BITS == 6) {
    device const ushort* halves = (device const ushort*)from;
    low = halves[0] | uint(halves[1]) << 16;
    high = halves[2];
  } else {
    low = from[0] | uint(from[1]) << 8 | uint(from[2]) << 16 | uint(from[3]) << 24;
    high = from[4];
  }
  return uint2(spread(low), spread(low >> 4 * BITS % 32 | (BITS == 4 ? 0 : high << (32 - 4 * BITS))));
}

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void kv_dequantize_many(
    device const uchar* codes [[buffer(0)]],
    device const float* norms [[buffer(1)]],
    device const float* levels [[buffer(2)]],
    device const uint* signs [[buffer(3)]],
    device OUT* out [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    threadgroup uint4* table [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint threadgroups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint4 turned[DIM / 8];
  uint thread_index = simdgroup * 32 + lane;
  uint g = lane / 4;
  uint t = lane % 4;
  Share share = share_of(group * SIMDGROUPS + simdgroup, threadgroups * SIMDGROUPS, p.heads, p.capacity);
  codes += 4 * ulong(share.head) * p.code_strides[1];
  norms += ulong(share.head) * p.norm_strides[1];
  out += ulong(share.head) * p.row_strides[1];
  // Codes of a block are on their way while tables are filled and rows rotated.
  uint2 bytes[FACTORS];
  auto load = [&](uint first) {
    device const uchar* from = codes + 4 * (ulong(min(first + g, p.capacity - 1)) * p.code_strides[0]);
    for (uint f = 0; f < FACTORS; ++f) {
      bytes[f] = load_eight(from + (4 * f + t) * BITS);
    }
  };
  load(share.first);

  // A level as the sum of two numbers.
#pragma unroll 8
  for (uint begin = 0; begin < LEVELS * CHUNKS; begin += THREADS) {
    uint i = begin + thread_index;
    if (i < LEVELS * CHUNKS) {
      float level = levels[i / CHUNKS];
      float rest = level - float(SCALAR(level));
      table[i] = uint4(pack_two(level, rest));
    }
  }
  if (thread_index < DIM / 8) {
    turned[thread_index] = p.has_signs ? sign_bits(signs, thread_index) : uint4(0);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  uint a[4];
  hadamard_factors(a, lane);
  threadgroup const uint* mine = (threadgroup const uint*)table + lane;
  float from_unit = 1.0f / p.unit;
  float from_sums = from_unit * (p.rotation_scale / ELEMENT);
  for (uint first = share.first; first < p.capacity; first += share.step) {
    uint4 factors[FACTORS];
    uint4 rests[FACTORS];
    for (uint f = 0; f < FACTORS; ++f) {
      for (uint w = 0; w < 4; ++w) {
        uint pair = bytes[f][w / 2] >> w % 2 * 16;
        uint first_level = mine[(pair & 255) * COPIES];
        uint second_level = mine[(pair >> 8 & 255) * COPIES];
        factors[f][w] = low_halves(first_level, second_level);
        rests[f][w] = high_halves(first_level, second_level);
      }
    }
    if (p.rotated) {
      uint slot = first + g;
      if (slot < p.capacity) {
        device const float* norm = norms + ulong(slot) * p.norm_strides[0];
        device uint4* to = (device uint4*)(out + ulong(slot) * p.row_strides[0]);
        for (uint f = 0; f < FACTORS; ++f) {
          float scale = norm[f * NORMS / FACTORS * p.norm_strides[2]] * from_unit;
          uint4 words;
          for (uint w = 0; w < 4; ++w) {
            float2 two = (unpack_two(factors[f][w]) + unpack_two(rests[f][w])) * scale;
            words[w] = pack_two<OUT>(two.x, two.y);
          }
          to[4 * f + t] = words;
        }
      }
      load(first + share.step);
      continue;
    }
    float sums[4][PRODUCTS] = {};
    products(sums, a, factors);
    products(sums, a, rests);
    load(first + share.step);

    for (uint r = 0; r < 2; ++r) {
      uint slot = first + 2 * t + r;
      if (slot >= p.capacity) {
        continue;
      }
      for (uint h = 0; h < HALVES; ++h) {
        float scale = norms[ulong(slot) * p.norm_strides[0] + h * p.norm_strides[2]] * from_sums;
        for (uint j = 0; j < PRODUCTS / HALVES; ++j) {
          sums[r][h * (PRODUCTS / HALVES) + j] *= scale;
          sums[2 + r][h * (PRODUCTS / HALVES) + j] *= scale;
        }
      }
      hadamard_registers(sums[r], PRODUCTS);
      hadamard_registers(sums[2 + r], PRODUCTS);
      device uint4* to = (device uint4*)(out + ulong(slot) * p.row_strides[0]);
      for (uint run = 0; run < RUNS; ++run) {
        uint4 words;
        for (uint w = 0; w < 4; ++w) {
          words[w] = pack_two<OUT>(sums[r][4 * run + w], sums[2 + r][4 * run + w]);
        }
        to[8 * run + g] = words ^ turned[8 * run + g];
      }
    }
  }
}
