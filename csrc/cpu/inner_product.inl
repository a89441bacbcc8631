// The core for few output channels: both operands are vectors of positions, and the lanes are added
// up at the end. A tile of A x B sums shares its A + B loads.

template <class T>
struct DotProducts {
  const T* const* a;
  const T* const* b;
  int64_t length;  // in elements; the last vector may be partial
  Sum<T>* sum;     // sum[i * pitch + j] += dot(a[i], b[j])
  int64_t pitch;
};

template <class T, int A, int B>
void dot_products(const DotProducts<T>& p) {
  constexpr int W = kLanes<T>;
  Vector<Sum<T>> sum[A][B];
#pragma GCC unroll 4
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) sum[i][j] = Vector<Sum<T>>{};
  int64_t t = 0;
  for (; t + W <= p.length; t += W) {
    Vector<T> b[B];
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) b[j] = load(p.b[j] + t);
#pragma GCC unroll 4
    for (int i = 0; i < A; ++i) {
      const Vector<T> a = load(p.a[i] + t);
#pragma GCC unroll 4
      for (int j = 0; j < B; ++j) sum[i][j] = multiply_add(sum[i][j], a, b[j]);
    }
  }
  // Both sides are cut: a zero on one side alone would turn an infinity on the other into a NaN.
  if (const int rest = static_cast<int>(p.length - t))
    for (int i = 0; i < A; ++i)
      for (int j = 0; j < B; ++j)
        sum[i][j] =
            multiply_add(sum[i][j], load_partial(p.a[i] + t, rest), load_partial(p.b[j] + t, rest));
  constexpr int L = kLanes<Sum<T>>;
  for (int first = 0; first < A * B; first += L) {
    Vector<Sum<T>> lanes[L];
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l)
      lanes[l] = first + l < A * B ? sum[(first + l) / B][(first + l) % B] : Vector<Sum<T>>{};
    Sum<T> total[L];
    store(total, combine_lanes<Sum<T>, Total>(lanes));
    for (int l = 0; l < L && first + l < A * B; ++l)
      p.sum[(first + l) / B * p.pitch + (first + l) % B] += total[l];
  }
}

constexpr int kDotRows = CONVLM_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kDotColumns = 4;

template <class T, int... I>
CONVLM_INLINE void select_dot_products(const DotProducts<T>& p, int rows, int columns,
                                       std::integer_sequence<int, I...>) {
  static constexpr void (*table[])(const DotProducts<T>&) = {
      &dot_products<T, I / kDotColumns + 1, I % kDotColumns + 1>...};
  table[(rows - 1) * kDotColumns + columns - 1](p);
}
