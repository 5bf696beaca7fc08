// matmul on NVIDIA's tensor cores, for x in a type of 16 bits. The text is Metal's but for the instructions that only these
// GPUs have, and goes the same way; kernel.metal is its check.
//
// Many rows of x: a threadgroup of eight simdgroups computes TILE_M rows of x by 128 rows of the weight. Tiles of x come by asynchronous
// copies, three in flight; a thread dequantises one unit of the weight for the next step while products of this one run,
// rounded to the type of x. Sums are f32.

#include "matrix.h"
#include "nvidia.h"
#include "products.h"

constant constexpr uint TILE_N = 128;
constant constexpr uint TILE_K = 32;
constant constexpr uint STAGES = 3;

// The place of eight elements in a tile whose rows have TILE_K: so that eight rows at one column lie in different banks.
inline uint chunk_at(uint row, uint chunk) { return row * TILE_K + (chunk ^ (row >> 1 & 3)) * 8; }

template <uint TILE_M>
kernel void matmul_tensor(
    PRODUCTS,
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint ROWS = TILE_M / 2;  // of a simdgroup's part, whose columns are 32
  threadgroup uint4 staged_x[STAGES][TILE_M * TILE_K / 8];
  threadgroup uint4 staged_w[2][TILE_N * TILE_K / 8];

  Product product = PICK_PRODUCT(group.x);
  uint first_token = group.y * TILE_M;
  uint first_row = product.block * TILE_N;
  uint units = p.k / UNIT;
  uint steps = (p.k + TILE_K - 1) / TILE_K;

  // What is past the last row is computed from the last row, and not stored.
  uint w_row = thread_index / 2;
  uint w_unit = thread_index % 2;
  Reader reader = Reader::at(product.weight, min(first_row + w_row, product.n - 1));

  auto fetch_x = [&](uint step) {
    threadgroup SCALAR* tile = (threadgroup SCALAR*)staged_x[step % STAGES];
    for (uint i = thread_index; i < TILE_M * TILE_K / 8; i += 256) {
      uint row = i / 4;
      uint chunk = i % 4;
      uint column = step * TILE_K + chunk * 8;
      device const SCALAR* from = x + ulong(min(first_token + row, p.m - 1)) * p.x_stride;
      copy_sixteen(shared_address(tile + chunk_at(row, chunk)), from + (column < p.k ? column : 0), column < p.k);
    }
    asm volatile("cp.async.commit_group;");
  };
  // Past the last column x is zero and any weight will do.
  auto fetch_w = [&](uint step) { return reader.load(min(step * 2 + w_unit, units - 1)); };
  auto store_w = [&](uint step, Unit u) {
    float4 elements[4];
    dequantize(u, elements);
    threadgroup SCALAR* tile = (threadgroup SCALAR*)staged_w[step % 2];
    for (uint half_unit = 0; half_unit < 2; ++half_unit) {
      float4 low = elements[half_unit * 2];
      float4 high = elements[half_unit * 2 + 1];
      uint4 packed = uint4(pack_two(low.x, low.y), pack_two(low.z, low.w), pack_two(high.x, high.y), pack_two(high.z, high.w));
      *(threadgroup uint4*)(tile + chunk_at(w_row, w_unit * 2 + half_unit)) = packed;
    }
  };

  uint m = simdgroup / 4 * ROWS;
  uint n = simdgroup % 4 * 32;
  float sums[ROWS / 16][4][4];
  for (uint i = 0; i < ROWS / 16; ++i) {
    for (uint j = 0; j < 4; ++j) {
      for (uint e = 0; e < 4; ++e) {
        sums[i][j][e] = 0.0f;
      }
    }
  }

  for (uint step = 0; step + 1 < STAGES; ++step) {
    fetch_x(step);
  }
  store_w(0, fetch_w(0));
  for (uint step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Past the end it is an empty group, or a tile that nothing reads.
    fetch_x(step + STAGES - 1);
    Unit next = fetch_w(step + 1);

    threadgroup const SCALAR* tile_x = (threadgroup const SCALAR*)staged_x[step % STAGES];
    threadgroup const SCALAR* tile_w = (threadgroup const SCALAR*)staged_w[step % 2];
    for (uint k = 0; k < TILE_K / 8; k += 2) {
      uint a[ROWS / 16][4];
      uint b[4][2];
      for (uint i = 0; i < ROWS / 16; ++i) {
        load_matrices(a[i], shared_address(tile_x + chunk_at(m + i * 16 + lane % 16, k + lane / 16)));
      }
      for (uint j = 0; j < 4; j += 2) {
        load_matrices(b[j], shared_address(tile_w + chunk_at(n + j * 8 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2)));
      }
      for (uint i = 0; i < ROWS / 16; ++i) {
        for (uint j = 0; j < 4; ++j) {
          multiply(sums[i][j], a[i], b[j]);
        }
      }
    }
    store_w(step + 1, next);
  }

  bool pairs = product.out_stride % 2 == 0 && ulong(product.out) % 4 == 0;
  for (uint i = 0; i < ROWS / 16; ++i) {
    for (uint j = 0; j < 4; ++j) {
      uint row = first_row + n + j * 8 + lane % 4 * 2;
      for (uint h = 0; h < 2; ++h) {
        uint token = first_token + m + i * 16 + h * 8 + lane / 4;
        if (token >= p.m || row >= product.n) {
          continue;
        }
        device SCALAR* to = product.out + ulong(token) * product.out_stride + row;
        if (pairs && row + 1 < product.n) {
          *(device uint*)to = pack_two(sums[i][j][h * 2], sums[i][j][h * 2 + 1]);
        } else {
          to[0] = SCALAR(sums[i][j][h * 2]);
          if (row + 1 < product.n) {
            to[1] = SCALAR(sums[i][j][h * 2 + 1]);
          }
        }
      }
    }
  }
}

instantiate_kernel("matmul_tensor_64", matmul_tensor, 64)
instantiate_kernel("matmul_tensor_128", matmul_tensor, 128)

// Writes a weight as rows of SCALAR to out0. A thread has four units, asked for together.
kernel void matmul_dequantize(
    PRODUCTS,
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  uint units = p.k / UNIT;
  uint end = p.n[0] * units;
  Stored weight = {codes0, scales0, biases0, p.code_stride, p.k, p.group_size};
  Unit loaded[4];
  for (uint i = 0; i < 4; ++i) {
    uint at = min(group * 1024 + i * 256 + thread_index, end - 1);
    loaded[i] = Reader::at(weight, at / units).load(at % units);
  }
  for (uint i = 0; i < 4; ++i) {
    uint at = group * 1024 + i * 256 + thread_index;
    if (at < end) {
      float4 e[4];
      dequantize(loaded[i], e);
      device uint4* to = (device uint4*)(out0 + ulong(at) * UNIT);
      for (uint h = 0; h < 2; ++h) {
        float4 low = e[h * 2];
        float4 high = e[h * 2 + 1];
        to[h] = uint4(pack_two(low.x, low.y), pack_two(low.z, low.w), pack_two(high.x, high.y), pack_two(high.z, high.w));
      }
    }
  }
}

// Few rows of x, at most eight, and codes of four bits: the plain form spends some four instructions on a code, this one
// little more than one.
//
// Eight simdgroups compute 16 rows of the weight and take every eighth stretch of 128 columns. Codes come by asynchronous
// copies, DEPTH stretches ahead, the first of them before the launch before this one has ended: it does not write them. A
// pair of codes becomes two 16-bit floats by one logical operation, as the mantissas of 128 + code (bf16) or 1024 + code
// (f16, which is taken off again: it would cost too many digits). Products with the codes and with ones are summed for each
// group of columns, then scaled in f32: (s * code + b) x = s * (offset + code) x + (b - offset * s) x.

template <typename R>
struct FourBits {
  static constant constexpr bool value = false;
};
template <typename S>
struct FourBits<Affine<4, S>> {
  static constant constexpr bool value = true;
};

constant constexpr uint DEPTH = 4;
constant constexpr float OFFSET = is_same_v<SCALAR, half> ? 0.0f : 128.0f;

// Bytes 0 and 1 of both, and bytes 2 and 3 of both.
inline uint low_halves(uint a, uint b) { return __byte_perm(a, b, 0x5410); }
inline uint high_halves(uint a, uint b) { return __byte_perm(a, b, 0x7632); }

// Codes i and i + 4 of a word, and OFFSET.
inline uint two_codes(uint word, uint i) {
  uint codes = (word >> (4 * i)) & 0x000f000fu;
  if constexpr (is_same_v<SCALAR, half>) {
    uint plain;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(plain) : "r"(codes | 0x64006400u), "r"(0x64006400u));
    return plain;
  } else {
    return codes | 0x43004300u;
  }
}

// The place of sixteen bytes of a row's stretch: so that four rows at one column lie in different banks.
inline uint codes_at(uint row, uint chunk) { return row * 4 + (chunk ^ (row & 2)); }

// The column of a lane's word w of a stretch; words 0 and 1 are of the first 64 columns. Of four groups the words w of four
// lanes are group w; of two the words 0 and 1 of a lane are neighbours.
template <uint GROUPS>
inline uint column_of(uint w, uint lane) {
  uint t = lane % 4;
  return w / 2 * 64 + (GROUPS == 4 ? w % 2 * 32 + t * 8 : t * 16 + w % 2 * 8);
}

// What a simdgroup has staged of a stretch: the codes of 16 rows, then their scales, and their biases.
template <typename S, uint GROUPS>
struct Stretch {
  uint4 codes[64];
  vec<S, GROUPS> scales[16];
  vec<S, GROUPS> biases[16];
};

// Adds the products of one word of each row.
inline void add_word(uint first, uint second, uint4 x, thread float* codes, thread float* ones) {
  uint one = is_same_v<SCALAR, half> ? 0x3c003c00u : 0x3f803f80u;
  uint all[4] = {one, one, one, one};
  uint b0[2] = {low_halves(x.x, x.z), high_halves(x.x, x.z)};
  uint b1[2] = {low_halves(x.y, x.w), high_halves(x.y, x.w)};
  uint a0[4] = {two_codes(first, 0), two_codes(second, 0), two_codes(first, 1), two_codes(second, 1)};
  uint a1[4] = {two_codes(first, 2), two_codes(second, 2), two_codes(first, 3), two_codes(second, 3)};
  multiply(codes, a0, b0);
  multiply(codes, a1, b1);
  multiply(ones, all, b0);
  multiply(ones, all, b1);
}

template <typename S, uint GROUPS>
inline void add_stretch(
    threadgroup const Stretch<S, GROUPS>& stretch, thread const uint4* x, uint lane, thread float* sums) {
  float codes[4];
  float ones[4];
  uint row = lane / 4;
  for (uint w = 0; w < 4; ++w) {
    if (w % (4 / GROUPS) == 0) {
      for (uint i = 0; i < 4; ++i) {
        codes[i] = 0.0f;
        ones[i] = 0.0f;
      }
    }
    uint byte = column_of<GROUPS>(w, lane) / 2;
    uint first = ((threadgroup const uint*)(stretch.codes + codes_at(row, byte / 16)))[byte / 4 % 4];
    uint second = ((threadgroup const uint*)(stretch.codes + codes_at(row + 8, byte / 16)))[byte / 4 % 4];
    add_word(first, second, x[w], codes, ones);
    if ((w + 1) % (4 / GROUPS) == 0) {
      uint group = w * GROUPS / 4;
      for (uint r = 0; r < 2; ++r) {
        float scale = float(stretch.scales[row + 8 * r][group]);
        float bias = fma(-OFFSET, scale, float(stretch.biases[row + 8 * r][group]));
        for (uint token = 0; token < 2; ++token) {
          uint i = r * 2 + token;
          sums[i] = fma(scale, codes[i], fma(bias, ones[token], sums[i]));
        }
      }
    }
  }
}

// Asks for a stretch of a block's 16 rows, of which a lane has two rows for codes and one for scales or biases.
template <typename S, uint GROUPS>
inline void fetch_stretch(
    threadgroup Stretch<S, GROUPS>& to, Affine<4, S> first, Affine<4, S> second, Affine<4, S> third, uint at, uint lane) {
  uint chunk = lane % 4;
  uint row = lane / 4;
  copy_sixteen(shared_address(to.codes + codes_at(row, chunk)), first.codes + at * 64 + chunk * 16, true);
  copy_sixteen(shared_address(to.codes + codes_at(row + 8, chunk)), second.codes + at * 64 + chunk * 16, true);
  device const S* from = lane < 16 ? third.scales : third.biases;
  threadgroup vec<S, GROUPS>* target = lane < 16 ? to.scales : to.biases;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
               ::"r"(shared_address(target + lane % 16)), "l"(from + at * GROUPS), "n"(sizeof(vec<S, GROUPS>)));
}

template <typename R>
struct ScaleOf {
  using type = half;
};
template <typename S>
struct ScaleOf<Affine<4, S>> {
  using type = S;
};

template <uint GROUPS>
kernel void matmul_tensor_few(
    PRODUCTS,
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup Stretch<ScaleOf<Reader>::type, GROUPS> staged[8][DEPTH];
  if constexpr (FourBits<Reader>::value) {
    Product product = PICK_PRODUCT(group.x);
    uint first_row = product.block * 16;
    uint first_token = group.y * 8;
    uint stretches = p.k / 128;
    // What is past the last row is computed from the last row, and not stored.
    auto row_of = [&](uint row) { return Reader::at(product.weight, min(first_row + row, product.n - 1)); };
    Reader first = row_of(lane / 4);
    Reader second = row_of(lane / 4 + 8);
    Reader third = row_of(lane % 16);
    auto fetch = [&](uint at, uint slot) {
      if (at < stretches) {
        fetch_stretch(staged[simdgroup][slot], first, second, third, at, lane);
      }
      asm volatile("cp.async.commit_group;");
    };
    for (uint i = 0; i < DEPTH; ++i) {
      fetch(simdgroup + i * 8, i);
    }
    wait_for_inputs();

    uint token = first_token + lane / 4;
    bool there = token < p.m;
    device const SCALAR* x_row = x + (there ? ulong(token) * p.x_stride : 0);
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    uint slot = 0;
    uint4 next[4];
    auto look = [&](uint at) {
      for (uint w = 0; w < 4; ++w) {
        bool inside = there && at < stretches;
        next[w] = inside ? *(device const uint4*)(x_row + at * 128 + column_of<GROUPS>(w, lane)) : uint4(0);
      }
    };
    look(simdgroup);
    for (uint at = simdgroup; at < stretches; at += 8) {
      asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 1));
      simdgroup_barrier(mem_flags::mem_threadgroup);
      uint4 beside[4] = {next[0], next[1], next[2], next[3]};
      look(at + 8);
      add_stretch(staged[simdgroup][slot], beside, lane, sums);
      simdgroup_barrier(mem_flags::mem_threadgroup);
      fetch(at + 8 * DEPTH, slot);
      slot = (slot + 1) % DEPTH;
    }

    // The stretches are used up; their memory joins the simdgroups.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup float* partial = (threadgroup float*)staged;
    for (uint i = 0; i < 4; ++i) {
      partial[(simdgroup * 16 + lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index < 128) {
      uint row = thread_index % 16;
      uint t = thread_index / 16;
      float sum = 0.0f;
      for (uint i = 0; i < 8; ++i) {
        sum += partial[(i * 16 + row) * 8 + t];
      }
      if (first_row + row < product.n && first_token + t < p.m) {
        product.out[ulong(first_token + t) * product.out_stride + first_row + row] = SCALAR(sum);
      }
    }
  }
}

instantiate_kernel("matmul_tensor_few_32", matmul_tensor_few, 4)
instantiate_kernel("matmul_tensor_few_64", matmul_tensor_few, 2)
