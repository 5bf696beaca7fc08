// softmax: a team of threads a row. Rows of up to 64 KiB are read once. Of longer ones each thread keeps the greatest
// score it has seen and the sum relative to it, so that they are read twice.

#include "rows.h"
#include "walk.h"

// The scores of a packet from element `at` on; those past the end of the row leave themselves out.
template <uint N, typename T, typename M>
inline void load_scores(
    thread float (&scores)[N],
    device const T* x,
    device const M* mask,
    uint at,
    uint len,
    constant Params& p) {
  Packet<T, N> values = load_packet<N>(x, p.walk.inner[0], at, len);
  Packet<M, N> more = Packet<M, N>::zeros();
  if (p.has_mask) {
    more = load_packet<N>(mask, p.walk.inner[1], at, len);
  }
  for (uint i = 0; i < N; ++i) {
    float score = float(values.get(i)) * p.scale;
    if (p.has_mask) {
      score += float(more.get(i));
    }
    scores[i] = at + i < len ? score : -INFINITY;
  }
}

// e^(score - most). Leaves out the masked, for which the difference may be that of two infinities; keeps NaN.
inline float above(float score, float most) {
  return score == -INFINITY ? 0.0f : metal::precise::exp(score - most);
}

template <uint N, typename T>
inline void store_shares(
    device T* out, thread const float (&shares)[N], float factor, uint at, uint len, constant Params& p) {
  Packet<T, N> packet = Packet<T, N>::zeros();
  for (uint i = 0; i < N; ++i) {
    packet.put(i, T(shares[i] * factor));
  }
  store_packet(out, p.walk.inner[2], at, len, packet);
}

template <typename T, typename M>
kernel void softmax(
    device const T* x [[buffer(0)]],
    device const M* mask [[buffer(1)]],
    device T* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float scratch[32];
  constexpr uint N = Wide<T>::COUNT;
  Team team(p.width, group, thread_index, simdgroups);
  // Lanes past the last row have nothing to read, but a part in the reductions.
  bool present = team.row < p.walk.rows;
  uint dim = uint(p.walk.len);
  uint len = present ? dim : 0;
  x += present ? walk_start(p.walk, 0, team.row) : 0;
  mask += present ? walk_start(p.walk, 1, team.row) : 0;
  out += present ? walk_start(p.walk, 2, team.row) : 0;
  uint first = team.index * N;
  uint span = team.width * N;

  float scores[HELD][N];
  float most = -INFINITY;
  float sum = 0;
  if (dim <= span * HELD) {
    for (uint v = 0; v < HELD; ++v) {
      load_scores(scores[v], x, mask, first + v * span, len, p);
    }
    for (uint v = 0; v < HELD; ++v) {
      for (uint i = 0; i < N; ++i) {
        most = max(most, scores[v][i]);
      }
    }
    most = team_reduce<Max>(most, team.width, scratch, lane, simdgroup, simdgroups);
    for (uint v = 0; v < HELD; ++v) {
      for (uint i = 0; i < N; ++i) {
        scores[v][i] = above(scores[v][i], most);
        sum += scores[v][i];
      }
    }
    sum = team_reduce<Sum>(sum, team.width, scratch, lane, simdgroup, simdgroups);
    // A fully masked row has no sum and gives zeros; NaN stays.
    float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (uint v = 0; v < HELD; ++v) {
      store_shares(out, scores[v], factor, first + v * span, len, p);
    }
    return;
  }

  for (uint at = first; at < len; at += span) {
    load_scores(scores[0], x, mask, at, len, p);
    float top = most;
    for (uint i = 0; i < N; ++i) {
      top = max(top, scores[0][i]);
    }
    if (top > most) {
      sum *= metal::precise::exp(most - top);
      most = top;
    }
    for (uint i = 0; i < N; ++i) {
      sum += above(scores[0][i], most);
    }
  }
  float row_most = team_reduce<Max>(most, team.width, scratch, lane, simdgroup, simdgroups);
  if (most != -INFINITY) {
    sum *= metal::precise::exp(most - row_most);
  }
  sum = team_reduce<Sum>(sum, team.width, scratch, lane, simdgroup, simdgroups);
  float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (uint at = first; at < len; at += span) {
    load_scores(scores[0], x, mask, at, len, p);
    for (uint i = 0; i < N; ++i) {
      scores[0][i] = above(scores[0][i], row_most);
    }
    store_shares(out, scores[0], factor, at, len, p);
  }
}

instantiate_kernel("softmax_f32_f32", softmax, float, float)
instantiate_kernel("softmax_f16_f16", softmax, half, half)
instantiate_kernel("softmax_f16_f32", softmax, half, float)
instantiate_kernel("softmax_bf16_bf16", softmax, bfloat, bfloat)
instantiate_kernel("softmax_bf16_f32", softmax, bfloat, float)
