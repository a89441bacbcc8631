// The core for few output channels: both operands are vectors of positions, and the lanes are added
// up at the end, by the caller. A tile of ROWS x COLUMNS sums shares its ROWS + COLUMNS loads.

template <class A, class B>
struct DotProducts {
  const A* const* a;
  const B* const* b;
  int64_t length;          // in elements; the last vector may be partial
  Sum<Compute<B>>* lanes;  // of sum[i][j] += dot(a[i], b[j]), one vector each
  int64_t pitch;           // in vectors, from a row of sums to the next
};

template <class A, class B, int ROWS, int COLUMNS, bool MAY_SPLIT>
void dot_products(const DotProducts<A, B>& p) {
  using T = Compute<B>;
  constexpr int W = kLanes<T>;
  // Fewer sums than the additions' latency has room for are split, where the shape of the tile may
  // show in the bits.
  constexpr int kParts = MAY_SPLIT && ROWS * COLUMNS <= 4 ? 2 : 1;
  Vector<Sum<T>> sum[kParts][ROWS][COLUMNS];
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part)
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; ++j) sum[part][i][j] = Vector<Sum<T>>{};
  int64_t t = 0;
  for (; t + kParts * W <= p.length; t += kParts * W)
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      Vector<T> b[COLUMNS];
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; ++j) {
        b[j] = load(p.b[j] + t + part * W);
        if constexpr (ROWS > 1) keep(b[j]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) {
        const Vector<T> a = load(p.a[i] + t + part * W);
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; ++j) sum[part][i][j] = multiply_add(sum[part][i][j], a, b[j]);
      }
    }
  // Both sides are cut: a zero on one side alone would turn an infinity on the other into a NaN.
  for (; t < p.length; t += W) {
    const int rest = static_cast<int>(smaller(W, p.length - t));
    Vector<T> b[COLUMNS];
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j) b[j] = load_partial(p.b[j] + t, rest);
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      const Vector<T> a = load_partial(p.a[i] + t, rest);
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; ++j) sum[0][i][j] = multiply_add(sum[0][i][j], a, b[j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j) {
      if constexpr (kParts == 2) sum[0][i][j] += sum[1][i][j];
      Sum<T>* lanes = p.lanes + (i * p.pitch + j) * kLanes<Sum<T>>;
      store(lanes, load(lanes) + sum[0][i][j]);
    }
}

constexpr int kDotRows = CONVLM_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kDotColumns = 4;

template <bool MAY_SPLIT, class A, class B, int... I>
CONVLM_INLINE void select_dot_products(const DotProducts<A, B>& p, int rows, int columns,
                                       std::integer_sequence<int, I...>) {
  static constexpr void (*table[])(const DotProducts<A, B>&) = {
      &dot_products<A, B, I / kDotColumns + 1, I % kDotColumns + 1, MAY_SPLIT>...};
  table[(rows - 1) * kDotColumns + columns - 1](p);
}

// lanes[l] += row[l] + row[l + W] + ...
template <class S>
void add_row(const S* row, int64_t count, Sum<Compute<S>>* lanes) {
  constexpr int W = kLanes<Compute<S>>;
  constexpr int kParts = 4;
  Vector<Sum<Compute<S>>> sum[kParts] = {load(lanes)};
  int64_t t = 0;
  for (; t + kParts * W <= count; t += kParts * W)
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) sum[part] = add(sum[part], load(row + t + part * W));
  for (; t < count; t += W)
    sum[0] = add(sum[0], load_partial(row + t, static_cast<int>(smaller(W, count - t))));
  store(lanes, (sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
CONVLM_INLINE T sum_of_lanes(T* lanes) {
#pragma GCC unroll 8
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}
