// sample: the greatest logit of each part of a row, then the weights of its parts, then the draw by one threadgroup a row.
// Where top-p or top-k cut, the elements are first counted and weighed by their distance from the greatest, in bins that
// all parts share; the draw then looks for the cut among those of one bin. Weights are integers, whose sums are the same
// in any order.

#include "silicide.h"
#include "order.h"
#include "walk.h"

constant constexpr uint bins = 1024;

// Words of a row's bins: the lower and the upper halves of their weights, and their counts.
constant constexpr uint bin_words = 3 * bins;

// Limbs of 24 bits, whose sums over a simdgroup do not overflow: Metal reduces 32 bits at most.
inline ulong simd_prefix_sum(ulong x) {
  ulong low = simd_prefix_exclusive_sum(uint(x) & 0xffffffu);
  ulong middle = simd_prefix_exclusive_sum(uint(x >> 24) & 0xffffffu);
  ulong high = simd_prefix_exclusive_sum(uint(x >> 48));
  return low + (middle << 24) + (high << 48);
}

struct Scan {
  ulong before;
  ulong total;
};

// The sum of what the threads before have, and that of all. `scratch` holds 32; ends with a barrier.
inline Scan threadgroup_scan(
    ulong x, threadgroup ulong* scratch, uint lane, uint simdgroup, uint simdgroups) {
  Scan scan = {simd_prefix_sum(x), 0};
  if (lane == 31) {
    scratch[simdgroup] = scan.before + x;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  ulong before = 0;
  for (uint i = 0; i < simdgroups; ++i) {
    before = i == simdgroup ? scan.total : before;
    scan.total += scratch[i];
  }
  scan.before += before;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return scan;
}

// Adds to a number whose upper half is `bins` words behind the lower: of all that add, those that pass 2^32 carry.
inline void add_threadgroup(threadgroup atomic_uint* words, ulong x) {
  uint low = uint(x);
  uint before = atomic_fetch_add_explicit(words, low, memory_order_relaxed);
  uint high = uint(x >> 32) + (before + low < low ? 1 : 0);
  if (high != 0) {
    atomic_fetch_add_explicit(words + bins, high, memory_order_relaxed);
  }
}
inline void add_device(device atomic_uint* words, uint upper, ulong x) {
  uint low = uint(x);
  uint before = atomic_fetch_add_explicit(words, low, memory_order_relaxed);
  uint high = uint(x >> 32) + (before + low < low ? 1 : 0);
  if (high != 0) {
    atomic_fetch_add_explicit(words + upper, high, memory_order_relaxed);
  }
}

inline uint high_product(uint a, uint b) { return uint((ulong(a) * b) >> 32); }

// 2^40 * 2^-(below * scale), rounded down, in integers but for one product: the same on every device.
inline ulong weight(float below, float scale) {
  float exponent = below * scale;
  exponent = exponent < 63.0f ? exponent : 63.0f;
  uint fixed = uint(exponent * 16777216.0f);
  uint x = fixed << 8;
  // ln(2)^k / k! in units of 2^-32: the series of 2^-x.
  uint t = 0x1eu;
  t = 0x1b5u - high_product(x, t);
  t = 0x162cu - high_product(x, t);
  t = 0xffe6u - high_product(x, t);
  t = 0xa1849u - high_product(x, t);
  t = 0x576200u - high_product(x, t);
  t = 0x276556eu - high_product(x, t);
  t = 0xe35846cu - high_product(x, t);
  t = 0x3d7f7bffu - high_product(x, t);
  t = 0xb17217f8u - high_product(x, t);
  ulong fraction = 0x100000000ul - high_product(x, t);
  return (fraction << 8) >> (fixed >> 24);
}

// Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
inline uint4 philox(uint4 counter, uint2 key) {
  for (uint round = 0; round < 10; ++round) {
    uint high_a = high_product(counter.x, 0xd2511f53u);
    uint high_b = high_product(counter.z, 0xcd9e8d57u);
    counter = uint4(
        high_b ^ counter.y ^ key.x, counter.z * 0xcd9e8d57u, high_a ^ counter.w ^ key.y, counter.x * 0xd2511f53u);
    key.x += 0x9e3779b9u;
    key.y += 0xbb67ae85u;
  }
  return counter;
}

// a * b / 2^64.
inline ulong scaled(ulong a, uint b_high, uint b_low) {
  ulong a_high = a >> 32;
  ulong a_low = a & 0xffffffffu;
  ulong cross = a_high * b_low + ((a_low * b_low) >> 32);
  ulong other = a_low * b_high + (cross & 0xffffffffu);
  return a_high * b_high + (cross >> 32) + (other >> 32);
}

// NaN, an infinity, or nothing but negative infinity: there is nothing to draw from.
inline bool is_broken(uint top) { return top >= 0xff800000u || top <= 0x007fffffu; }

// The bin of a logit by its distance from the greatest: 128 to a doubling from 1/4 on, the rest of 64 and more.
inline uint bin_of(float below) { return min((as_type<uint>(below + 0.25f) - 0x3e800000u) >> 16, bins - 1); }

// The bin at which a limit is reached, what lies before it, and how many it has.
struct Found {
  ulong weight;
  ulong limit;
  uint count;
  uint within;
  uint bin;
};

// A thread of a threadgroup and what it shares with the others.
struct Group {
  threadgroup ulong* scratch;
  threadgroup Found* found;
  uint thread_index;
  uint threads;
  uint lane;
  uint simdgroup;
  uint simdgroups;

  Scan scan(ulong x) { return threadgroup_scan(x, scratch, lane, simdgroup, simdgroups); }
  ulong best(ulong x) { return threadgroup_best(x, scratch, lane, simdgroup, simdgroups); }
};

struct DeviceBins {
  device const uint* words;
  ulong weight(uint i) { return words[i] | ulong(words[bins + i]) << 32; }
  uint count(uint i) { return words[2 * bins + i]; }
};

struct ThreadgroupBins {
  threadgroup atomic_uint* words;
  uint word(uint i) { return atomic_load_explicit(words + i, memory_order_relaxed); }
  ulong weight(uint i) { return word(i) | ulong(word(bins + i)) << 32; }
  uint count(uint i) { return word(2 * bins + i); }

  void clear(uint thread_index, uint threads) {
    for (uint i = thread_index; i < bin_words; i += threads) {
      atomic_store_explicit(words + i, 0u, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  void add(uint i, ulong weight) {
    if (weight != 0) {
      add_threadgroup(words + i, weight);
    }
    atomic_fetch_add_explicit(words + 2 * bins + i, 1u, memory_order_relaxed);
  }
};

// The first of the bins with `limit` of the weight or `most` of the elements in it and before it, `start` being before
// all; the bin past the last where there is none. A limit of 0 stands for the share `top_p` of the whole weight.
template <typename Bins>
inline Found find(Group g, Bins all, Found start, uint most, uint top_p) {
  uint share = (bins + g.threads - 1) / g.threads;
  uint first = min(g.thread_index * share, bins);
  uint end = min(first + share, bins);
  ulong weight = 0;
  ulong count = 0;
  for (uint i = first; i < end; ++i) {
    weight += all.weight(i);
    count += all.count(i);
  }
  Scan weights = g.scan(weight);
  Scan counts = g.scan(count);
  if (start.limit == 0) {
    ulong total = weights.total;
    start.limit = max(1ul, (total >> 32) * top_p + (((total & 0xffffffffu) * top_p) >> 32));
  }
  if (g.thread_index == 0) {
    Found none = {start.weight, start.limit, start.count, 0, bins};
    *g.found = none;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  weight = start.weight + weights.before;
  count = start.count + counts.before;
  for (uint i = first; i < end; ++i) {
    ulong next_weight = weight + all.weight(i);
    ulong next_count = count + all.count(i);
    if (weight < start.limit && count < most && (next_weight >= start.limit || next_count >= most)) {
      Found here = {weight, start.limit, uint(count), uint(next_count - count), i};
      *g.found = here;
    }
    weight = next_weight;
    count = next_count;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  Found found = *g.found;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return found;
}

kernel void sample_best(
    device const float* logits [[buffer(0)]],
    device ulong* bests [[buffer(1)]],
    device uint* words [[buffer(2)]],
    device uint* counts [[buffer(3)]],
    constant Params& p [[buffer(4)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup ulong scratch[32];
  uint row = group / p.parts;
  uint part = group % p.parts;
  if (p.has_cut && part == 0) {
    // For the next launch.
    for (uint i = thread_index; i < bin_words; i += threads) {
      words[ulong(row) * bin_words + i] = 0;
    }
    if (thread_index == 0) {
      counts[row] = 0;
    }
  }
  ulong mine[part_each];
  load_part(logits + walk_start(p.walk, 0, row), p.walk.inner[0], p.walk.len, part, thread_index, threads, mine);
  ulong best = threadgroup_best(best_of(mine), scratch, lane, simdgroup, simdgroups);
  if (thread_index == 0) {
    bests[group] = best;
  }
}

// The greatest key of a row, by each simdgroup for itself.
inline uint top_of(device const ulong* bests, constant Params& p, uint row, uint lane) {
  uint top = 0;
  for (uint i = lane; i < p.parts; i += 32) {
    top = max(top, candidate_key(bests[ulong(row) * p.parts + i]));
  }
  return simd_max(top);
}

constant constexpr float log2_e = 1.44269504f;

kernel void sample_bins(
    device const float* logits [[buffer(0)]],
    device const ulong* bests [[buffer(1)]],
    device atomic_uint* words [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup atomic_uint shared[bin_words];
  uint row = group / p.parts;
  ulong mine[part_each];
  load_part(
      logits + walk_start(p.walk, 0, row), p.walk.inner[0], p.walk.len, group % p.parts, thread_index, threads, mine);
  uint top = top_of(bests, p, row, lane);
  if (is_broken(top)) {
    return;
  }
  float most = key_value(top);
  ThreadgroupBins all = {shared};
  all.clear(thread_index, threads);
  for (uint j = 0; j < part_each; ++j) {
    if (mine[j] != 0) {
      float below = most - key_value(candidate_key(mine[j]));
      all.add(bin_of(below), p.has_top_p ? weight(below, log2_e) : 0);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  words += ulong(row) * bin_words;
  for (uint i = thread_index; i < bins; i += threads) {
    uint count = all.count(i);
    if (count != 0) {
      atomic_fetch_add_explicit(words + 2 * bins + i, count, memory_order_relaxed);
      add_device(words + i, bins, all.weight(i));
    }
  }
}

// The weight of what is surely drawn from of each part, and a row's list, in any order, of what is in the bin of the cut.
kernel void sample_weigh(
    device const float* logits [[buffer(0)]],
    device const ulong* bests [[buffer(1)]],
    device const uint* words [[buffer(2)]],
    device ulong* sums [[buffer(3)]],
    device ulong* cuts [[buffer(4)]],
    device atomic_uint* counts [[buffer(5)]],
    device ulong* lists [[buffer(6)]],
    constant Params& p [[buffer(7)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup ulong scratch[32];
  threadgroup Found shared;
  threadgroup atomic_uint listed;
  threadgroup uint first_place;
  uint row = group / p.parts;
  ulong mine[part_each];
  load_part(
      logits + walk_start(p.walk, 0, row), p.walk.inner[0], p.walk.len, group % p.parts, thread_index, threads, mine);
  uint top = top_of(bests, p, row, lane);
  if (is_broken(top)) {
    return;
  }
  float most = key_value(top);
  Group g = {scratch, &shared, thread_index, threads, lane, simdgroup, simdgroups};
  uint cut = bins;
  if (p.has_cut) {
    if (thread_index == 0) {
      atomic_store_explicit(&listed, 0u, memory_order_relaxed);
    }
    Found start = {0, p.has_top_p ? 0 : ~0ul, 0, 0, 0};
    DeviceBins all = {words + ulong(row) * bin_words};
    Found found = find(g, all, start, p.top_k, p.top_p);
    cut = found.bin;
    if (thread_index == 0 && group % p.parts == 0) {
      cuts += ulong(row) * 4;
      cuts[0] = found.weight;
      cuts[1] = found.limit;
      cuts[2] = found.count;
      cuts[3] = found.bin;
    }
  }
  ulong sum = 0;
  // Places among those of the threadgroup, behind a 1 where there is one.
  uint places[part_each];
  for (uint j = 0; j < part_each; ++j) {
    places[j] = 0;
    if (mine[j] != 0) {
      float below = most - key_value(candidate_key(mine[j]));
      uint bin = cut == bins ? 0 : bin_of(below);
      if (bin == cut) {
        places[j] = atomic_fetch_add_explicit(&listed, 1u, memory_order_relaxed) + 1;
      } else if (bin < cut && below <= p.distance) {
        sum += weight(below, p.scale);
      }
    }
  }
  sum = g.scan(sum).total;
  if (thread_index == 0) {
    sums[group] = sum;
    if (cut < bins) {
      uint count = atomic_load_explicit(&listed, memory_order_relaxed);
      first_place = atomic_fetch_add_explicit(counts + row, count, memory_order_relaxed);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (cut < bins) {
    lists += ulong(row) * p.walk.len + first_place;
    for (uint j = 0; j < part_each; ++j) {
      if (places[j] != 0) {
        lists[places[j] - 1] = mine[j];
      }
    }
  }
}

// What the cut is looked for by: keys from the greatest down, or at one key the indices from the first up.
struct Field {
  uint top;
  uint key;
  bool by_index;

  bool has(ulong c) { return !by_index || candidate_key(c) == key; }
  uint value(ulong c) { return by_index ? candidate_index(c) : top - candidate_key(c); }
};

// The value up to `span` at which a limit is reached, in `bin`; bins get narrower until one has a single value.
inline Found refine(
    Group g, ThreadgroupBins all, device const ulong* list, uint count, Field field, uint span, Found found,
    constant Params& p, float most) {
  uint base = 0;
  uint shift = 0;
  while (span >> shift >= bins) {
    ++shift;
  }
  for (;;) {
    all.clear(g.thread_index, g.threads);
    for (uint i = g.thread_index; i < count; i += g.threads) {
      ulong element = list[i];
      uint value = field.value(element);
      if (field.has(element) && value >= base && value - base <= span) {
        float below = most - key_value(candidate_key(element));
        all.add((value - base) >> shift, p.has_top_p && !field.by_index ? weight(below, log2_e) : 0);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    found = find(g, all, found, p.top_k, 0);
    base += found.bin << shift;
    if (shift == 0) {
      found.bin = base;
      return found;
    }
    span = (1u << shift) - 1;
    shift = shift > 10 ? shift - 10 : 0;
  }
}

// The weight of an element, 0 where it is not drawn from.
inline ulong drawable(float logit, uint i, ulong cut, float most, constant Params& p) {
  bool kept = candidate(order_key(logit), i) >= cut && most - logit <= p.distance;
  return kept ? weight(most - logit, p.scale) : 0;
}

kernel void sample_draw(
    device const float* logits [[buffer(0)]],
    device uint* state [[buffer(1)]],
    device uint* out [[buffer(2)]],
    device const ulong* bests [[buffer(3)]],
    device ulong* sums [[buffer(4)]],
    device const ulong* cuts [[buffer(5)]],
    device const uint* counts [[buffer(6)]],
    device const ulong* lists [[buffer(7)]],
    constant Params& p [[buffer(8)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup ulong scratch[32];
  threadgroup Found shared;
  threadgroup atomic_uint words[bin_words];
  threadgroup uint random[2];
  threadgroup ulong drawn[2];
  Group g = {scratch, &shared, thread_index, threads, lane, simdgroup, simdgroups};
  const ulong first_part = ulong(row) * p.parts;
  const uint part_size = part_threads * part_each;
  state += ulong(row) * 4;
  if (thread_index == 0) {
    uint4 numbers = philox(uint4(state[2], state[3], 0, 0), uint2(state[0], state[1]));
    random[0] = numbers.x;
    random[1] = numbers.y;
    state[2] += 1;
    state[3] += state[2] == 0 ? 1 : 0;
  }
  ulong best = 0;
  for (uint i = thread_index; i < p.parts; i += threads) {
    best = max(best, bests[first_part + i]);
  }
  best = g.best(best);
  bool broken = is_broken(candidate_key(best));
  if (broken || p.top_k == 1) {
    if (thread_index == 0) {
      out[row] = broken ? 0xffffffffu : candidate_index(best);
    }
    return;
  }
  float most = key_value(candidate_key(best));

  // The least candidate that is drawn from.
  ulong cut = 0;
  if (p.has_cut && cuts[ulong(row) * 4 + 3] < bins) {
    cuts += ulong(row) * 4;
    uint count = counts[row];
    lists += ulong(row) * p.walk.len;
    ulong high = 0;
    ulong low = 0;
    for (uint i = thread_index; i < count; i += threads) {
      ulong element = lists[i];
      high = max(high, element);
      low = max(low, ~element);
    }
    uint top = candidate_key(g.best(high));
    uint bottom = candidate_key(~g.best(low));
    ThreadgroupBins all = {words};
    Found found = {cuts[0], cuts[1], uint(cuts[2]), 0, 0};
    Field keys = {top, 0, false};
    found = refine(g, all, lists, count, keys, top - bottom, found, p, most);
    uint key = top - found.bin;
    cut = ulong(key) << 32;
    if (found.within > p.top_k - found.count) {
      // Of equals, top-k keeps the first.
      found.limit = ~0ul;
      Field indices = {0, key, true};
      found = refine(g, all, lists, count, indices, uint(p.walk.len - 1), found, p, most);
      cut = candidate(key, found.bin);
    }
    // Those of the bin that are drawn from belong to the weights of their parts.
    for (uint i = thread_index; i < count; i += threads) {
      ulong element = lists[i];
      float below = most - key_value(candidate_key(element));
      if (element >= cut && below <= p.distance) {
        uint part = candidate_index(element) / part_size;
        add_device((device atomic_uint*)(sums + first_part + part), 1, weight(below, p.scale));
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  }

  // The part that is drawn, and what is left of the random number's share there.
  uint share = (p.parts + threads - 1) / threads;
  uint first = min(thread_index * share, p.parts);
  uint end = min(first + share, p.parts);
  ulong mine = 0;
  for (uint i = first; i < end; ++i) {
    mine += sums[first_part + i];
  }
  Scan scan = g.scan(mine);
  ulong left = scaled(scan.total, random[0], random[1]);
  if (left >= scan.before && left - scan.before < mine) {
    left -= scan.before;
    uint part = first;
    while (left >= sums[first_part + part]) {
      left -= sums[first_part + part];
      ++part;
    }
    drawn[0] = part;
    drawn[1] = left;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint start = uint(drawn[0]) * part_size;
  left = drawn[1];

  // The same within the part.
  logits += walk_start(p.walk, 0, row);
  uint length = min(part_size, uint(p.walk.len) - start);
  share = (part_size + threads - 1) / threads;
  first = start + min(thread_index * share, length);
  end = min(first + share, start + length);
  mine = 0;
  for (uint i = first; i < end; ++i) {
    mine += drawable(logits[i * p.walk.inner[0]], i, cut, most, p);
  }
  scan = g.scan(mine);
  if (left >= scan.before && left - scan.before < mine) {
    left -= scan.before;
    for (uint i = first; i < end; ++i) {
      ulong weight = drawable(logits[i * p.walk.inner[0]], i, cut, most, p);
      if (left < weight) {
        out[row] = i;
        break;
      }
      left -= weight;
    }
  }
}
