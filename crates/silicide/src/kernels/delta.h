// What forms of gated_delta_rule share, where the host defines DK, the elements of a key.

inline uint key_head(constant Params& p, uint head) {
  return p.tiled ? head % p.key_heads : head / (p.value_heads / p.key_heads);
}

inline float decay(constant Params& p, float g) { return p.log ? metal::precise::exp(g) : g; }

// Rows of a state that a simdgroup takes token by token, each shared by 8 lanes that keep it in registers.
constant constexpr uint ROWS_AT_ONCE = 4;
template <typename T>
inline void token_by_token(
    device const T* q,
    device const T* k,
    device const T* v,
    device const float* g,
    device const float* beta,
    device float* state,
    device T* out,
    constant Params& p,
    uint head,
    uint first_row,
    uint lane) {
  constexpr uint LANES = 32 / ROWS_AT_ONCE;
  constexpr uint PER_LANE = (DK + LANES - 1) / LANES;
  uint part = lane % LANES;
  uint row = first_row + lane / LANES;
  bool inside = row < p.dv;
  row = min(row, p.dv - 1);
  q += ulong(key_head(p, head)) * p.q_strides[1];
  k += ulong(key_head(p, head)) * p.k_strides[1];
  v += ulong(head) * p.v_strides[1] + row;
  out += ulong(head) * p.out_strides[1] + row;
  g += head;
  beta += head;
  state += (ulong(head) * p.dv + row) * DK;

  float s[PER_LANE];
  float key[PER_LANE];
  for (uint i = 0; i < PER_LANE; ++i) {
    uint d = part + LANES * i;
    s[i] = inside && d < DK ? state[d] : 0.0f;
  }
  for (uint token = 0; token < p.tokens; ++token) {
    float kept = decay(p, g[ulong(token) * p.g_stride]);
    float predicted = 0;
    for (uint i = 0; i < PER_LANE; ++i) {
      uint d = part + LANES * i;
      key[i] = d < DK ? float(k[ulong(token) * p.k_strides[0] + d]) : 0.0f;
      s[i] *= kept;
      predicted += s[i] * key[i];
    }
    for (ushort step = 1; step < LANES; step *= 2) {
      predicted += simd_shuffle_xor(predicted, step);
    }
    float u = (float(v[ulong(token) * p.v_strides[0]]) - predicted) * beta[ulong(token) * p.beta_stride];
    float y = 0;
    for (uint i = 0; i < PER_LANE; ++i) {
      uint d = part + LANES * i;
      s[i] += key[i] * u;
      y += d < DK ? s[i] * float(q[ulong(token) * p.q_strides[0] + d]) : 0.0f;
    }
    for (ushort step = 1; step < LANES; step *= 2) {
      y += simd_shuffle_xor(y, step);
    }
    if (part == 0 && inside) {
      out[ulong(token) * p.out_strides[0]] = T(y * p.scale);
    }
  }
  for (uint i = 0; i < PER_LANE; ++i) {
    uint d = part + LANES * i;
    if (inside && d < DK) {
      state[d] = s[i];
    }
  }
}
