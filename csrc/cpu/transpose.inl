// Transposes between "a row per position" and "a row per channel", one square of lanes at a time.

// One step of the butterfly: swaps the off-diagonal blocks of size Half of the rows i and i + Half.
template <class T, int Half, int... L>
CONVLM_INLINE void exchange(Vector<T>& low, Vector<T>& high, std::integer_sequence<int, L...>) {
  constexpr int W = kLanes<T>;
  const Vector<T> a = low, b = high;
  low = __builtin_shufflevector(a, b, ((L & Half) == 0 ? L : W + L - Half)...);
  high = __builtin_shufflevector(a, b, ((L & Half) == 0 ? L + Half : W + L)...);
}

template <class T, int Half>
CONVLM_INLINE void transpose_from(Vector<T>* rows) {
  if constexpr (Half < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i)
      if ((i & Half) == 0)
        exchange<T, Half>(rows[i], rows[i + Half], std::make_integer_sequence<int, kLanes<T>>{});
    transpose_from<T, Half * 2>(rows);
  }
}

// out[c * out_pitch + r] = in[r * in_pitch + c] for c < columns, r < rows <= lanes, and zero for
// rows <= r < stored <= lanes. Loads and stores may convert: `In` or `Out` is the compute type.
template <class In, class Out>
void transpose_strip(const In* in, int64_t in_pitch, int64_t rows, int64_t columns, Out* out,
                     int64_t out_pitch, int64_t stored) {
  using T = Compute<In>;
  constexpr int W = kLanes<T>;
  for (int64_t c = 0; c < columns; c += W) {
    const int width = static_cast<int>(smaller(W, columns - c));
    Vector<T> square[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) {
      if (r >= rows)
        square[r] = Vector<T>{};
      else
        square[r] = width == W ? load(in + r * in_pitch + c) : load_partial(in + r * in_pitch + c, width);
    }
    transpose_from<T, 1>(square);
    for (int i = 0; i < width; ++i) {
      if (stored == W)
        store(out + (c + i) * out_pitch, square[i]);
      else
        store_partial(out + (c + i) * out_pitch, square[i], static_cast<int>(stored));
    }
  }
}
