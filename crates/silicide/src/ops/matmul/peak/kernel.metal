// Multiply-adds on registers alone, as many at a time as keep the units busy. Results are never stored: the last comparison
// only keeps the compiler from leaving the work out.

kernel void peak_f32(
    device const float* seeds [[buffer(0)]],
    device float* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  float a = seeds[thread_index];
  float b = seeds[thread_index + 1];
  float sums[16];
  for (uint i = 0; i < 16; ++i) {
    sums[i] = seeds[thread_index + i];
  }
  for (uint step = 0; step < p.steps; ++step) {
    for (uint i = 0; i < 16; ++i) {
      sums[i] = fma(sums[i], a, b);
    }
  }
  float all = 0.0f;
  for (uint i = 0; i < 16; ++i) {
    all += sums[i];
  }
  if (all == p.never) {
    out[0] = all;
  }
}

kernel void peak_bf16(
    device const float* seeds [[buffer(0)]],
    device float* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  device const bfloat* numbers = (device const bfloat*)seeds + simdgroup * 64;
  simdgroup_matrix<bfloat, 8, 8> a[2];
  simdgroup_matrix<bfloat, 8, 8> b[4];
  simdgroup_float8x8 sums[2][4];
  for (uint i = 0; i < 2; ++i) {
    simdgroup_load(a[i], numbers + i * 64, 8);
  }
  for (uint j = 0; j < 4; ++j) {
    simdgroup_load(b[j], numbers + j * 64, 8);
    for (uint i = 0; i < 2; ++i) {
      sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }
  for (uint step = 0; step < p.steps; ++step) {
    for (uint i = 0; i < 2; ++i) {
      for (uint j = 0; j < 4; ++j) {
        simdgroup_multiply_accumulate(sums[i][j], a[i], b[j], sums[i][j]);
      }
    }
  }
  float all = 0.0f;
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 4; ++j) {
      all += sums[i][j].thread_elements()[0] + sums[i][j].thread_elements()[1];
    }
  }
  if (all == p.never) {
    out[0] = all;
  }
}
