// Rows of every STEP-th element, put in their turn: what grad_input of a stride stores.

// a[0], b[0], a[1], b[1], ...: the first vector of them, or the second.
template <bool SECOND, class T, int... L>
CONVLM_INLINE Vector<T> zip(Vector<T> a, Vector<T> b, std::integer_sequence<int, L...>) {
  constexpr int W = kLanes<T>, kFirst = SECOND ? W / 2 : 0;
  return __builtin_shufflevector(a, b, (kFirst + L / 2 + L % 2 * W)...);
}

// a[0], b[0], c[0], a[1], ...: vector PART of three.
template <int PART, class T, int... L>
CONVLM_INLINE Vector<T> zip_three(Vector<T> a, Vector<T> b, Vector<T> c,
                                  std::integer_sequence<int, L...>) {
  constexpr int W = kLanes<T>, F = PART * W;
  const Vector<T> two =
      __builtin_shufflevector(a, b, ((F + L) / 3 + ((F + L) % 3 == 1 ? W : 0))...);
  return __builtin_shufflevector(two, c, ((F + L) % 3 == 2 ? W + (F + L) / 3 : L)...);
}

// out[i * STEP + r] = strips[r * pitch + i] for one vector of i.
template <int STEP, class S>
CONVLM_INLINE void store_interleaved(const Compute<S>* strips, int64_t pitch, S* out) {
  using T = Compute<S>;
  constexpr int W = kLanes<T>;
  constexpr auto lanes = std::make_integer_sequence<int, W>{};
  const Vector<T> a = load(strips), b = load(strips + pitch);
  if constexpr (STEP == 2) {
    store(out, zip<false, T>(a, b, lanes));
    store(out + W, zip<true, T>(a, b, lanes));
  } else {
    const Vector<T> c = load(strips + 2 * pitch);
    if constexpr (STEP == 3) {
      store(out, zip_three<0, T>(a, b, c, lanes));
      store(out + W, zip_three<1, T>(a, b, c, lanes));
      store(out + 2 * W, zip_three<2, T>(a, b, c, lanes));
    } else {
      static_assert(STEP == 4);
      const Vector<T> d = load(strips + 3 * pitch);
      const Vector<T> even[] = {zip<false, T>(a, c, lanes), zip<true, T>(a, c, lanes)};
      const Vector<T> odd[] = {zip<false, T>(b, d, lanes), zip<true, T>(b, d, lanes)};
      store(out, zip<false, T>(even[0], odd[0], lanes));
      store(out + W, zip<true, T>(even[0], odd[0], lanes));
      store(out + 2 * W, zip<false, T>(even[1], odd[1], lanes));
      store(out + 3 * W, zip<true, T>(even[1], odd[1], lanes));
    }
  }
}

template <int STEP, class S>
int64_t interleave_vectors(const Compute<S>* strips, int64_t pitch, int64_t count, S* out) {
  constexpr int W = kLanes<Compute<S>>;
  int64_t i = 0;
  for (; i + W <= count; i += W) store_interleaved<STEP>(strips + i, pitch, out + i * STEP);
  return i;
}

constexpr int64_t kMostInterleaved = 4;  // by shuffles

// out[i * step + r] = strips[r * pitch + i], `length` elements in all.
template <class S>
void interleave(const Compute<S>* strips, int64_t pitch, int64_t step, int64_t length, S* out) {
  const int64_t whole = length / step;
  int64_t i = 0;
  if (step == 2) i = interleave_vectors<2>(strips, pitch, whole, out);
  if (step == 3) i = interleave_vectors<3>(strips, pitch, whole, out);
  if (step == 4) i = interleave_vectors<4>(strips, pitch, whole, out);
  // Doubles are copied as fast, and AVX2 is slow to store a part of a vector of floats.
  constexpr bool kSlowParts = CONVLM_VECTOR_BYTES == 32 && sizeof(S) == sizeof(float);
  constexpr int64_t kFewestTurned = kSlowParts ? kLanes<float> : kMostInterleaved + 1;
  if (step >= kFewestTurned && sizeof(S) < sizeof(double)) {
    transpose(strips, pitch, step, whole, out, step);
    i = whole;
  }
  for (; i * step < length; ++i) {
    const int64_t rest = smaller(step, length - i * step);
    for (int64_t r = 0; r < rest; ++r) from_compute(strips[r * pitch + i], out[i * step + r]);
  }
}
