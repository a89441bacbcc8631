// Activations in float, a vector at a time; in double they go through the C library.
// The polynomials are least-maximum fits of the functions named beside them. Largest errors against
// float64, over all magnitudes: tanh 2.5 ulp, sigmoid and silu 2.2 ulp; gelu 1e-6 of its value,
// growing to 1e-5 where that value has fallen below 1e-30.

using Integers = VectorOf<float>::integer;

CONVLM_INLINE Vector<float> as_float(Integers v) { return (Vector<float>)v; }
CONVLM_INLINE Integers as_integer(Vector<float> v) { return (Integers)v; }
CONVLM_INLINE Vector<float> choose(Integers condition, Vector<float> yes, Vector<float> no) {
  return as_float((as_integer(yes) & condition) | (as_integer(no) & ~condition));
}
CONVLM_INLINE Vector<float> absolute(Vector<float> x) {
  return as_float(as_integer(x) & 0x7fffffff);
}

template <int N>
CONVLM_INLINE Vector<float> polynomial(Vector<float> x, const float (&coefficient)[N]) {
  Vector<float> sum = broadcast(coefficient[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = sum * x + coefficient[i];
  return sum;
}

// x = n ln 2 + r, with expm1 of the small r.
struct Reduced {
  Vector<float> n, expm1;
};
CONVLM_INLINE Reduced reduce_exponent(Vector<float> x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector<float> n = (x * 1.44269504f + kRound) - kRound;
  // ln 2 in two parts, so that n times the first is exact
  const Vector<float> r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  const Vector<float> q = polynomial(r, {0.5000000083f, 0.1666666687f, 0.041666254f, 0.00833326158f,
                                         0.001394721193f, 0.0001991992205f});
  return {n, (r * r) * q + r};
}

// exp, with 0 and infinity at the ends of the range, and NaN for NaN.
CONVLM_INLINE Vector<float> exponential(Vector<float> x) {
  // Comparisons with NaN are false, so NaN passes both clamps.
  x = choose(x > 89.0f, broadcast(89.0f), x);
  x = choose(x < -104.0f, broadcast(-104.0f), x);
  const Reduced e = reduce_exponent(x);
  // 2^n in two factors, so that results near both ends of the range keep a representable exponent.
  const Integers exponent = __builtin_convertvector(e.n, Integers);
  const Integers half = exponent >> 1;
  return (e.expm1 + 1.0f) * as_float((half + 127) << 23) * as_float((exponent - half + 127) << 23);
}

// From expm1 of -2|x|, which keeps its accuracy near zero; past 9.5 the result is 1 in float.
CONVLM_INLINE Vector<float> tanh_of(Vector<float> x) {
  Vector<float> a = absolute(x);
  a = choose(a > 9.5f, broadcast(9.5f), a);  // false for NaN, which passes
  const Reduced e = reduce_exponent(a * -2.0f);
  const Vector<float> scale = as_float((__builtin_convertvector(e.n, Integers) + 127) << 23);
  const Vector<float> expm1 = e.expm1 * scale + (scale - 1.0f);
  const Integers sign = as_integer(x) & static_cast<int32_t>(0x80000000);
  return as_float(as_integer(absolute(expm1 / (expm1 + 2.0f))) | sign);
}

CONVLM_INLINE Vector<float> gelu_of(Vector<float> x) {
  // x * Phi(x), with Phi from erfc of the magnitude: no cancellation on the negative side.
  const Vector<float> z = absolute(x) * 0.707106781f;
  const Vector<float> t = 1.0f / (z * 0.4f + 1.0f);
  // erfc(z) * exp(z * z) / t, in t
  const Vector<float> p = polynomial(
      t, {0.2257106544f, 0.2248800736f, 0.2155106041f, 0.1269454611f, 0.2799085328f, -0.2988675188f,
          0.5647544995f, -0.5117216043f, 0.2034745085f, -0.03059520431f});
  const Vector<float> half_erfc = 0.5f * t * p * exponential(x * x * -0.5f);
  return x * choose(x < 0.0f, half_erfc, 1.0f - half_erfc);
}

CONVLM_INLINE Vector<float> activate(Vector<float> x, Activation activation) {
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      return choose(x < 0.0f, Vector<float>{}, x);
    case Activation::tanh:
      return tanh_of(x);
    case Activation::sigmoid:
      return 1.0f / (exponential(-x) + 1.0f);
    case Activation::silu:
      return x / (exponential(-x) + 1.0f);
    case Activation::gelu:
      return gelu_of(x);
  }
  return x;
}

inline double activate(double x, Activation activation) {
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      return x < 0 ? 0 : x;
    case Activation::tanh:
      return __builtin_tanh(x);
    case Activation::sigmoid:
      return 1 / (__builtin_exp(-x) + 1);
    case Activation::silu:
      return x / (__builtin_exp(-x) + 1);
    case Activation::gelu:
      return 0.5 * x * __builtin_erfc(-x * 0.70710678118654752440);
  }
  return x;
}
CONVLM_INLINE Vector<double> activate(Vector<double> x, Activation activation) {
  if (activation != Activation::none)
    for (int i = 0; i < kLanes<double>; ++i) x[i] = activate(x[i], activation);
  return x;
}
