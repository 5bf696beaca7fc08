// Functions that the Metal standard library lacks, good to about 2e-7 relative.

// To some 1e-5 where a source asks for QUICK, for results of 16 bits.
#ifdef QUICK
inline float exponential(float x) { return metal::fast::exp(x); }
inline float quotient(float a, float b) { return metal::fast::divide(a, b); }
#else
inline float exponential(float x) { return metal::precise::exp(x); }
inline float quotient(float a, float b) { return a / b; }
#endif

// The complementary error function of z >= 0 over e^(-z^2): t * q(t) with t = 1 / (1 + z / 2), q fitted at Chebyshev nodes.
inline float erfc_scaled(float z) {
  float t = quotient(1.0f, 1.0f + 0.5f * z);
  float q = 0.04535134f;
  q = q * t - 0.24558003f;
  q = q * t + 0.5168995f;
  q = q * t - 0.48247477f;
  q = q * t + 0.15188517f;
  q = q * t - 0.06795827f;
  q = q * t + 0.0958271f;
  q = q * t + 0.1749486f;
  q = q * t + 0.24691357f;
  q = q * t + 0.28209287f;
  q = q * t + 0.2820948f;
  return t * q;
}

// log(1 + u) for 0 <= u <= 1: what rounding took from 1 + u is put back by the quotient.
inline float log_one_plus(float u) {
  float w = 1.0f + u;
  return w == 1.0f ? u : metal::precise::log(w) * (u / (w - 1.0f));
}

inline float sigmoid(float x) { return quotient(1.0f, 1.0f + exponential(-x)); }

inline float silu(float x) { return x * sigmoid(x); }

// 0.5 * (1 + tanh(u)) is sigmoid(2u), which keeps its relative accuracy where the result is small.
inline float gelu_tanh(float x) { return x * sigmoid(1.5957691f * (x + 0.044715f * x * x * x)); }

// x * (1 + erf(x / sqrt 2)) / 2, by the complement for the same reason.
inline float gelu_erf(float x) {
  float z = metal::abs(x) * 0.70710677f;
  float tail = 0.5f * exponential(-z * z) * erfc_scaled(z);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

inline float softplus(float x) {
  // Not max(x, 0), which may drop a NaN.
  return (x < 0.0f ? 0.0f : x) + log_one_plus(metal::precise::exp(-metal::abs(x)));
}
