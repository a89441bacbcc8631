// Activations, a vector at a time; for exp and tanh in float AVX-512 has register_tables.inl. The
// polynomials in float are least-maximum fits of the functions named beside them, those in double
// Taylor series that end below its roundoff. Largest errors against float64, over all magnitudes:
// in float tanh 1.9 ulp, sigmoid 2 ulp, silu 2.5 ulp, and gelu 1e-6 of its value, growing to 1e-5
// where that value has fallen below 1e-30.

template <class T>
CONVLM_INLINE Vector<T> choose(Integers<T> condition, Vector<T> yes, Vector<T> no) {
  return (Vector<T>)(((Integers<T>)yes & condition) | ((Integers<T>)no & ~condition));
}

template <class T, int N>
CONVLM_INLINE Vector<T> polynomial(Vector<T> x, const T (&coefficient)[N]) {
  Vector<T> sum = broadcast(coefficient[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = sum * x + coefficient[i];
  return sum;
}

template <class T>
struct Exp;
template <>
struct Exp<float> {
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLog2E = 1.44269504f;
  // ln 2 in two parts, so that a small integer times the first is exact
  static constexpr float kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kLargest = 89.0f, kSmallest = -104.0f;  // infinity and 0 beyond
  static constexpr float kTanhIsOne = 9.5f;
  static constexpr int32_t kMagnitude = 0x7fffffff;
  // (expm1(r) - r) / r^2
  static constexpr float kTail[] = {0.5000000083f,  0.1666666687f,   0.041666254f,
                                    0.00833326158f, 0.001394721193f, 0.0001991992205f};
};
template <>
struct Exp<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2E = 1.4426950408889634;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kLargest = 710.0, kSmallest = -746.0;
  static constexpr double kTanhIsOne = 19.5;
  static constexpr int64_t kMagnitude = 0x7fffffffffffffff;
  static constexpr double kTail[] = {
      1.0 / 2,     1.0 / 6,      1.0 / 24,      1.0 / 120,      1.0 / 720,       1.0 / 5040,
      1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
};

template <class T>
CONVLM_INLINE Vector<T> absolute(Vector<T> x) {
  return (Vector<T>)((Integers<T>)x & Exp<T>::kMagnitude);
}

// x = n ln 2 + r, with expm1 of the small r.
template <class T>
struct Reduced {
  Integers<T> n;
  Vector<T> expm1;
};
template <class T>
CONVLM_INLINE Reduced<T> reduce_exponent(Vector<T> x) {
  const Vector<T> shifted = x * Exp<T>::kLog2E + Exp<T>::kRound;
  const Vector<T> n = shifted - Exp<T>::kRound;
  const Vector<T> r = (x - n * Exp<T>::kLn2High) - n * Exp<T>::kLn2Low;
  // The integer stands in the low bits of the shifted number.
  return {(Integers<T>)shifted - (Integers<T>)broadcast(Exp<T>::kRound),
          (r * r) * polynomial<T>(r, Exp<T>::kTail) + r};
}

template <class T>
CONVLM_INLINE Vector<T> power_of_two(Integers<T> n) {
  return (Vector<T>)((n + Exp<T>::kBias) << Exp<T>::kMantissa);
}

// exp, with 0 and infinity at the ends of the range, and NaN for NaN.
template <class T>
CONVLM_INLINE Vector<T> exponential(Vector<T> x) {
  // Comparisons with NaN are false, so NaN passes both clamps.
  x = choose<T>(x > Exp<T>::kLargest, broadcast(Exp<T>::kLargest), x);
  x = choose<T>(x < Exp<T>::kSmallest, broadcast(Exp<T>::kSmallest), x);
  const Reduced<T> e = reduce_exponent<T>(x);
  // 2^n in two factors, so that results near both ends of the range keep a representable exponent.
  const Integers<T> half = e.n >> 1;
  return (e.expm1 + T(1)) * power_of_two<T>(half) * power_of_two<T>(e.n - half);
}

// From expm1 of -2|x|, which keeps its accuracy near zero, as expm1 / (expm1 + 2). What expm1 and
// the quotient lost in rounding is made good at the end, which allows for an approximate division.
template <class T>
CONVLM_INLINE Vector<T> tanh_of(Vector<T> x) {
  const Vector<T> most = broadcast(2 * Exp<T>::kTanhIsOne);
  Vector<T> a = absolute<T>(x + x);
  a = most < a ? most : a;  // NaN passes
  // -2|x| = n ln 2 + r. One rounding of n ln 2 is enough: it shows only where the result is near 1.
  constexpr T kRound = Exp<T>::kRound + Exp<T>::kBias, kLn2 = Exp<T>::kLn2High + Exp<T>::kLn2Low;
  const Vector<T> shifted = kRound - a * Exp<T>::kLog2E;
  const Vector<T> r = (shifted - kRound) * -kLn2 - a;
  const Vector<T> expm1_of_r = (r * r) * polynomial<T>(r, Exp<T>::kTail) + r;
  // The exponent of 2^n stands in the low bits of the shifted number.
  const Vector<T> scale = (Vector<T>)((Integers<T>)shifted << Exp<T>::kMantissa);
  const Vector<T> less_one = scale - T(1);
  const Vector<T> expm1 = expm1_of_r * scale + less_one;
  const Vector<T> lost = expm1_of_r * scale + (less_one - expm1);
  const Vector<T> divisor = expm1_of_r * scale + (scale + T(1));
  const Vector<T> inverse = approximate_reciprocal(divisor), quotient = expm1 * inverse;
  const Vector<T> result = quotient + ((expm1 - quotient * divisor) + lost) * inverse;
  return choose<T>(Integers<T>{} + Exp<T>::kMagnitude, result, x);
}

#include "cpu/register_tables.inl"

// From e = exp(-|x|), as 1 / (1 + e) or e / (1 + e): neither end overflows. What the sum lost in
// rounding is made good, with 1 - 0.5 e for 1 / (1 + e).
template <class T>
CONVLM_INLINE Vector<T> sigmoid_of(Vector<T> x) {
  const Vector<T> e = exponential<T>(-absolute<T>(x)), sum = e + T(1);
  const Vector<T> quotient = choose<T>(x < T(0), e, broadcast(T(1))) / sum;
  const Vector<T> lost = e - (sum - T(1));
  return quotient - quotient * (lost * (T(1) - T(0.5) * e));
}

// The normal distribution's, from erfc of the magnitude: no cancellation on the negative side.
CONVLM_INLINE Vector<float> normal_cdf(Vector<float> x) {
  const Vector<float> z = absolute<float>(x) * 0.707106781f;
  const Vector<float> t = 1.0f / (z * 0.4f + 1.0f);
  // erfc(z) * exp(z * z) / t, in t
  const Vector<float> p = polynomial<float>(
      t, {0.2257106544f, 0.2248800736f, 0.2155106041f, 0.1269454611f, 0.2799085328f, -0.2988675188f,
          0.5647544995f, -0.5117216043f, 0.2034745085f, -0.03059520431f});
  const Vector<float> half_erfc = 0.5f * t * p * exponential<float>(x * x * -0.5f);
  return choose<float>(x < 0.0f, half_erfc, 1.0f - half_erfc);
}
CONVLM_INLINE Vector<double> normal_cdf(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i)
    x[i] = 0.5 * __builtin_erfc(-x[i] * 0.70710678118654752440);
  return x;
}

template <class T>
CONVLM_INLINE Vector<T> activate_as(Vector<T> x, Activation activation) {
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      return choose<T>(x < T(0), Vector<T>{}, x);
    case Activation::tanh:
      return tanh_of<T>(x);
    case Activation::sigmoid:
      return sigmoid_of<T>(x);
    case Activation::silu:
      return x * sigmoid_of<T>(x);
    case Activation::gelu:
      return x * normal_cdf(x);
  }
  return x;
}
CONVLM_INLINE Vector<float> activate(Vector<float> x, Activation a) {
  return activate_as<float>(x, a);
}
CONVLM_INLINE Vector<double> activate(Vector<double> x, Activation a) {
  return activate_as<double>(x, a);
}
