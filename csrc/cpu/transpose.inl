// Transposes between "a row per position" and "a row per channel", one square of lanes at a time.
// Fold expressions instead of loops: the square must stay in registers, so every index must be a
// constant.

// Swaps the off-diagonal blocks of size Half of two rows that are Half apart.
template <class T, int Half, int... L>
CONVLM_INLINE void exchange(Vector<T>& low, Vector<T>& high, std::integer_sequence<int, L...>) {
  constexpr int W = kLanes<T>;
  const Vector<T> a = low, b = high;
  low = __builtin_shufflevector(a, b, ((L & Half) == 0 ? L : W + L - Half)...);
  high = __builtin_shufflevector(a, b, ((L & Half) == 0 ? L + Half : W + L)...);
}

template <class T, int Half, int... Pair>
CONVLM_INLINE void transpose_step(Vector<T>* rows, std::integer_sequence<int, Pair...> pairs) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
  (exchange<T, Half>(rows[Pair / Half * 2 * Half + Pair % Half],
                     rows[Pair / Half * 2 * Half + Pair % Half + Half], lanes),
   ...);
  if constexpr (2 * Half < kLanes<T>) transpose_step<T, 2 * Half>(rows, pairs);
}

template <class T>
struct Largest {
  static CONVLM_INLINE Vector<T> of(Vector<T> a, Vector<T> b) { return a > b ? a : b; }
};
template <class T>
struct Total {
  static CONVLM_INLINE Vector<T> of(Vector<T> a, Vector<T> b) { return a + b; }
};

// Lane i of the result combines all lanes of rows[i]: log2 of the lanes steps for all rows
// together.
template <class T, template <class> class Combine, int HALF = 1>
CONVLM_INLINE Vector<T> combine_lanes(Vector<T>* rows) {
  constexpr int W = kLanes<T>;
  if constexpr (HALF == W) {
    return rows[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < W / HALF / 2; ++i) {
      exchange<T, HALF>(rows[2 * i], rows[2 * i + 1], std::make_integer_sequence<int, W>{});
      rows[i] = Combine<T>::of(rows[2 * i], rows[2 * i + 1]);
    }
    return combine_lanes<T, Combine, 2 * HALF>(rows);
  }
}

template <class In, class Out, int... R>
CONVLM_INLINE void transpose_square(const In* in, int64_t in_pitch, Out* out, int64_t out_pitch,
                                    std::integer_sequence<int, R...>) {
  using T = Compute<In>;
  Vector<T> square[] = {load(in + R * in_pitch)...};
  transpose_step<T, 1>(square, std::make_integer_sequence<int, kLanes<T> / 2>{});
  (store(out + R * out_pitch, square[R]), ...);
}

// A square of which only `rows` x `columns` exist.
template <class In, class Out, int... R>
CONVLM_INLINE void transpose_part(const In* in, int64_t in_pitch, int64_t rows, int64_t columns,
                                  Out* out, int64_t out_pitch, int64_t stored,
                                  std::integer_sequence<int, R...>) {
  using T = Compute<In>;
  const int width = static_cast<int>(columns);
  Vector<T> square[] = {(R < rows ? load_partial(in + R * in_pitch, width) : Vector<T>{})...};
  transpose_step<T, 1>(square, std::make_integer_sequence<int, kLanes<T> / 2>{});
  (void)((R < columns &&
          (store_partial(out + R * out_pitch, square[R], static_cast<int>(stored)), true)) &&
         ...);
}

// out[c * out_pitch + r] = in[r * in_pitch + c] for c < columns, r < rows <= lanes, and zero for
// rows <= r < stored <= lanes. Loads and stores may convert: `In` or `Out` is the compute type.
template <class In, class Out>
void transpose_strip(const In* in, int64_t in_pitch, int64_t rows, int64_t columns, Out* out,
                     int64_t out_pitch, int64_t stored) {
  constexpr int W = kLanes<Compute<In>>;
  constexpr auto indices = std::make_integer_sequence<int, W>{};
  if (rows == W && columns >= W) {
    // The last square overlaps the one before it: writing twice is cheaper than a partial square.
    for (int64_t c = 0; c < columns; c += W) {
      const int64_t start = smaller(c, columns - W);
      transpose_square(in + start * kSpacing<In>, in_pitch, out + start * out_pitch, out_pitch,
                       indices);
    }
    return;
  }
  for (int64_t c = 0; c < columns; c += W)
    transpose_part(in + c * kSpacing<In>, in_pitch, rows, smaller(W, columns - c),
                   out + c * out_pitch, out_pitch, stored, indices);
}

// The same for any number of rows.
template <class In, class Out>
void transpose(const In* in, int64_t in_pitch, int64_t rows, int64_t columns, Out* out,
               int64_t out_pitch) {
  constexpr int W = kLanes<Compute<In>>;
  for (int64_t r = 0; r < rows; r += W) {
    const int64_t start = larger(0, smaller(r, rows - W));
    const int64_t count = smaller(W, rows - start);
    transpose_strip(in + start * in_pitch, in_pitch, count, columns, out + start, out_pitch, count);
  }
}
