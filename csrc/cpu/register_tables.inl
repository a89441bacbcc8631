// exp and tanh where two registers hold a table of 32 floats, and one instruction picks from both
// for every lane. Less work than without: half of it for exp, two thirds for tanh. They err by 0.6
// and 1.4 ulp.

#if CONVLM_VECTOR_BYTES == 64

constexpr int kTableSize = 32;

struct RegisterTable {
  alignas(CONVLM_VECTOR_BYTES) float value[kTableSize] = {};

  // By the low bits of `index`.
  CONVLM_INLINE Vector<float> operator[](Integers<float> index) const {
    return _mm512_permutex2var_ps(load(value), (__m512i)index, load(value + kLanes<float>));
  }
};

// Of a small x, while compiling.
constexpr double exp_series(double x) {
  double term = 1, sum = 1;
  for (int i = 1; i < 20; ++i) sum += term *= x / i;
  return sum;
}

// 2^(i/32), and the part of each power that its rounding to float lost.
struct PowersOfTwo {
  RegisterTable rounded, lost;

  constexpr PowersOfTwo() {
    for (int i = 0; i < kTableSize; ++i) {
      const double power = exp_series(i * 0.69314718055994531 / kTableSize);
      rounded.value[i] = static_cast<float>(power);
      lost.value[i] = static_cast<float>((power - rounded.value[i]) / power);
    }
  }
};
constexpr PowersOfTwo kPowersOfTwo;

// With n = x / ln 2 rounded to a multiple of 1/32, from the table for the fraction of n and a
// series for what is left.
template <>
CONVLM_INLINE Vector<float> exponential<float>(Vector<float> x) {
  constexpr float kRound = Exp<float>::kRound / kTableSize, kLog2ELow = 1.92596303e-8f;
  x = _mm512_maskz_max_ps(kAll, broadcast(Exp<float>::kSmallest), x);  // NaN passes both
  x = _mm512_maskz_min_ps(kAll, broadcast(Exp<float>::kLargest), x);
  const Vector<float> shifted = x * Exp<float>::kLog2E + kRound, n = shifted - kRound;
  const Vector<float> r = x * kLog2ELow + (x * Exp<float>::kLog2E - n);
  const auto fraction = (Integers<float>)shifted;  // in the low bits
  const Vector<float> power = kPowersOfTwo.rounded[fraction];
  const Vector<float> more = polynomial<float>(r, {0.693147181f, 0.240226507f, 0.0555041087f}) * r +
                             kPowersOfTwo.lost[fraction];
  return _mm512_maskz_scalef_ps(kAll, power * more + power, n);  // by 2^floor(n)
}

// tanh of a magnitude as one of 32 polynomials, by intervals: one from 0 to 1/16, where it is
// tanh's series, four for each doubling up to 10, and two where tanh is 1. All above 12 are in the
// last one.
struct TanhTable {
  static constexpr int kDegree = 5;
  static constexpr float kLast = 12;
  // The exponent and two bits of the mantissa, one less than those of 1/16, stand for all below.
  // 32 such keys follow each other, so their low bits tell them apart.
  static constexpr int kKeyShift = 21, kFirstKey = ((127 - 4) << 2) - 1;

  RegisterTable middle;
  RegisterTable coefficient[kDegree + 1];  // in powers of the distance from the middle

  constexpr TanhTable() {
    set(0, 0, {0, 1, 0, -1.0 / 3, 0, 2.0 / 15});
    for (int interval = 1; interval < kTableSize; ++interval) {
      const double width = (1 << (interval - 1) / 4) / 64.0;
      const double start = (4 + (interval - 1) % 4) * width;
      if (start < 10)
        fit(interval, start + width / 2, width / 2);
      else
        set(interval, 0, {1});
    }
  }

 private:
  struct Polynomial {
    double coefficient[kDegree + 1];
  };

  constexpr void set(int interval, double center, const Polynomial& p) {
    const int index = (kFirstKey + interval) % kTableSize;
    middle.value[index] = static_cast<float>(center);
    for (int i = 0; i <= kDegree; ++i)
      coefficient[i].value[index] = static_cast<float>(p.coefficient[i]);
  }

  // Newton's interpolation at Chebyshev's nodes, multiplied out.
  constexpr void fit(int interval, double center, double half_width) {
    constexpr double kNodes[kDegree + 1] = {-0.96592582628906829, -0.70710678118654752,
                                            -0.25881904510252076, 0.25881904510252076,
                                            0.70710678118654752,  0.96592582628906829};
    double x[kDegree + 1] = {}, difference[kDegree + 1] = {};
    for (int i = 0; i <= kDegree; ++i) {
      x[i] = half_width * kNodes[i];
      difference[i] = tanh_of(center + x[i]);
    }
    for (int order = 1; order <= kDegree; ++order)
      for (int i = kDegree; i >= order; --i)
        difference[i] = (difference[i] - difference[i - 1]) / (x[i] - x[i - order]);
    Polynomial p = {};
    for (int i = kDegree; i >= 0; --i) {
      for (int power = kDegree; power > 0; --power)
        p.coefficient[power] = p.coefficient[power - 1] - x[i] * p.coefficient[power];
      p.coefficient[0] = difference[i] - x[i] * p.coefficient[0];
    }
    set(interval, center, p);
  }

  static constexpr double tanh_of(double x) {
    double power = exp_series(-2 * x / 256);
    for (int i = 0; i < 8; ++i) power *= power;
    return (1 - power) / (1 + power);
  }
};
constexpr TanhTable kTanh;

template <>
CONVLM_INLINE Vector<float> tanh_of<float>(Vector<float> x) {
  const Vector<float> a =
      _mm512_maskz_min_ps(kAll, broadcast(TanhTable::kLast), absolute<float>(x));
  const Integers<float> key = (Integers<float>)a >> TanhTable::kKeyShift;  // any, of NaN
  const Integers<float> first = Integers<float>{} + TanhTable::kFirstKey;
  const Integers<float> index = key < first ? first : key;
  const Vector<float> distance = a - kTanh.middle[index];  // NaN passes
  Vector<float> sum = kTanh.coefficient[TanhTable::kDegree][index];
#pragma GCC unroll 8
  for (int i = TanhTable::kDegree - 1; i >= 0; --i)
    sum = sum * distance + kTanh.coefficient[i][index];
  return choose<float>(Integers<float>{} + Exp<float>::kMagnitude, sum, x);
}

#endif
