// Sums in registers, ROWS x VECTORS, to which products of scalars and vectors are added.

// Half a vector where two halves cost what a vector does: 100 columns are then six vectors and one
// half, not seven vectors. Below AVX-512 a half costs the same, and so it is a whole one.
#if CONVLM_VECTOR_BYTES == 64
constexpr int kNarrowBytes = CONVLM_VECTOR_BYTES / 2;
#else
constexpr int kNarrowBytes = CONVLM_VECTOR_BYTES;
#endif
template <class T>
constexpr int kNarrowLanes = kNarrowBytes / sizeof(T);

// The last vector of a row.
template <class T, bool NARROW>
struct LastOf : VectorOf<T> {};
#if CONVLM_VECTOR_BYTES == 64
template <>
struct LastOf<float, true> {
  using type = __m256;
  using unaligned = __m256_u;
};
template <>
struct LastOf<double, true> {
  using type = __m256d;
  using unaligned = __m256d_u;
};

CONVLM_INLINE Vector<float> with_zeros(__m256 v) { return _mm512_maskz_broadcast_f32x8(0xff, v); }
CONVLM_INLINE Vector<double> with_zeros(__m256d v) { return _mm512_maskz_broadcast_f64x4(0xf, v); }
CONVLM_INLINE __m256 first_half(Vector<float> v) {
  return (__m256)__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
}
CONVLM_INLINE __m256d first_half(Vector<double> v) {
  return (__m256d)__builtin_shufflevector(v, v, 0, 1, 2, 3);
}
#endif
CONVLM_INLINE Vector<float> with_zeros(Vector<float> v) { return v; }
CONVLM_INLINE Vector<double> with_zeros(Vector<double> v) { return v; }
CONVLM_INLINE float first_half(float s) { return s; }
CONVLM_INLINE double first_half(double s) { return s; }

// A scalar to multiply whole vectors and a Last by. Both widths take one load of it: to copy it
// between registers takes the ports of the products.
template <class Last, class T>
CONVLM_INLINE auto factor_of(T scalar) {
  if constexpr (sizeof(Last) < sizeof(Vector<T>))
    return scalar - Vector<T>{};
  else
    return scalar;
}

template <class T, int ROWS, int VECTORS, bool NARROW>
struct RowSums {
  static constexpr int kRows = ROWS, kVectors = VECTORS;
  using Last = typename LastOf<T, NARROW>::type;

  Vector<T> wide[ROWS][VECTORS > 1 ? VECTORS - 1 : 1];
  Last last[ROWS];

  CONVLM_INLINE void clear() {
#pragma GCC unroll 32
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j + 1 < VECTORS; ++j) wide[i][j] = Vector<T>{};
      last[i] = Last{};
    }
  }

  // sums[i][:] += scalar(i) * vectors[:].
  template <class Scalar>
  CONVLM_INLINE void add_products(const Scalar& scalar, const T* vectors) {
    Vector<T> v[VECTORS > 1 ? VECTORS - 1 : 1];
#pragma GCC unroll 4
    for (int j = 0; j + 1 < VECTORS; ++j) v[j] = load(vectors + j * kLanes<T>);
    const Last end = *reinterpret_cast<const typename LastOf<T, NARROW>::unaligned*>(
        vectors + (VECTORS - 1) * kLanes<T>);
#pragma GCC unroll 32
    for (int i = 0; i < ROWS; ++i) {
      const auto factor = factor_of<Last>(static_cast<T>(scalar(i)));
#pragma GCC unroll 4
      for (int j = 0; j + 1 < VECTORS; ++j) wide[i][j] = multiply_add(wide[i][j], factor, v[j]);
      last[i] += first_half(factor) * end;
    }
  }

  CONVLM_INLINE void add(const RowSums& other) {
#pragma GCC unroll 32
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j + 1 < VECTORS; ++j) wide[i][j] += other.wide[i][j];
      last[i] += other.last[i];
    }
  }

  CONVLM_INLINE Vector<T> at(int i, int j) const {
    return j + 1 < VECTORS ? wide[i][j] : with_zeros(last[i]);
  }
};
