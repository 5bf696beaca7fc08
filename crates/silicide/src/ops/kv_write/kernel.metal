// kv_write: a thread takes a packet of a head, of the keys and of the values, then that of a later token. Threads are packets by heads by
// tokens; the host says in WHOLE that heads are whole packets, which lie aligned in every tensor, and defines RING or PAGES where the
// cache is one.

#include "silicide.h"
#include "packet.h"
#include "ring.h"

template <typename T, typename C>
kernel void kv_write(
    device const T* keys [[buffer(0)]],
    device const T* values [[buffer(1)]],
    device const uint* slots [[buffer(2)]],
    device const uint* table [[buffer(3)]],
    device C* key_cache [[buffer(4)]],
    device C* value_cache [[buffer(5)]],
    constant Params& p [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threadgroups [[threadgroups_per_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint flat_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  constexpr uint N = WHOLE ? (sizeof(T) + sizeof(C) == 8 ? 4 : 8) : 1;
  threadgroup int newest_of[8];
  int newest = newest_position(slots, p.tokens, newest_of, flat_index, threads.x * threads.y * threads.z, lane);
  uint head = group.y * threads.y + thread_index.y;
  if (head >= p.heads) {
    return;
  }
  keys += ulong(head) * p.k_strides[1];
  values += ulong(head) * p.v_strides[1];
  key_cache += ulong(head) * p.k_cache_strides[1];
  value_cache += ulong(head) * p.v_cache_strides[1];
  // A thread of a ring has many tokens, of which some go together.
#ifdef RING
  constexpr uint TOKENS = 4;
#else
  constexpr uint TOKENS = 1;
#endif
  uint step = threadgroups.x * threads.z;
  for (uint first = group.x * threads.z + thread_index.z; first < p.tokens; first += TOKENS * step) {
    bool written[TOKENS];
    device C* key_rows[TOKENS];
    device C* value_rows[TOKENS];
    for (uint t = 0; t < TOKENS; ++t) {
      uint token = first + t * step;
      uint slot = token < p.tokens ? row_of(slots[token], newest, p.capacity) : p.capacity;
      written[t] = slot < p.capacity;
      key_rows[t] = key_cache;
      value_rows[t] = value_cache;
#ifdef PAGES
      uint page = written[t] ? table[slot / p.page_size] : p.pages;
      written[t] = page < p.pages;
      slot %= p.page_size;
      key_rows[t] += ulong(page) * p.page_strides[0];
      value_rows[t] += ulong(page) * p.page_strides[1];
#endif
      key_rows[t] += ulong(slot) * p.k_cache_strides[0];
      value_rows[t] += ulong(slot) * p.v_cache_strides[0];
    }
    for (uint i = thread_index.x * N; i < p.dim; i += threads.x * N) {
      Packet<T, N> key[TOKENS];
      Packet<T, N> value[TOKENS];
      for (uint t = 0; t < TOKENS; ++t) {
        if (written[t]) {
          key[t] = Packet<T, N>::load(keys + ulong(first + t * step) * p.k_strides[0] + i);
          value[t] = Packet<T, N>::load(values + ulong(first + t * step) * p.v_strides[0] + i);
        }
      }
      for (uint t = 0; t < TOKENS; ++t) {
        if (written[t]) {
          Packet<C, N> stored_key = converted<C>(key[t]);
          Packet<C, N> stored_value = converted<C>(value[t]);
          stored_key.store(key_rows[t] + i);
          stored_value.store(value_rows[t] + i);
        }
      }
    }
  }
}

#define instantiate_kv_write(name, T)                           \
  instantiate_kernel("kv_write_" name "_f32", kv_write, T, float)   \
  instantiate_kernel("kv_write_" name "_f16", kv_write, T, half)    \
  instantiate_kernel("kv_write_" name "_bf16", kv_write, T, bfloat)

instantiate_kv_write("f32", float)
instantiate_kv_write("f16", half)
instantiate_kv_write("bf16", bfloat)
