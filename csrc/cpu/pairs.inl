// Pairs of bfloat16 as operands: one instruction multiplies both elements and adds both products to
// a float. Two neighbours of the reduction share a pair: two channels in the correlation, two
// positions in grad_weight. Whoever makes pairs of an odd number of elements puts a zero in the
// last pair of both operands: in one alone, it would turn an infinity in the other into a NaN.

// Two bfloat16, wherever one of them may start.
struct Pair {
  uint16_t low, high;
};
template <>
struct ComputeType<Pair> {
  using type = Pair;
};
template <>
struct VectorOf<Pair> {
  typedef uint32_t type __attribute__((vector_size(CONVLM_VECTOR_BYTES)));
  typedef uint32_t unaligned
      __attribute__((vector_size(CONVLM_VECTOR_BYTES), aligned(2), may_alias));
};
template <>
constexpr int kDepth<Pair> = 2;
template <>
struct SumOf<Pair> {
  using type = float;
};
template <>
struct StoredOf<Pair> {
  using type = bfloat16;
};
template <>
struct OperandOf<bfloat16> {
  using type = Pair;
};
template <>
struct ElementOf<bfloat16> {
  using type = uint16_t;
};

CONVLM_INLINE Vector<Pair> broadcast(Pair v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, 4);
  return Vector<Pair>{} + bits;
}

// vdpbf16ps reads denormals as zeros, so that a denormal times an infinity is a NaN, and leaves
// zeros for them. Else it is two multiply-adds, the high one first: a product of bfloat16 is exact
// in float, and each addition rounds to nearest even.
CONVLM_INLINE Vector<float> multiply_add(Vector<float> sum, Vector<Pair> a, Vector<Pair> b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
CONVLM_INLINE Vector<float> multiply_add(Vector<float> sum, Pair scalar, Vector<Pair> v) {
  return multiply_add(sum, broadcast(scalar), v);
}
// Adds both elements.
CONVLM_INLINE Vector<float> add(Vector<float> sum, Vector<Pair> v) {
  constexpr uint16_t kOne = 0x3f80;
  return multiply_add(sum, Pair{kOne, kOne}, v);
}

CONVLM_INLINE Vector<Pair> load(const Pair* p) {
  return *reinterpret_cast<const VectorOf<Pair>::unaligned*>(p);
}
CONVLM_INLINE void store(Pair* p, Vector<Pair> v) {
  *reinterpret_cast<VectorOf<Pair>::unaligned*>(p) = v;
}
CONVLM_INLINE __mmask16 first_lanes(int count) {
  return static_cast<__mmask16>((1u << count) - 1u);
}
CONVLM_INLINE Vector<Pair> load_partial(const Pair* p, int count) {
  return (Vector<Pair>)_mm512_maskz_loadu_epi32(first_lanes(count), p);
}
CONVLM_INLINE void store_partial(Pair* p, Vector<Pair> v, int count) {
  _mm512_mask_storeu_epi32(p, first_lanes(count), (__m512i)v);
}

// From floats that hold bfloat16.
CONVLM_INLINE Vector<Pair> pair_of(Vector<float> low, Vector<float> high) {
  return ((Vector<Pair>)low >> 16) | ((Vector<Pair>)high & 0xffff0000u);
}

// The bits of a bfloat16: what is staged where neighbours in a row share a pair. A vector of them
// is one of pairs.
template <>
struct ComputeType<uint16_t> {
  using type = uint16_t;
};
template <>
struct VectorOf<uint16_t> {
  typedef uint16_t type __attribute__((vector_size(CONVLM_VECTOR_BYTES)));
  typedef uint16_t unaligned
      __attribute__((vector_size(CONVLM_VECTOR_BYTES), aligned(2), may_alias));
};
template <>
struct SumOf<uint16_t> {
  using type = float;
};
CONVLM_INLINE Vector<float> multiply_add(Vector<float> sum, Vector<uint16_t> a,
                                         Vector<uint16_t> b) {
  return multiply_add(sum, (Vector<Pair>)a, (Vector<Pair>)b);
}
CONVLM_INLINE Vector<float> add(Vector<float> sum, Vector<uint16_t> v) {
  return add(sum, (Vector<Pair>)v);
}
CONVLM_INLINE uint16_t to_compute(uint16_t bits) { return bits; }
CONVLM_INLINE Vector<uint16_t> load(const uint16_t* p) {
  return *reinterpret_cast<const VectorOf<uint16_t>::unaligned*>(p);
}
CONVLM_INLINE void store(uint16_t* p, Vector<uint16_t> v) {
  *reinterpret_cast<VectorOf<uint16_t>::unaligned*>(p) = v;
}
CONVLM_INLINE __mmask32 first_elements(int count) {
  return static_cast<__mmask32>((uint64_t{1} << count) - 1u);
}
CONVLM_INLINE Vector<uint16_t> load_partial(const uint16_t* p, int count) {
  return (Vector<uint16_t>)_mm512_maskz_loadu_epi16(first_elements(count), p);
}
CONVLM_INLINE void store_partial(uint16_t* p, Vector<uint16_t> v, int count) {
  _mm512_mask_storeu_epi16(p, first_elements(count), (__m512i)v);
}

// A row of bfloat16, read as pairs of neighbours.
struct PairStart {
  uint16_t bits;
};
template <>
struct ComputeType<PairStart> {
  using type = Pair;
};
template <>
constexpr int kSpacing<PairStart> = 2;
CONVLM_INLINE Vector<Pair> load(const PairStart* p) {
  return load(reinterpret_cast<const Pair*>(p));
}
CONVLM_INLINE Vector<Pair> load_partial(const PairStart* p, int count) {
  return (Vector<Pair>)_mm512_maskz_loadu_epi32(first_lanes(count), p);
}
