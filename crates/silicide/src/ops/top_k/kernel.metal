// top_k: each simdgroup of a part of a row takes its best one after the other, the threadgroup merges their lists, and
// another threadgroup merges those of up to 256 parts. A list is in falling order, filled up with 0.

#include "silicide.h"
#include "order.h"
#include "walk.h"

constant constexpr uint most = 64;
constant constexpr uint simdgroups_most = 8;

// Candidates that a threadgroup joins lists from without going back to memory.
constant constexpr uint staged_most = 3072;

// What a simdgroup finds one after the other, two to a lane. A condition on the lane alone, to store each where it is found,
// would make compilers run lane 0 apart from the others.
struct Ranked {
  ulong low;
  ulong high;

  void put(uint rank, uint lane, ulong best) {
    low = rank == lane ? best : low;
    high = rank == lane + 32 ? best : high;
  }
  void store(threadgroup ulong* list, uint k, uint lane) {
    if (lane < k) {
      list[lane] = low;
    }
    if (lane + 32 < k) {
      list[lane + 32] = high;
    }
  }
};

// Where the lists of a threadgroup's simdgroups go once they are one.
template <typename T>
struct Output {
  device const T* x;
  ulong stride;
  device T* values;
  device uint* indices;
  // The list of the part, instead, where another threadgroup merges it.
  device ulong* list;
  bool last;

  void put(uint rank, ulong best) {
    if (last) {
      uint index = candidate_index(best);
      values[rank] = x[index * stride];
      indices[rank] = index;
    } else {
      list[rank] = best;
    }
  }
};

// `lists` has `k` a simdgroup. A candidate's rank is the number of those above it in each list.
template <typename T>
inline void merge(
    threadgroup ulong* lists, uint k, Output<T> output, uint thread_index, uint threads, uint simdgroups) {
  if (!output.last) {
    // A part may have fewer.
    for (uint i = thread_index; i < k; i += threads) {
      output.list[i] = 0;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  for (uint i = thread_index; i < simdgroups * k; i += threads) {
    ulong mine = lists[i];
    uint rank = 0;
    for (uint other = 0; other < simdgroups; ++other) {
      uint low = 0;
      uint high = k;
      while (low < high) {
        uint middle = (low + high) / 2;
        if (lists[other * k + middle] > mine) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      rank += low;
    }
    // Those that fill up are all of one rank.
    if (mine != 0 && rank < k) {
      output.put(rank, mine);
    }
  }
}

template <typename T>
kernel void top_k(
    device const T* x [[buffer(0)]],
    device T* values [[buffer(1)]],
    device uint* indices [[buffer(2)]],
    device ulong* to [[buffer(3)]],
    constant Params& p [[buffer(4)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup ulong lists[simdgroups_most * most];
  ulong out = ulong(group) * p.k;
  x += walk_start(p.walk, 0, group / p.lists);
  ulong mine[part_each];
  load_part(x, p.walk.inner[0], p.walk.len, group % p.lists, thread_index, threads, mine);
  ulong next = best_of(mine);
  Ranked ranked = {0, 0};
  for (uint i = 0; i < p.k; ++i) {
    ulong best = simd_best(next);
    ranked.put(i, lane, best);
    if (best == next) {
      for (uint j = 0; j < part_each; ++j) {
        mine[j] = mine[j] == best ? 0 : mine[j];
      }
      next = best_of(mine);
    }
  }
  ranked.store(lists + simdgroup * p.k, p.k, lane);
  Output<T> output = {x, p.walk.inner[0], values + out, indices + out, to + out, p.last != 0};
  merge(lists, p.k, output, thread_index, threads, simdgroups);
}

// A lane takes a list.
template <typename T>
kernel void top_k_join(
    device const T* x [[buffer(0)]],
    device T* values [[buffer(1)]],
    device uint* indices [[buffer(2)]],
    device const ulong* from [[buffer(3)]],
    device ulong* to [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup ulong lists[simdgroups_most * most];
  threadgroup ulong staged[staged_most];
  uint row = group / p.joined;
  uint list = group % p.joined * (32 * simdgroups_most) + thread_index;
  // Lanes without a list have zeros.
  bool has_list = list < p.lists;
  from += (ulong(row) * p.lists + min(list, p.lists - 1)) * p.k;
  // A lane reads its own list alone; few lists give more than their first ones. Eight loads are under way at once.
  uint depth = min(p.k, staged_most / threads);
  threadgroup ulong* ahead = staged + thread_index * depth;
  for (uint first = 0; first < depth; first += 8) {
    ulong loaded[8];
    for (uint j = 0; j < 8; ++j) {
      loaded[j] = from[min(first + j, p.k - 1)];
    }
    for (uint j = 0; j < 8; ++j) {
      if (first + j < depth) {
        ahead[first + j] = has_list ? loaded[j] : 0;
      }
    }
  }
  uint at = 0;
  ulong next = ahead[0];
  Ranked ranked = {0, 0};
  for (uint i = 0; i < p.k; ++i) {
    ulong best = simd_best(next);
    ranked.put(i, lane, best);
    if (best == next && best != 0) {
      at += 1;
      next = 0;
      if (at < depth) {
        next = ahead[at];
      } else if (at < p.k) {
        next = from[at];
      }
    }
  }
  ranked.store(lists + simdgroup * p.k, p.k, lane);
  ulong out = ulong(group) * p.k;
  x += walk_start(p.walk, 0, row);
  Output<T> output = {x, p.walk.inner[0], values + out, indices + out, to + out, p.last != 0};
  merge(lists, p.k, output, thread_index, threads, simdgroups);
}

instantiate_floats("top_k", top_k)
instantiate_floats("top_k_join", top_k_join)
