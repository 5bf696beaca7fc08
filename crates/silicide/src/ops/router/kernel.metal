// router: one simdgroup a token. A lane holds every 32nd expert, PER_LANE of them, as keys in registers; a chosen one's key
// becomes 0, which orders below all.

#include "silicide.h"
#include "math.h"
#include "order.h"

struct Chosen {
  uint key;
  uint index;
};

// The greatest key of the simdgroup; of equals the first.
inline Chosen simdgroup_best(thread const uint* keys, uint lane) {
  Chosen mine = {0, 0xffffffffu};
  for (uint i = 0; i < PER_LANE; ++i) {
    if (keys[i] > mine.key) {
      mine.key = keys[i];
      mine.index = lane + 32 * i;
    }
  }
  uint key = simd_max(mine.key);
  Chosen best = {key, simd_min(mine.key == key ? mine.index : 0xffffffffu)};
  return best;
}

// Of a softmax what is not yet divided by the sum; `most` is the greatest logit.
inline float score_of(RouterScore score, float logit, float most) {
  switch (score) {
    case RouterScore::Sigmoid: return sigmoid(logit);
    case RouterScore::SqrtSoftplus: return metal::precise::sqrt(softplus(logit));
    // Infinities have no difference; NaN passes.
    default: return logit == -INFINITY ? 0.0f : metal::precise::exp(logit - most);
  }
}

template <typename T>
kernel void router(
    device const T* logits [[buffer(0)]],
    device const float* bias [[buffer(1)]],
    device const float* expert_scale [[buffer(2)]],
    device uint* ids [[buffer(3)]],
    device float* weights [[buffer(4)]],
    constant Params& p [[buffer(5)]],
    uint group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint token = group * simdgroups + simdgroup;
  if (token >= p.tokens) {
    return;
  }
  logits += ulong(token) * p.stride;
  ids += ulong(token) * p.top_k;
  weights += ulong(token) * p.top_k;
  RouterScore score = RouterScore(p.score);

  float most = -INFINITY;
  for (uint i = 0; i < PER_LANE; ++i) {
    uint expert = lane + 32 * i;
    if (expert < p.experts) {
      most = max(most, float(logits[expert]));
    }
  }
  most = simd_max(most);

  float total = 1.0f;
  if (score == RouterScore::Softmax && (p.by_score || !p.renormalize)) {
    total = 0.0f;
    for (uint i = 0; i < PER_LANE; ++i) {
      uint expert = lane + 32 * i;
      if (expert < p.experts) {
        total += score_of(score, float(logits[expert]), most);
      }
    }
    total = simd_sum(total);
    total = total == 0.0f ? 1.0f : total;
  }

  uint keys[PER_LANE];
  for (uint i = 0; i < PER_LANE; ++i) {
    uint expert = lane + 32 * i;
    keys[i] = 0;
    if (expert < p.experts) {
      float value = float(logits[expert]);
      if (p.by_score) {
        value = score_of(score, value, most) / total + (p.has_bias ? bias[expert] : 0.0f);
      }
      keys[i] = order_key(value);
    }
  }

  if (p.n_group > 1) {
    uint group_size = p.experts / p.n_group;
    uint group_keys[PER_LANE];
    for (uint i = 0; i < PER_LANE; ++i) {
      group_keys[i] = 0;
    }
    for (uint g = 0; g < p.n_group; ++g) {
      uint members[PER_LANE];
      for (uint i = 0; i < PER_LANE; ++i) {
        uint expert = lane + 32 * i;
        members[i] = expert >= g * group_size && expert < (g + 1) * group_size ? keys[i] : 0;
      }
      Chosen first = simdgroup_best(members, lane);
      uint key = first.key;
      if (GroupScore(p.group_score) == GroupScore::SumOfTopTwo) {
        for (uint i = 0; i < PER_LANE; ++i) {
          members[i] = lane + 32 * i == first.index ? 0 : members[i];
        }
        key = order_key(key_value(first.key) + key_value(simdgroup_best(members, lane).key));
      }
      for (uint i = 0; i < PER_LANE; ++i) {
        group_keys[i] = lane + 32 * i == g ? key : group_keys[i];
      }
    }
    uint allowed[PER_LANE];
    for (uint i = 0; i < PER_LANE; ++i) {
      allowed[i] = 0;
    }
    for (uint j = 0; j < p.topk_group; ++j) {
      uint g = simdgroup_best(group_keys, lane).index;
      for (uint i = 0; i < PER_LANE; ++i) {
        uint expert = lane + 32 * i;
        group_keys[i] = expert == g ? 0 : group_keys[i];
        allowed[i] = expert >= g * group_size && expert < (g + 1) * group_size ? keys[i] : allowed[i];
      }
    }
    for (uint i = 0; i < PER_LANE; ++i) {
      keys[i] = allowed[i];
    }
  }

  // Lane j keeps the choice of every 32nd place from j on.
  float sum = 0.0f;
  for (uint first = 0; first < p.top_k; first += 32) {
    uint places = min(32u, p.top_k - first);
    uint chosen = 0;
    for (uint j = 0; j < places; ++j) {
      uint expert = simdgroup_best(keys, lane).index;
      for (uint i = 0; i < PER_LANE; ++i) {
        keys[i] = lane + 32 * i == expert ? 0 : keys[i];
      }
      chosen = lane == j ? expert : chosen;
    }
    if (lane < places) {
      float weight = score_of(score, float(logits[chosen]), most) / total;
      ids[first + lane] = chosen;
      weights[first + lane] = weight;
      sum += weight;
    }
  }
  sum = simd_sum(sum);

  float scale = p.renormalize ? p.scale / (sum + 1e-20f) : p.scale;
  for (uint j = lane; j < p.top_k; j += 32) {
    weights[j] *= scale * (p.has_expert_scale ? expert_scale[ids[j]] : 1.0f);
  }
}

instantiate_floats("router", router)
