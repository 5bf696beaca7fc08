// copy: a thread takes a few elements, which may be packets of the tensors' own; one kernel a size of element.

#include "silicide.h"
#include "packet.h"
#include "walk.h"

template <typename T>
kernel void copy(
    device const T* x [[buffer(0)]],
    device T* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_index [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]]) {
  Steps<1> steps(group, thread_index, threads);
  if (steps.row >= p.walk.rows) {
    return;
  }
  x += walk_start(p.walk, 0, steps.row);
  out += walk_start(p.walk, 1, steps.row);
  T held[EACH];
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      held[v] = x[steps.at(v) * p.walk.inner[0]];
    }
  }
  for (uint v = 0; v < EACH; ++v) {
    if (steps.at(v) < p.walk.len) {
      out[steps.at(v) * p.walk.inner[1]] = held[v];
    }
  }
}

instantiate_kernel("copy_8", copy, uchar)
instantiate_kernel("copy_16", copy, ushort)
instantiate_kernel("copy_32", copy, uint)
instantiate_kernel("copy_64", copy, ulong)
instantiate_kernel("copy_128", copy, uint4)

// Threads that turn a square: as many across as a line has packets.
constant constexpr uint THREADS = 128;

// A square whose columns become rows, by way of threadgroup memory, so that both sides are walked along their lines. WHOLE says that
// lines are whole packets, which lie aligned.
template <typename T>
kernel void copy_turned(
    device const T* x [[buffer(0)]],
    device T* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 thread_index [[thread_position_in_threadgroup]]) {
  constexpr uint SIDE = 128 / sizeof(T);
  constexpr uint N = WHOLE ? Wide<T>::COUNT : 1;
  constexpr uint PACKETS = SIDE / N;
  // Lines of a thread are this far apart. It loads HELD packets before it uses the first.
  constexpr uint STEP = THREADS / PACKETS;
  constexpr uint HELD = SIDE / STEP < 4 ? SIDE / STEP : 4;
  // Lines that follow each other begin in banks that do. Line j * PACKETS + i is the square's i * N + j, so that also the same element
  // of packets that follow each other does.
  constexpr uint PITCH = SIDE + (sizeof(T) < 4 ? 4 / sizeof(T) : 1);
  threadgroup T square[SIDE * PITCH];
  uint top = group.x % p.squares[0] * SIDE;
  uint rest = group.x / p.squares[0];
  uint left = rest % p.squares[1] * SIDE;
  uint row = rest / p.squares[1];
  uint across = min(SIDE, p.across - left);
  uint down = min(SIDE, uint(p.walk.len) - top);
  uint first = thread_index.x * N;
  x += walk_start(p.walk, 0, row) + top * p.walk.inner[0] + left;
  out += walk_start(p.walk, 1, row) + left * p.out_stride + top;

  for (uint start = thread_index.y; start < SIDE; start += STEP * HELD) {
    Packet<T, N> held[HELD];
    for (uint v = 0; v < HELD; ++v) {
      uint line = start + v * STEP;
      uint from = line % PACKETS * N + line / PACKETS;
      bool inside = from < down && first < across;
      held[v] = inside ? Packet<T, N>::load(x + from * p.walk.inner[0] + first) : Packet<T, N>::zeros();
    }
    for (uint v = 0; v < HELD; ++v) {
      for (uint j = 0; j < N; ++j) {
        square[(start + v * STEP) * PITCH + first + j] = held[v].get(j);
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint line = thread_index.y; line < SIDE; line += STEP) {
    uint to = line % 4 * (SIDE / 4) + line / 4;
    if (to < across && first < down) {
      Packet<T, N> packet = Packet<T, N>::zeros();
      for (uint j = 0; j < N; ++j) {
        packet.put(j, square[(j * PACKETS + thread_index.x) * PITCH + to]);
      }
      packet.store(out + to * p.out_stride + first);
    }
  }
}

instantiate_kernel("copy_turned_8", copy_turned, uchar)
instantiate_kernel("copy_turned_16", copy_turned, ushort)
instantiate_kernel("copy_turned_32", copy_turned, uint)
instantiate_kernel("copy_turned_64", copy_turned, ulong)
