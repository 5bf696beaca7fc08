// sort: blocks by a bitonic network in threadgroup memory, then runs merged two by two, a thread 8 elements of the
// result, whose place in both runs it finds by bisection. What is sorted is a key with the element's index below it:
// no two are equal, which makes the order stable.

#include "silicide.h"
#include "order.h"
#include "walk.h"

template <typename T>
inline uint sort_key(T x) { return order_key(float(x)); }
template <>
inline uint sort_key<int>(int x) { return uint(x) ^ 0x80000000u; }
template <>
inline uint sort_key<uint>(uint x) { return x; }

// O is ulong for keys with indices, uint for indices alone.
template <typename T, typename O>
kernel void sort_blocks(
    device const T* x [[buffer(0)]],
    device O* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]]) {
  threadgroup ulong block[2048];
  uint row = group / p.blocks;
  ulong start = ulong(group % p.blocks) * p.block;
  x += walk_start(p.walk, 0, row);
  out += row * p.keep;
  for (uint i = thread_index; i < p.block; i += threads) {
    // What fills a block up comes after all elements.
    ulong pair = ~0ul;
    if (start + i < p.walk.len) {
      uint key = sort_key<T>(x[(start + i) * p.walk.inner[0]]);
      pair = ulong(p.descending ? ~key : key) << 32 | (start + i);
    }
    block[i] = pair;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint size = 2; size <= p.block; size *= 2) {
    for (uint distance = size / 2; distance > 0; distance /= 2) {
      for (uint i = thread_index; i < p.block / 2; i += threads) {
        uint low = 2 * i - (i & (distance - 1));
        uint high = low + distance;
        ulong a = block[low];
        ulong b = block[high];
        bool rising = (low & size) == 0;
        if ((a > b) == rising) {
          block[low] = b;
          block[high] = a;
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
  for (uint i = thread_index; i < p.block && start + i < p.keep; i += threads) {
    out[start + i] = O(block[i]);
  }
}

template <typename O>
kernel void sort_merge(
    device const ulong* from [[buffer(0)]],
    device O* to [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint thread_index [[thread_position_in_grid]]) {
  uint row = thread_index / p.pieces;
  if (row >= p.walk.rows) {
    return;
  }
  from += row * p.walk.len;
  to += row * p.keep;
  // Runs are multiples of 8, so that a piece is of one pair of runs.
  ulong out = ulong(thread_index % p.pieces) * 8;
  ulong start = out / (2 * p.run) * (2 * p.run);
  ulong middle = min(start + p.run, p.walk.len);
  ulong end = min(middle + p.run, p.walk.len);
  // How many of those before the piece are of the first run.
  ulong before = out - start;
  ulong low = before > end - middle ? before - (end - middle) : 0;
  ulong high = min(before, middle - start);
  while (low < high) {
    ulong i = low + (high - low) / 2;
    if (from[start + i] < from[middle + before - 1 - i]) {
      low = i + 1;
    } else {
      high = i;
    }
  }
  ulong a = start + low;
  ulong b = middle + before - low;
  ulong next_a = a < middle ? from[a] : ~0ul;
  ulong next_b = b < end ? from[b] : ~0ul;
  for (ulong i = out; i < min(min(out + 8, end), p.keep); ++i) {
    to[i] = O(next_a < next_b ? next_a : next_b);
    if (next_a < next_b) {
      a += 1;
      next_a = a < middle ? from[a] : ~0ul;
    } else {
      b += 1;
      next_b = b < end ? from[b] : ~0ul;
    }
  }
}

#define instantiate_sort(name, T)                                    \
  instantiate_kernel("sort_" name "_u64", sort_blocks, T, ulong)     \
  instantiate_kernel("sort_" name "_u32", sort_blocks, T, uint)

instantiate_sort("f32", float)
instantiate_sort("f16", half)
instantiate_sort("bf16", bfloat)
instantiate_sort("i32", int)
instantiate_sort("u32", uint)
instantiate_kernel("sort_merge_u64", sort_merge, ulong)
instantiate_kernel("sort_merge_u32", sort_merge, uint)
