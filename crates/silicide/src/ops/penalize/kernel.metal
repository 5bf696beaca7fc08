// penalize: one thread a recent token, of equals the first.

#include "silicide.h"

kernel void penalize(
    device float* logits [[buffer(0)]],
    device const uint* recent [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint thread_index [[thread_position_in_grid]]) {
  uint row = thread_index / p.count;
  uint place = thread_index % p.count;
  if (row >= p.rows) {
    return;
  }
  recent += ulong(row) * p.count;
  uint id = recent[place];
  if (id >= p.vocab) {
    return;
  }
  uint times = 0;
  uint before = 0;
  for (uint i = 0; i < p.count; ++i) {
    uint same = recent[i] == id ? 1 : 0;
    times += same;
    before += i < place ? same : 0;
  }
  if (before == 0) {
    device float* logit = logits + ulong(row) * p.stride + id;
    float factor = *logit < 0.0f ? p.repetition : p.inverse;
    *logit = fma(*logit, factor, -fma(p.frequency, float(times), p.presence));
  }
}
