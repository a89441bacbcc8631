// Draws a token from logits, by one warp.
//
// Nothing is sorted. In descending order of likelihood, what comes before a token is what is
// likelier; so "the first token at which the sum of the likelihoods passes a number" is found bit
// by bit, each time by the sum of all that is above some value. Every lane gets the same sums.
#pragma once
#include <cmath>

#include "cuda/instructions.h"
#include "step.h"

namespace convlm::cuda {

template <class C>
struct Likeliest {
  C logit;
  int token;  // the first of equals; -1 where one is NaN
};

template <class C>
__device__ Likeliest<C> likeliest(const C* logits, int count, int lane) {
  Likeliest<C> best{C(0), count};
  const auto meet = [&](C logit, int token) {
    if (best.token < 0 || token >= count) return;
    if (token < 0 || logit != logit)
      best.token = -1;
    else if (best.token == count || logit > best.logit ||
             (logit == best.logit && token < best.token))
      best = {logit, token};
  };
  for (int i = lane; i < count; i += kWarpSize) meet(logits[i], i);
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    const C logit = exchange(best.logit, mask);
    const int token = exchange(best.token, mask);
    meet(logit, token);
  }
  return best;
}

// The largest key of so many bits that passes. Whatever is below one that passes must pass, too; 0
// is not asked about.
template <class Key, class Passes>
__device__ Key largest_key(int bits, const Passes& passes) {
  Key key = 0;
  for (int bit = bits - 1; bit >= 0; --bit) {
    const Key higher = key | Key(1) << bit;
    if (passes(higher)) key = higher;
  }
  return key;
}

// Likelihoods are not negative, so they are in the order of their bits.
__device__ __forceinline__ uint32_t key_of(float likelihood) { return bits_of(likelihood); }
__device__ __forceinline__ float likelihood_of(uint32_t key) { return float_of(key); }
__device__ __forceinline__ uint64_t key_of(double likelihood) { return bits_of(likelihood); }
__device__ __forceinline__ double likelihood_of(uint64_t key) { return double_of(key); }

// The first tokens in descending order of likelihood: all with a key above `last`, and so many of
// those that have it, in ascending order.
template <class Key>
struct FirstTokens {
  Key last;
  double equals;
  double sum;  // of the likelihoods
};

// Tokens with their likelihoods. Those of a higher key come first, equals in ascending order.
template <class C>
struct Descending {
  const C* likelihoods;
  int count, lane;
  using Key = decltype(key_of(C(0)));
  static constexpr int kBits = 8 * sizeof(C) - 1;

  // Of the first `tokens`, those with keys from `least` to `most`: their likelihoods, or how many.
  __device__ __noinline__ double sum(Key least, Key most, int tokens, bool counts) const {
    double sum = 0;
    for (int i = lane; i < tokens; i += kWarpSize) {
      const Key key = key_of(likelihoods[i]);
      if (least <= key && key <= most) sum += counts ? 1.0 : static_cast<double>(likelihoods[i]);
    }
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += exchange(sum, mask);
    return sum;
  }
  __device__ double sum_from(Key key) const { return sum(key, ~Key(0), count, false); }
  __device__ double count_from(Key key) const { return sum(key, ~Key(0), count, true); }

  // All that can be drawn.
  __device__ FirstTokens<Key> all() const {
    return {1, count_from(1) - count_from(2), sum_from(1)};
  }

  __device__ FirstTokens<Key> first(double most) const {
    if (most >= count_from(1)) return all();
    const Key last = largest_key<Key>(kBits, [&](Key key) { return count_from(key) >= most; });
    const double equals = most - count_from(last + 1);
    return {last, equals, sum_from(last + 1) + equals * likelihood_of(last)};
  }

  // The fewest of these that together have `enough`, but at least one.
  __device__ FirstTokens<Key> first_with(double enough, const FirstTokens<Key>& most) const {
    const Key last = largest_key<Key>(kBits, [&](Key key) { return sum_from(key) >= enough; });
    if (last < most.last) return most;
    const double above = sum_from(last + 1);
    const double wanted = std::ceil((enough - above) / likelihood_of(last));
    double equals = last == most.last && wanted > most.equals ? most.equals : wanted;
    if (equals < 1) equals = 1;
    return {last, equals, above + equals * likelihood_of(last)};
  }

  // The first of these at which the sum passes `target`, or the last.
  __device__ int passing(double target, const FirstTokens<Key>& most) const {
    Key key = largest_key<Key>(kBits, [&](Key k) { return sum_from(k) > target; });
    if (key < most.last) key = most.last;
    const double equals = key == most.last ? most.equals : count_from(key) - count_from(key + 1);
    const double before = std::floor((target - sum_from(key + 1)) / likelihood_of(key));
    const double earlier = before < equals ? before : equals - 1;
    return first_past(earlier < 0 ? 0 : earlier, key, key, true);
  }

  // In ascending order, the first token at which the sum passes `target`.
  __device__ int first_past(double target, Key least, Key most, bool counts) const {
    int bits = 0;
    while (count >> bits > 0) ++bits;
    const uint32_t last = static_cast<uint32_t>(count - 1);
    return static_cast<int>(last - largest_key<uint32_t>(bits, [&](uint32_t key) {
                              const int tokens = static_cast<int>(last - key) + 1;
                              return key <= last && sum(least, most, tokens, counts) > target;
                            }));
  }
};

// As the CPU's draw() in csrc/cpu/generate.inl, whose words hold here: the first token at which the
// sum of the likelihoods passes `uniform` of the whole, among the top_k likeliest and of these the
// fewest that have top_p. Overwrites the logits; -1 where there is no distribution.
template <class C>
__device__ __noinline__ int draw(C* logits, int count, const GenerateArguments& a, double uniform,
                                 int lane) {
  const C* bias = static_cast<const C*>(a.logit_bias);
  for (int i = lane; bias != nullptr && i < count; i += kWarpSize) logits[i] += bias[i];
  const Likeliest<C> best = likeliest(logits, count, lane);
  const C temperature = static_cast<C>(a.temperature);
  if (best.token < 0 || !(best.logit - best.logit == C(0))) return -1;
  if (temperature == C(0)) return best.token;
  for (int i = lane; i < count; i += kWarpSize)
    logits[i] = std::exp((logits[i] - best.logit) / temperature);
  synchronize_warp();
  const Descending<C> tokens{logits, count, lane};
  const bool all = a.top_k >= count && a.top_p >= 1;
  auto kept = a.top_k < count ? tokens.first(static_cast<double>(a.top_k)) : tokens.all();
  if (a.top_p < 1) kept = tokens.first_with(a.top_p * kept.sum, kept);
  // The product is to stay below the sum when it is rounded.
  constexpr double kBelowOne = 1 - 0x1p-53;
  const double target = (uniform < kBelowOne ? uniform : kBelowOne) * kept.sum;
  if (!all) return tokens.passing(target, kept);
  return tokens.first_past(target, 0, ~typename Descending<C>::Key(0), false);
}

}  // namespace convlm::cuda
