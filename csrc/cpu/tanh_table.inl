// tanh where two registers hold 32 floats and an instruction picks from both by lane: as one of 32
// polynomials, fitted while compiling. It takes two thirds of the time of the quotient in
// activation.inl and errs by 1.4 ulp.

#if CONVLM_VECTOR_BYTES == 64

// Of magnitudes: one interval from 0 to 1/16, where the polynomial is tanh's series, four for each
// doubling up to 10, and two where tanh is 1. All above 12 are in the last one.
struct TanhTable {
  static constexpr int kDegree = 5, kIntervals = 32;
  static constexpr float kLast = 12;
  // The exponent and two bits of the mantissa, one less than those of 1/16, stand for all below.
  // The low bits of such a key pick a column: 32 keys follow each other.
  static constexpr int kKeyShift = 21, kFirstKey = ((127 - 4) << 2) - 1;

  float middle[kIntervals] = {};
  float coefficient[kDegree + 1][kIntervals] = {};  // in powers of the distance from the middle

  constexpr TanhTable() {
    set(0, 0, {0, 1, 0, -1.0 / 3, 0, 2.0 / 15});
    for (int octave = 0; octave < 8; ++octave)
      for (int quarter = 0; quarter < 4; ++quarter) {
        const double width = (1 << octave) / 64.0, start = (4 + quarter) * width;
        const int interval = 1 + 4 * octave + quarter;
        if (interval == kIntervals) break;
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

  constexpr void set(int interval, double center, Polynomial p) {
    const int column = (kFirstKey + interval) % kIntervals;
    middle[column] = static_cast<float>(center);
    for (int i = 0; i <= kDegree; ++i)
      coefficient[i][column] = static_cast<float>(p.coefficient[i]);
  }

  // Newton's interpolation at Chebyshev's nodes, multiplied out.
  constexpr void fit(int interval, double center, double half_width) {
    constexpr double kNodes[kDegree + 1] = {-0.96592582628906829, -0.70710678118654752,
                                            -0.25881904510252076, 0.25881904510252076,
                                            0.70710678118654752,  0.96592582628906829};
    double x[kDegree + 1] = {}, difference[kDegree + 1] = {};
    for (int i = 0; i <= kDegree; ++i) {
      x[i] = half_width * kNodes[i];
      difference[i] = tanh(center + x[i]);
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

  static constexpr double tanh(double x) {
    const double small = -2 * x / 1024;
    double term = 1, power = 1;
    for (int i = 1; i < 12; ++i) power += term *= small / i;
    for (int i = 0; i < 10; ++i) power *= power;
    return (1 - power) / (1 + power);
  }
};
alignas(CONVLM_VECTOR_BYTES) constexpr TanhTable kTanhTable;

CONVLM_INLINE Vector<float> pick(Integers<float> column, const float (&of)[TanhTable::kIntervals]) {
  return _mm512_permutex2var_ps(load(of), (__m512i)column, load(of + kLanes<float>));
}

template <>
CONVLM_INLINE Vector<float> tanh_of<float>(Vector<float> x) {
  const Vector<float> a = _mm512_maskz_min_ps(kAll, broadcast(TanhTable::kLast), absolute<float>(x));
  const Integers<float> key = (Integers<float>)a >> TanhTable::kKeyShift;  // of NaN: any
  const Integers<float> first = Integers<float>{} + TanhTable::kFirstKey;
  const Integers<float> column = key < first ? first : key;
  const Vector<float> distance = a - pick(column, kTanhTable.middle);  // NaN passes
  Vector<float> sum = pick(column, kTanhTable.coefficient[TanhTable::kDegree]);
#pragma GCC unroll 8
  for (int i = TanhTable::kDegree - 1; i >= 0; --i)
    sum = sum * distance + pick(column, kTanhTable.coefficient[i]);
  return choose<float>(Integers<float>{} + Exp<float>::kMagnitude, sum, x);
}

#endif
