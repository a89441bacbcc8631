// Vectors of the compute type (float or double) and conversions from and to the storage types.
// CONVLM_VECTOR_BYTES, set by the file that includes kernels.inl, stands for the instruction set:
// 64 for AVX-512, 32 for AVX2 with F16C, 16 for anything. The compiler's own macros do not: GCC
// before 13 reads the whole file before a target pragma takes effect.

#define CONVLM_INLINE inline __attribute__((always_inline))

template <class S>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeType<S>::type;

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(CONVLM_VECTOR_BYTES)));
  typedef float unaligned __attribute__((vector_size(CONVLM_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t integer __attribute__((vector_size(CONVLM_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(CONVLM_VECTOR_BYTES)));
  typedef double unaligned __attribute__((vector_size(CONVLM_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t integer __attribute__((vector_size(CONVLM_VECTOR_BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
using Integers = typename VectorOf<T>::integer;

template <class T>
constexpr int kLanes = CONVLM_VECTOR_BYTES / sizeof(T);

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t divide_down(int64_t a, int64_t b) {  // floor, also for negative a
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// ---- one element ----

CONVLM_INLINE float to_compute(float v) { return v; }
CONVLM_INLINE double to_compute(double v) { return v; }
CONVLM_INLINE float to_compute(bfloat16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

CONVLM_INLINE void from_compute(float v, float& out) { out = v; }
CONVLM_INLINE void from_compute(double v, double& out) { out = v; }
CONVLM_INLINE void from_compute(float v, bfloat16& out) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, 4);
#if defined(CONVLM_DOT_BFLOAT16)
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;  // as the instruction that rounds a vector
#endif
  // Round to nearest even; a NaN must stay one, so it keeps its upper half with the quiet bit set.
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u
                                       ? (bits >> 16) | 0x40u
                                       : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#if CONVLM_VECTOR_BYTES >= 32
CONVLM_INLINE float to_compute(float16 v) { return _cvtsh_ss(v.bits); }
CONVLM_INLINE void from_compute(float v, float16& out) {
  out.bits = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
}
#else
CONVLM_INLINE float to_compute(float16 v) {
  // Scaling by 2^112 moves the exponent to float's bias and normalises subnormals on the way.
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  uint32_t bits = static_cast<uint32_t>(v.bits & 0x7fffu) << 13;
  float magnitude;
  if (bits >= 0x0f800000u) {  // infinity or NaN
    bits |= 0x7f800000u;
    __builtin_memcpy(&magnitude, &bits, 4);
  } else {
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude *= 0x1p112f;
  }
  __builtin_memcpy(&bits, &magnitude, 4);
  bits |= sign;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}
CONVLM_INLINE void from_compute(float v, float16& out) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) {
    out.bits = static_cast<uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));
  } else if (bits >= 0x477ff000u) {  // 65520 and above round to infinity
    out.bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (bits < 0x38800000u) {  // subnormal: let the addition of 0.5 do the rounding
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    __builtin_memcpy(&bits, &magnitude, 4);
    out.bits = static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  } else {
    out.bits =
        static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13));
  }
}
#endif

// ---- one vector ----

#if CONVLM_VECTOR_BYTES == 64
// The unmasked conversions of GCC 12's header warn of an uninitialised operand.
constexpr __mmask16 kAll = 0xffff;
#endif

template <class T>
CONVLM_INLINE Vector<T> broadcast(T v) {
  return Vector<T>{} + v;
}

// Makes the compiler load a vector once, instead of as an operand of each of its uses.
template <class V>
CONVLM_INLINE void keep(V& v) {
#if defined(__x86_64__)
  __asm__("" : "+v"(v));
#else
  (void)v;
#endif
}

CONVLM_INLINE Vector<float> load(const float* p) {
  return *reinterpret_cast<const VectorOf<float>::unaligned*>(p);
}
CONVLM_INLINE Vector<double> load(const double* p) {
  return *reinterpret_cast<const VectorOf<double>::unaligned*>(p);
}
template <class S>
CONVLM_INLINE Vector<float> load_elements(const S* p) {
  Vector<float> v{};
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_compute(p[i]);
  return v;
}
typedef uint16_t HalfVector
    __attribute__((vector_size(CONVLM_VECTOR_BYTES / 2), aligned(2), may_alias));
CONVLM_INLINE Vector<float> from_bfloat16(HalfVector v) {
#if CONVLM_VECTOR_BYTES == 64
  // GCC 12 converts a vector in quarters unless it is told the instruction.
  return (Vector<float>)_mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, (__m256i)v),
                                                16);
#elif CONVLM_VECTOR_BYTES == 32
  return (Vector<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)v), 16);
#else
  typedef uint32_t Word __attribute__((vector_size(CONVLM_VECTOR_BYTES)));
  return (Vector<float>)(__builtin_convertvector(v, Word) << 16);
#endif
}
CONVLM_INLINE Vector<float> load(const bfloat16* p) {
  return from_bfloat16(*reinterpret_cast<const HalfVector*>(p));
}
CONVLM_INLINE Vector<float> load(const float16* p) {
#if CONVLM_VECTOR_BYTES == 64
  return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif CONVLM_VECTOR_BYTES == 32
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return load_elements(p);
#endif
}

CONVLM_INLINE void store(float* p, Vector<float> v) {
  *reinterpret_cast<VectorOf<float>::unaligned*>(p) = v;
}
CONVLM_INLINE void store(double* p, Vector<double> v) {
  *reinterpret_cast<VectorOf<double>::unaligned*>(p) = v;
}
CONVLM_INLINE HalfVector round_to_bfloat16(Vector<float> v) {
#if defined(CONVLM_DOT_BFLOAT16)
  return (HalfVector)_mm512_maskz_cvtneps_pbh(kAll, v);  // denormals become zeros
#else
  typedef uint32_t Word __attribute__((vector_size(CONVLM_VECTOR_BYTES)));
  const Word bits = (Word)v;
  const Word is_nan = (Word)((bits & 0x7fffffffu) > 0x7f800000u);
  const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Word quiet = (bits >> 16) | 0x40u;
  const Word result = (quiet & is_nan) | (rounded & ~is_nan);
#if CONVLM_VECTOR_BYTES == 64
  return (HalfVector)_mm512_maskz_cvtepi32_epi16(kAll, (__m512i)result);
#else
  return __builtin_convertvector(result, HalfVector);
#endif
#endif
}
CONVLM_INLINE void store(bfloat16* p, Vector<float> v) {
  *reinterpret_cast<HalfVector*>(p) = round_to_bfloat16(v);
}
CONVLM_INLINE void store(float16* p, Vector<float> v) {
#if CONVLM_VECTOR_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(kAll, v, _MM_FROUND_TO_NEAREST_INT));
#elif CONVLM_VECTOR_BYTES == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) from_compute(v[i], p[i]);
#endif
}

// A store to aligned memory that need not be read before it is overwritten. A fence must follow.
template <class S>
CONVLM_INLINE void store_past_caches(S* p, Vector<Compute<S>> v) {
  store(p, v);
}
#if CONVLM_VECTOR_BYTES == 64
CONVLM_INLINE void store_past_caches(float* p, Vector<float> v) { _mm512_stream_ps(p, v); }
CONVLM_INLINE void store_past_caches(double* p, Vector<double> v) { _mm512_stream_pd(p, v); }
#elif CONVLM_VECTOR_BYTES == 32
CONVLM_INLINE void store_past_caches(float* p, Vector<float> v) { _mm256_stream_ps(p, v); }
CONVLM_INLINE void store_past_caches(double* p, Vector<double> v) { _mm256_stream_pd(p, v); }
#endif
CONVLM_INLINE void fence_stores() {
#if CONVLM_VECTOR_BYTES >= 32
  _mm_sfence();
#endif
}

// The first `count` lanes; the others are zero on load and untouched in memory on store.
template <class S>
CONVLM_INLINE Vector<Compute<S>> load_partial(const S* p, int count) {
  Compute<S> lanes[kLanes<Compute<S>>] = {};
  for (int i = 0; i < count; ++i) lanes[i] = to_compute(p[i]);
  return load(lanes);
}
template <class S>
CONVLM_INLINE void store_partial(S* p, Vector<Compute<S>> v, int count) {
  S lanes[kLanes<Compute<S>>];  // one conversion for all
  store(lanes, v);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}
#if CONVLM_VECTOR_BYTES == 64
CONVLM_INLINE Vector<float> load_partial(const float* p, int count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p);
}
CONVLM_INLINE void store_partial(float* p, Vector<float> v, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), v);
}
CONVLM_INLINE Vector<double> load_partial(const double* p, int count) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1u), p);
}
CONVLM_INLINE void store_partial(double* p, Vector<double> v, int count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1u), v);
}
CONVLM_INLINE Vector<float> load_partial(const bfloat16* p, int count) {
  return from_bfloat16(
      (HalfVector)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1u), p));
}
CONVLM_INLINE void store_partial(bfloat16* p, Vector<float> v, int count) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1u),
                           (__m256i)round_to_bfloat16(v));
}
CONVLM_INLINE Vector<float> load_partial(const float16* p, int count) {
  return _mm512_maskz_cvtph_ps(
      kAll, _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1u), p));
}
CONVLM_INLINE void store_partial(float16* p, Vector<float> v, int count) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1u),
                           _mm512_maskz_cvtps_ph(kAll, v, _MM_FROUND_TO_NEAREST_INT));
}
#elif CONVLM_VECTOR_BYTES == 32
CONVLM_INLINE __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
CONVLM_INLINE __m256i first_wide_lanes(int count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
CONVLM_INLINE Vector<double> load_partial(const double* p, int count) {
  return _mm256_maskload_pd(p, first_wide_lanes(count));
}
CONVLM_INLINE void store_partial(double* p, Vector<double> v, int count) {
  _mm256_maskstore_pd(p, first_wide_lanes(count), v);
}
CONVLM_INLINE Vector<float> load_partial(const float* p, int count) {
  return _mm256_maskload_ps(p, first_lanes(count));
}
CONVLM_INLINE void store_partial(float* p, Vector<float> v, int count) {
  _mm256_maskstore_ps(p, first_lanes(count), v);
}
#endif

// Errs by no more than 2^-14 of the value.
CONVLM_INLINE Vector<float> approximate_reciprocal(Vector<float> v) {
#if CONVLM_VECTOR_BYTES == 64
  return _mm512_maskz_rcp14_ps(kAll, v);
#else
  return 1.0f / v;
#endif
}
CONVLM_INLINE Vector<double> approximate_reciprocal(Vector<double> v) { return 1.0 / v; }

// The first `count` lanes, or all; the others are zero.
template <class T>
CONVLM_INLINE Vector<T> first_lanes(Vector<T> v, int64_t count) {
  if (count >= kLanes<T>) return v;
  T lanes[kLanes<T>];
  store(lanes, v);
  return load_partial(lanes, static_cast<int>(count));
}
