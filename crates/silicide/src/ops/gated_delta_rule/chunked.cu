// The chunked form of gated_delta_rule on NVIDIA's tensor cores, for queries, keys and values of one type of 16 bits. kernel.metal
// is its check, and has the formulas.
//
// Here they are of all tokens of a chunk at once, transposed: rows are of a value, columns are tokens. Sixteen rows of a state stay in
// the registers of a simdgroup, where sums of products are already laid out as the left factors of the next:
//   U = beta (V - b S K^T),  Y = scale b S Q^T
//   U = U ((I + L)^T)^-1 by blocks of 16 tokens, where L(i, j) is beta(i) d(i, j) (k(i) . k(j)) for j < i
//   Y = Y + U A^T, where A(i, j) is scale d(i, j) (q(i) . k(j)) for j <= i
//   S = b(last) S + (U d(last)) K
// What is not of 16 bits goes to the tensor cores in two pieces, the second of what the first has lost, which keep 16 bits of a number in
// bf16 and 22 in f16. With one piece results would be off by more than their rounding. States and all sums are f32.
//
// The host defines SCALAR, DK, and TOKENS of a chunk, a multiple of 16 up to 64.

#include "delta.h"
#include "nvidia.h"
#include "silicide.h"

constant constexpr uint BLOCKS = TOKENS / 16;
constant constexpr uint CHUNKS = DK / 8;               // of sixteen bytes in a key
constant constexpr uint PITCH = (CHUNKS + 7) / 8 * 8;  // of a row of a tile, in chunks
constant constexpr uint TILE = TOKENS * PITCH * 16;    // bytes
constant constexpr uint STEPS = DK / 16;
constant constexpr uint THREADS = 128;  // that make factors, or copy and multiply with queries

// What the rows of a value head share in a chunk: the blocks of -L, of (I + L)^-1 on the diagonal; by token b, d(last) and beta; and the
// blocks of A. Of a block each lane has its elements as factors of products lie, both pieces.
constant constexpr uint BLOCK = 2 * 32 * 16;
constant constexpr uint MATRIX = BLOCKS * (BLOCKS + 1) / 2 * BLOCK;
constant constexpr uint IN_Y = MATRIX + 3 * TOKENS * 4;  // where the blocks of A begin
constant constexpr uint RECORD = IN_Y + MATRIX;

inline uint block_at(uint i, uint j) { return (i * (i + 1) / 2 + j) * BLOCK; }

struct Pieces {
  uint high[4];
  uint low[4];

  void set(uint i, float first, float second) {
    high[i] = pack_two(first, second);
    float2 rounded = unpack_two(high[i]);
    low[i] = pack_two(first - rounded.x, second - rounded.y);
  }
  void load(threadgroup const uchar* from, uint lane) {
    uint4 highs = ((threadgroup const uint4*)from)[lane];
    uint4 lows = ((threadgroup const uint4*)from)[lane + 32];
    for (uint i = 0; i < 4; ++i) {
      high[i] = highs[i];
      low[i] = lows[i];
    }
  }
};

template <typename To>
inline void store_pieces(To to, Pieces pieces, uint lane) {
  to[lane] = uint4(pieces.high[0], pieces.high[1], pieces.high[2], pieces.high[3]);
  to[lane + 32] = uint4(pieces.low[0], pieces.low[1], pieces.low[2], pieces.low[3]);
}

// Two tiles of sums, side by side, as the left factor of a product.
inline Pieces left_factor(thread const float (*sums)[4]) {
  Pieces pieces;
  for (uint i = 0; i < 4; ++i) {
    pieces.set(i, sums[i / 2][i % 2 * 2], sums[i / 2][i % 2 * 2 + 1]);
  }
  return pieces;
}

// Their transpose as the right one.
inline Pieces right_factor(thread const float (*sums)[4]) {
  Pieces pieces;
  for (uint i = 0; i < 4; ++i) {
    pieces.set(i, sums[i % 2][i / 2 * 2], sums[i % 2][i / 2 * 2 + 1]);
  }
  return pieces;
}

// Two tiles of sums += a b. The product of the lower pieces is less than they have lost.
inline void multiply_pieces(thread float (*sums)[4], thread const Pieces& a, thread const Pieces& b) {
  for (uint n = 0; n < 2; ++n) {
    multiply(sums[n], a.high, b.high + n * 2);
  }
  for (uint n = 0; n < 2; ++n) {
    multiply(sums[n], a.low, b.high + n * 2);
  }
  for (uint n = 0; n < 2; ++n) {
    multiply(sums[n], a.high, b.low + n * 2);
  }
}

// Tiles of sums += a b, for matrices b that are exact. Products that wait for each other are far apart.
template <uint N>
inline void multiply_exact(thread float (*sums)[4], thread const Pieces& a, thread const uint (*b)[4]) {
#pragma unroll
  for (uint n = 0; n < 2 * N; ++n) {
    multiply(sums[n], a.high, b[n / 2] + n % 2 * 2);
  }
#pragma unroll
  for (uint n = 0; n < 2 * N; ++n) {
    multiply(sums[n], a.low, b[n / 2] + n % 2 * 2);
  }
}

// Copies some rows of `chunks` chunks, the first `there` of them and zeros for the others.
template <uint THREADS, uint PITCH>
inline void copy_rows(Shared to, device const SCALAR* from, uint stride, uint there, uint chunks, uint thread_index) {
  // Rows are whole eights apart, which have their chunks at the same places.
  constexpr uint ROWS = THREADS / PITCH;
  static_assert(ROWS % 8 == 0);
  uint first = thread_index / PITCH;
  uint c = thread_index % PITCH;
  if (c < chunks) {
    to += chunk_at<PITCH>(first, c);
    from += c * 8;
#pragma unroll
    for (uint row = 0; row < TOKENS; row += ROWS) {
      bool is = first + row < there;
      copy_sixteen(to + row * PITCH * 16, from + (is ? ulong(first + row) * stride : 0), is);
    }
  }
}

// Where a lane's rows begin of two eights of rows, each of two chunks.
template <uint PITCH>
inline uint rows_at(uint chunk, uint lane) {
  return chunk_at<PITCH>(lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2);
}

// One threadgroup of 128 threads a chunk of a value head, one simdgroup sixteen rows of its matrices.
[[kernel]] void gated_delta_rule_factors(
    device const SCALAR* q [[buffer(0)]],
    device const SCALAR* k [[buffer(1)]],
    device const float* g [[buffer(2)]],
    device const float* beta [[buffer(3)]],
    device uchar* factors [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    threadgroup uchar* dynamic [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint STRIDE = TOKENS + 1;
  constexpr uint DIAGONAL_STRIDE = 17;
  threadgroup float between[TOKENS * STRIDE];  // products of the decays of tokens j to i, 1 where there are none
  threadgroup float diagonals[BLOCKS][16 * DIAGONAL_STRIDE];
  threadgroup float kept[TOKENS];
  threadgroup float learned[TOKENS];
  uint head = group.y;
  uint first = group.x * TOKENS;
  uint count = min(uint(TOKENS), p.tokens - first);
  Shared keys = align_chunks(shared_address(dynamic));
  Shared queries = keys + TILE;
  factors += (ulong(head) * groups.x + group.x) * RECORD;
  k += ulong(first) * p.k_strides[0] + ulong(key_head(p, head)) * p.k_strides[1];
  q += ulong(first) * p.q_strides[0] + ulong(key_head(p, head)) * p.q_strides[1];
  copy_rows<THREADS, PITCH>(keys, k, p.k_strides[0], count, CHUNKS, thread_index);
  copy_rows<THREADS, PITCH>(queries, q, p.q_strides[0], count, CHUNKS, thread_index);
  end_copies();
  if (thread_index < TOKENS) {
    // A token past the last one changes nothing.
    ulong token = first + thread_index;
    bool there = thread_index < count;
    kept[thread_index] = there ? decay(p, g[token * p.g_stride + head]) : 1.0f;
    learned[thread_index] = there ? beta[token * p.beta_stride + head] : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // Products, not exponentials of differences of sums, which cancel where a decay is strong.
  if (thread_index <= TOKENS) {
    float product = 1;
#pragma unroll 16
    for (uint i = 0; i < TOKENS; ++i) {
      product *= i < thread_index ? 1.0f : kept[i];
      between[i * STRIDE + thread_index] = product;
    }
  }
  wait_for_copies<0>();
  threadgroup_barrier(mem_flags::mem_threadgroup);

  if (simdgroup >= BLOCKS) {
    return;
  }
  uint key_at = rows_at<PITCH>(0, lane);
  uint row_at = chunk_at<PITCH>(simdgroup * 16 + lane % 16, lane / 16);
  float kk[BLOCKS][2][4] = {};
  float qk[BLOCKS][2][4] = {};
#pragma unroll
  for (uint step = 0; step < STEPS; ++step) {
    uint key[4];
    uint query[4];
    load_matrices(key, beside(keys + row_at, step));
    load_matrices(query, beside(queries + row_at, step));
#pragma unroll
    for (uint j = 0; j < BLOCKS; ++j) {
      if (j <= simdgroup) {
        uint other[4];
        load_matrices(other, beside(keys + key_at, step) + j * 16 * PITCH * 16);
        for (uint n = 0; n < 2; ++n) {
          multiply(kk[j][n], key, other + n * 2);
          multiply(qk[j][n], query, other + n * 2);
        }
      }
    }
  }

  threadgroup float* diagonal = diagonals[simdgroup];
  device uchar* row = factors + block_at(simdgroup, 0);
#pragma unroll
  for (uint j = 0; j < BLOCKS; ++j) {
    if (j <= simdgroup) {
      for (uint e = 0; e < 8; ++e) {
        uint of = lane / 4 + e % 4 / 2 * 8;
        uint by = e / 4 * 8 + lane % 4 * 2 + e % 2;
        uint i = simdgroup * 16 + of;
        uint other = j * 16 + by;
        float part = other <= i ? between[i * STRIDE + other + 1] : 0.0f;
        thread float& in_u = kk[j][e / 4][e % 4];
        thread float& in_y = qk[j][e / 4][e % 4];
        in_u = other < i ? -learned[i] * part * in_u : 0.0f;
        in_y = other <= i ? p.scale * part * in_y : 0.0f;
        if (j == simdgroup) {
          diagonal[of * DIAGONAL_STRIDE + by] = in_u;
        }
      }
      if (j < simdgroup) {
        store_pieces((device uint4*)(row + j * BLOCK), right_factor(kk[j]), lane);
      }
      store_pieces((device uint4*)(row + IN_Y + j * BLOCK), right_factor(qk[j]), lane);
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  // A lane solves for a column.
  float column[16];
#pragma unroll
  for (uint i = 0; i < 16; ++i) {
    column[i] = i == lane % 16 ? 1.0f : 0.0f;
#pragma unroll
    for (uint j = 0; j < i; ++j) {
      column[i] += diagonal[i * DIAGONAL_STRIDE + j] * column[j];
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (uint i = 0; i < 16; ++i) {
    if (lane < 16) {
      diagonal[i * DIAGONAL_STRIDE + lane] = column[i];
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  float inverse[2][4];
  for (uint e = 0; e < 8; ++e) {
    inverse[e / 4][e % 4] = diagonal[(lane / 4 + e % 4 / 2 * 8) * DIAGONAL_STRIDE + e / 4 * 8 + lane % 4 * 2 + e % 2];
  }
  store_pieces((device uint4*)(row + simdgroup * BLOCK), right_factor(inverse), lane);
  if (thread_index < TOKENS) {
    device float* by_token = (device float*)(factors + MATRIX) + thread_index;
    by_token[0] = between[thread_index * STRIDE];
    by_token[TOKENS] = between[(TOKENS - 1) * STRIDE + thread_index + 1];
    by_token[2 * TOKENS] = learned[thread_index];
  }
}

constant constexpr uint PAIRS = THREADS / 32;  // of simdgroups
constant constexpr uint ROWS = 16 * PAIRS;
constant constexpr uint VALUE_PITCH = ROWS / 8;
constant constexpr uint VALUES = 2 * TILE;  // where a stage has them, after keys and queries
constant constexpr uint FACTORS = VALUES + TOKENS * VALUE_PITCH * 16;
constant constexpr uint STAGE = (FACTORS + RECORD + 127) / 128 * 128;
// What a pair of simdgroups shares: a state's pieces, and those of its corrections.
constant constexpr uint SHARED = (STEPS + BLOCKS) * BLOCK;

// One threadgroup some rows of a value head's state, chunk by chunk, two simdgroups sixteen of them. The first goes from state to state.
// The second copies what the next chunk needs and finds results half a chunk later: the state's part while the first solves for
// corrections, that of the corrections while it multiplies the next state.
[[kernel, max_total_threads_per_threadgroup(256)]] void gated_delta_rule_chunks(
    device const SCALAR* q [[buffer(0)]],
    device const SCALAR* k [[buffer(1)]],
    device const SCALAR* v [[buffer(2)]],
    device const float* g [[buffer(3)]],
    device const float* beta [[buffer(4)]],
    device float* state [[buffer(5)]],
    device const uchar* factors [[buffer(6)]],
    device SCALAR* out [[buffer(7)]],
    constant Params& p [[buffer(8)]],
    threadgroup uchar* dynamic [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint lost_of[2 * PAIRS];
  uint head = group.y;
  uint chunks = (p.tokens + TOKENS - 1) / TOKENS;
  Shared stages = kept(align_chunks(shared_address(dynamic)));
  threadgroup uchar* aligned = dynamic + (stages - shared_address(dynamic));
  bool leads = simdgroup < PAIRS;
  uint pair = simdgroup % PAIRS;
  threadgroup uchar* of_s = aligned + 2 * STAGE + pair * SHARED;
  threadgroup uchar* of_u = of_s + STEPS * BLOCK;

  uint first_row = group.x * ROWS;
  device const SCALAR* keys = k + ulong(key_head(p, head)) * p.k_strides[1];
  device const SCALAR* queries = q + ulong(key_head(p, head)) * p.q_strides[1];
  device const SCALAR* values = v + ulong(head) * p.v_strides[1] + first_row;
  factors += ulong(head) * chunks * RECORD;
  auto fetch = [&](uint chunk) {
    if (chunk < chunks) {
      Shared to = stages + chunk % 2 * STAGE;
      uint first = chunk * TOKENS;
      uint count = min(uint(TOKENS), p.tokens - first);
      uint copier = thread_index - THREADS;
      copy_rows<THREADS, PITCH>(to, keys + ulong(first) * p.k_strides[0], p.k_strides[0], count, CHUNKS, copier);
      copy_rows<THREADS, PITCH>(to + TILE, queries + ulong(first) * p.q_strides[0], p.q_strides[0], count, CHUNKS, copier);
      copy_rows<THREADS, VALUE_PITCH>(
          to + VALUES, values + ulong(first) * p.v_strides[0], p.v_strides[0], count, (p.dv - first_row) / 8, copier);
#pragma unroll 4
      for (uint i = copier; i < RECORD / 16; i += THREADS) {
        copy_sixteen(to + FACTORS + i * 16, factors + ulong(chunk) * RECORD + i * 16, true);
      }
    }
    end_copies();
  };

  uint own_row = first_row + pair * 16;
  // Sixteens of rows are there or not.
  bool inside = own_row < p.dv;
  device float* state_row = state + (ulong(head) * p.dv + own_row + lane / 4) * DK + lane % 4 * 2;
  device SCALAR* results = out + ulong(head) * p.out_strides[1] + own_row + lane % 4 * 2;
  float s[DK / 8][4];
  if (leads) {
#pragma unroll
    for (uint n = 0; n < DK / 8; ++n) {
      for (uint e = 0; e < 4; ++e) {
        s[n][e] = inside ? state_row[e / 2 * 8 * DK + n * 8 + e % 2] : 0.0f;
      }
    }
  } else {
    fetch(0);
  }
  uint row_at = rows_at<PITCH>(0, lane);
  uint value_at = VALUES + rows_at<VALUE_PITCH>(pair * 2, lane);
  uint transposed_at = chunk_at<PITCH>(lane % 16, lane / 16);
  float lost = 0;  // or NaN
  float u[TOKENS / 8][4];
  float y[TOKENS / 8][4];
  for (uint chunk = 0; chunk <= chunks; ++chunk) {
    wait_for_copies<0>();
    threadgroup_barrier(mem_flags::mem_threadgroup);
    Shared stage = stages + chunk % 2 * STAGE;
    threadgroup const uchar* record = aligned + (chunk % 2 * STAGE + FACTORS);
    threadgroup const float* by_token = (threadgroup const float*)(record + MATRIX);
    auto multiply_rows = [&](thread float (*sums)[4], thread const Pieces& factor, uint step, Shared tile) {
      uint rows[BLOCKS][4];
#pragma unroll
      for (uint j = 0; j < BLOCKS; ++j) {
        load_matrices(rows[j], beside(tile + row_at, step) + j * 16 * PITCH * 16);
      }
      multiply_exact<BLOCKS>(sums, factor, rows);
    };

    if (leads && chunk < chunks) {
#pragma unroll
      for (uint n = 0; n < TOKENS / 8; ++n) {
        u[n][0] = u[n][1] = u[n][2] = u[n][3] = 0;
      }
#pragma unroll
      for (uint step = 0; step < STEPS; ++step) {
        Pieces pieces = left_factor(s + 2 * step);
        store_pieces((threadgroup uint4*)(of_s + step * BLOCK), pieces, lane);
        multiply_rows(u, pieces, step, stage);
      }
    }
    if (!leads && chunk > 0) {
      threadgroup const uchar* in_y = aligned + ((chunk - 1) % 2 * STAGE + FACTORS + IN_Y);
#pragma unroll
      for (uint j = 0; j < BLOCKS; ++j) {
        Pieces pieces;
        pieces.load(of_u + j * BLOCK, lane);
#pragma unroll
        for (uint i = j; i < BLOCKS; ++i) {
          Pieces block;
          block.load(in_y + block_at(i, j), lane);
          multiply_pieces(y + 2 * i, pieces, block);
        }
      }
#pragma unroll
      for (uint n = 0; n < TOKENS / 8; ++n) {
        uint token = (chunk - 1) * TOKENS + n * 8 + lane / 4;
        for (uint r = 0; r < 2; ++r) {
          lost = fma(y[n][r * 2], 0.0f, fma(y[n][r * 2 + 1], 0.0f, lost));
          uint two = transpose(pack_two(y[n][r * 2], y[n][r * 2 + 1]));
          if (inside && token < p.tokens) {
            *(device uint*)(results + ulong(token) * p.out_strides[0] + r * 8) = two;
          }
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (chunk == chunks) {
      break;
    }
    if (leads) {
#pragma unroll
      for (uint j = 0; j < BLOCKS; ++j) {
        uint columns[4];
        load_transposed(columns, stage + value_at + j * 16 * VALUE_PITCH * 16);
        for (uint n = 0; n < 2; ++n) {
          threadgroup const float* by = by_token + j * 16 + n * 8 + lane % 4 * 2;
          for (uint e = 0; e < 4; ++e) {
            thread float& sum = u[2 * j + n][e];
            sum = by[2 * TOKENS + e % 2] * (unpack_two(columns[n * 2 + e / 2])[e % 2] - by[e % 2] * sum);
          }
        }
      }
#pragma unroll
      for (uint n = 0; n < DK / 8; ++n) {
        for (uint e = 0; e < 4; ++e) {
          s[n][e] *= by_token[TOKENS - 1];
        }
      }
#pragma unroll
      for (uint j = 0; j < BLOCKS; ++j) {
        Pieces pieces = left_factor(u + 2 * j);
        Pieces block;
        block.load(record + block_at(j, j), lane);
        float solved[2][4] = {};
        multiply_pieces(solved, pieces, block);
        pieces = left_factor(solved);
        store_pieces((threadgroup uint4*)(of_u + j * BLOCK), pieces, lane);
#pragma unroll
        for (uint i = j + 1; i < BLOCKS; ++i) {
          block.load(record + block_at(i, j), lane);
          multiply_pieces(u + 2 * i, pieces, block);
        }
        for (uint n = 0; n < 2; ++n) {
          for (uint e = 0; e < 4; ++e) {
            solved[n][e] *= by_token[TOKENS + j * 16 + n * 8 + lane % 4 * 2 + e % 2];
          }
        }
        pieces = left_factor(solved);
        constexpr uint AT_ONCE = STEPS % 2 == 0 ? 2 : 1;
#pragma unroll
        for (uint step = 0; step < STEPS; step += AT_ONCE) {
          uint columns[AT_ONCE][4];
#pragma unroll
          for (uint i = 0; i < AT_ONCE; ++i) {
            load_transposed(columns[i], beside(stage + transposed_at, step + i) + j * 16 * PITCH * 16);
          }
          multiply_exact<AT_ONCE>(s + 2 * step, pieces, columns);
        }
      }
    } else {
      fetch(chunk + 1);
#pragma unroll
      for (uint n = 0; n < TOKENS / 8; ++n) {
        y[n][0] = y[n][1] = y[n][2] = y[n][3] = 0;
      }
#pragma unroll
      for (uint step = 0; step < STEPS; ++step) {
        Pieces pieces;
        pieces.load(of_s + step * BLOCK, lane);
        multiply_rows(y, pieces, step, stage + TILE);
      }
#pragma unroll
      for (uint n = 0; n < TOKENS / 8; ++n) {
        for (uint e = 0; e < 4; ++e) {
          y[n][e] *= by_token[n * 8 + lane % 4 * 2 + e % 2] * p.scale;
        }
      }
    }
  }
  if (leads) {
#pragma unroll
    for (uint n = 0; n < DK / 8; ++n) {
      for (uint e = 0; e < 4; ++e) {
        lost = fma(s[n][e], 0.0f, lost);
      }
    }
  }
  bool any_lost = simd_any(lost != 0.0f);
  if (lane == 0) {
    lost_of[simdgroup] = any_lost;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  if (!inside) {
    return;
  }
  if (lost_of[pair] == 0 && lost_of[pair + PAIRS] == 0) {
    if (leads) {
#pragma unroll
      for (uint n = 0; n < DK / 8; ++n) {
        for (uint e = 0; e < 4; ++e) {
          state_row[e / 2 * 8 * DK + n * 8 + e % 2] = s[n][e];
        }
      }
    }
  } else if (!leads) {
    // Products with zeros have taken what is not finite to other tokens, or pieces are past SCALAR's range.
    for (uint i = 0; i < 16; i += ROWS_AT_ONCE) {
      token_by_token(q, k, v, g, beta, state, out, p, head, own_row + i, lane);
    }
  }
}
