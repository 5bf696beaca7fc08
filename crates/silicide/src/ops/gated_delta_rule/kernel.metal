// gated_delta_rule: rows of a state, one for each element of a value, do not see each other. Some lanes share a row and
// keep it in registers through all tokens.
//
// The host defines DK, the elements of a key, and CHUNK, the tokens of a chunk. In a chunk that starts from state S, with
// d(i, j) the product of the decays after token j up to token i and b(i) that of all up to i:
//   u(i) = beta(i) (v(i) - b(i) S k(i) - sum over j < i of d(i, j) (k(i) . k(j)) u(j))
//   y(i) = scale (b(i) S q(i) + sum over j <= i of d(i, j) (q(i) . k(j)) u(j))
//   S    = b(last) S + sum over j of d(last, j) u(j) k(j)^T

#include "delta.h"
#include "silicide.h"

// Token by token: 4 simdgroups a threadgroup.
template <typename T>
kernel void gated_delta_rule_recurrent(
    device const T* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const T* v [[buffer(2)]],
    device const float* g [[buffer(3)]],
    device const float* beta [[buffer(4)]],
    device float* state [[buffer(5)]],
    device T* out [[buffer(6)]],
    constant Params& p [[buffer(7)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  uint row = group.x * 4 * ROWS_AT_ONCE + simdgroup * ROWS_AT_ONCE;
  token_by_token(q, k, v, g, beta, state, out, p, group.y, row, lane);
}

// What the chunked form shares among the rows of a value head, a record a chunk: the factors of u(j) in u(i), those of
// u(j) in y(i), b(i), d(last, i) and beta(i).
#define RECORD (2 * CHUNK * CHUNK + 3 * CHUNK)

// One threadgroup a chunk of a value head, one thread a pair of tokens.
template <typename T>
kernel void gated_delta_rule_pairs(
    device const T* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const float* g [[buffer(2)]],
    device const float* beta [[buffer(3)]],
    device float* pairs [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  constexpr uint THREADS = CHUNK * CHUNK;
  // An odd distance keeps the threads of a row from meeting in one bank.
  constexpr uint STRIDE = DK | 1;
  threadgroup float queries[CHUNK * STRIDE];
  threadgroup float keys[CHUNK * STRIDE];
  threadgroup float kept[CHUNK];
  threadgroup float learned[CHUNK];
  uint head = group.y;
  uint first = group.x * CHUNK;
  uint count = min(uint(CHUNK), p.tokens - first);
  q += ulong(first) * p.q_strides[0] + ulong(key_head(p, head)) * p.q_strides[1];
  k += ulong(first) * p.k_strides[0] + ulong(key_head(p, head)) * p.k_strides[1];
  pairs += (ulong(head) * groups.x + group.x) * RECORD;

  for (uint i = thread_index; i < count * DK; i += THREADS) {
    uint token = i / DK;
    uint d = i % DK;
    queries[token * STRIDE + d] = float(q[ulong(token) * p.q_strides[0] + d]);
    keys[token * STRIDE + d] = float(k[ulong(token) * p.k_strides[0] + d]);
  }
  if (thread_index < CHUNK) {
    // A token past the last one changes nothing.
    bool there = thread_index < count;
    ulong token = first + thread_index;
    kept[thread_index] = there ? decay(p, g[token * p.g_stride + head]) : 1.0f;
    learned[thread_index] = there ? beta[token * p.beta_stride + head] : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  uint i = thread_index / CHUNK;
  uint j = thread_index % CHUNK;
  float kk = 0;
  float qk = 0;
  if (j <= i && i < count) {
    for (uint d = 0; d < DK; ++d) {
      float key = keys[j * STRIDE + d];
      kk += keys[i * STRIDE + d] * key;
      qk += queries[i * STRIDE + d] * key;
    }
    // A product, not the exponential of a difference of sums, which cancels where a decay is strong.
    float between = 1;
    for (uint token = j + 1; token <= i; ++token) {
      between *= kept[token];
    }
    kk *= between * learned[i];
    qk *= between * p.scale;
  }
  pairs[thread_index] = kk;
  pairs[THREADS + thread_index] = qk;
  if (thread_index < CHUNK) {
    float before = 1;
    float after = 1;
    for (uint token = 0; token < CHUNK; ++token) {
      before *= token <= thread_index ? kept[token] : 1.0f;
      after *= token > thread_index ? kept[token] : 1.0f;
    }
    pairs[2 * THREADS + thread_index] = before;
    pairs[2 * THREADS + CHUNK + thread_index] = after;
    pairs[2 * THREADS + 2 * CHUNK + thread_index] = learned[thread_index];
  }
}

inline float dot_product(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// Elements d..d + 3 of a key or query, zeros past its end.
template <typename T>
inline float4 four(device const T* x, uint d) {
  return float4(
      d < DK ? float(x[d]) : 0.0f, d + 1 < DK ? float(x[d + 1]) : 0.0f, d + 2 < DK ? float(x[d + 2]) : 0.0f,
      d + 3 < DK ? float(x[d + 3]) : 0.0f);
}

// A chunk at a time: 4 lanes a row, 32 rows a threadgroup.
template <typename T>
kernel void gated_delta_rule_chunked(
    device const T* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const T* v [[buffer(2)]],
    device const float* g [[buffer(3)]],
    device const float* beta [[buffer(4)]],
    device float* state [[buffer(5)]],
    device const float* pairs [[buffer(6)]],
    device T* out [[buffer(7)]],
    constant Params& p [[buffer(8)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  constexpr uint THREADS = 128;
  constexpr uint LANES = 4;
  constexpr uint PER_LANE = (DK + 4 * LANES - 1) / (4 * LANES);
  constexpr uint FOURS = PER_LANE * LANES;
  threadgroup float4 queries[CHUNK * FOURS];
  threadgroup float4 keys[CHUNK * FOURS];
  threadgroup float record[RECORD];
  threadgroup float* in_u = record;
  threadgroup float* in_y = record + CHUNK * CHUNK;
  threadgroup float* before = record + 2 * CHUNK * CHUNK;
  threadgroup float* after = before + CHUNK;
  threadgroup float* learned = after + CHUNK;
  uint head = group.y;
  uint part = thread_index % LANES;
  uint row = group.x * (THREADS / LANES) + thread_index / LANES;
  bool inside = row < p.dv;
  row = min(row, p.dv - 1);
  uint chunks = (p.tokens + CHUNK - 1) / CHUNK;
  q += ulong(key_head(p, head)) * p.q_strides[1];
  k += ulong(key_head(p, head)) * p.k_strides[1];
  v += ulong(head) * p.v_strides[1] + row;
  out += ulong(head) * p.out_strides[1] + row;
  state += (ulong(head) * p.dv + row) * DK;
  pairs += ulong(head) * chunks * RECORD;

  float4 s[PER_LANE];
  for (uint m = 0; m < PER_LANE; ++m) {
    s[m] = inside ? four(state, 4 * (m * LANES + part)) : float4(0.0f);
  }
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    ulong first = ulong(chunk) * CHUNK;
    uint count = min(uint(CHUNK), p.tokens - uint(first));
    for (uint i = thread_index; i < CHUNK * FOURS; i += THREADS) {
      ulong token = first + i / FOURS;
      bool there = i / FOURS < count;
      queries[i] = there ? four(q + token * p.q_strides[0], 4 * (i % FOURS)) : float4(0.0f);
      keys[i] = there ? four(k + token * p.k_strides[0], 4 * (i % FOURS)) : float4(0.0f);
    }
    for (uint i = thread_index; i < RECORD; i += THREADS) {
      record[i] = pairs[ulong(chunk) * RECORD + i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // Loops over the tokens of a chunk are unrolled, so that their numbers are in registers; those over the state are not,
    // or loads for all of it would be under way at once and leave no room.
    float u[CHUNK];
    float y[CHUNK];
    #pragma unroll
    for (uint i = 0; i < CHUNK; ++i) {
      u[i] = 0;
      y[i] = 0;
    }
    #pragma unroll 1
    for (uint m = 0; m < PER_LANE; ++m) {
      float4 part_s = s[m];
      #pragma unroll
      for (uint i = 0; i < CHUNK; ++i) {
        u[i] += dot_product(part_s, keys[i * FOURS + m * LANES + part]);
        y[i] += dot_product(part_s, queries[i * FOURS + m * LANES + part]);
      }
    }
    #pragma unroll
    for (uint i = 0; i < CHUNK; ++i) {
      u[i] += simd_shuffle_xor(u[i], 1);
      y[i] += simd_shuffle_xor(y[i], 1);
      u[i] += simd_shuffle_xor(u[i], 2);
      y[i] += simd_shuffle_xor(y[i], 2);
    }
    #pragma unroll
    for (uint i = 0; i < CHUNK; ++i) {
      float value = i < count ? float(v[(first + i) * p.v_strides[0]]) : 0.0f;
      float sum = (value - before[i] * u[i]) * learned[i];
      float read = before[i] * y[i] * p.scale;
      #pragma unroll
      for (uint j = 0; j < i; ++j) {
        sum -= in_u[i * CHUNK + j] * u[j];
        read += in_y[i * CHUNK + j] * u[j];
      }
      u[i] = i < count ? sum : 0.0f;
      read += in_y[i * CHUNK + i] * u[i];
      if (part == 0 && inside && i < count) {
        out[(first + i) * p.out_strides[0]] = T(read);
      }
    }
    #pragma unroll
    for (uint i = 0; i < CHUNK; ++i) {
      u[i] *= after[i];
    }
    float kept = before[CHUNK - 1];
    #pragma unroll 1
    for (uint m = 0; m < PER_LANE; ++m) {
      float4 sum = s[m] * kept;
      #pragma unroll
      for (uint i = 0; i < CHUNK; ++i) {
        sum += keys[i * FOURS + m * LANES + part] * u[i];
      }
      s[m] = sum;
    }
    // The next chunk takes this one's place.
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (uint m = 0; m < PER_LANE; ++m) {
    uint d = 4 * (m * LANES + part);
    for (uint i = 0; i < 4; ++i) {
      if (inside && d + i < DK) {
        state[d + i] = s[m][i];
      }
    }
  }
}

instantiate_floats("gated_delta_rule_recurrent", gated_delta_rule_recurrent)
instantiate_floats("gated_delta_rule_pairs", gated_delta_rule_pairs)
instantiate_floats("gated_delta_rule_chunked", gated_delta_rule_chunked)
