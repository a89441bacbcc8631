// How fast this processor can multiply and add: independent chains in registers, nothing else.
//
// Each function runs `steps` steps and returns the floating-point operations that it did, or 0
// where the processor lacks the instructions.
#include <stddef.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#define HAS_TILES
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__AVX512F__)
enum { VECTOR = 64 };
#elif defined(__AVX__)
enum { VECTOR = 32 };
#else
enum { VECTOR = 16 };
#endif

// Enough to fill the pipelines: latency times issues a cycle is at most 10 on x86, 16 on ARM, which
// has the registers for it.
#if defined(__aarch64__)
enum { CHAINS = 16 };
#else
enum { CHAINS = 10 };
#endif

typedef float float_vector __attribute__((vector_size(VECTOR)));
typedef double double_vector __attribute__((vector_size(VECTOR)));

// The compiler must not know the factors, or it would compute the result itself.
static volatile double factor = 0.5, summand = 0.25, sink;

#define DEFINE_PEAK(name, element, vector)                                 \
  double name(long steps) {                                                \
    const vector a = (vector){} + (element)factor;                         \
    const vector b = (vector){} + (element)summand;                        \
    vector chain[CHAINS];                                                  \
    for (int i = 0; i < CHAINS; ++i) chain[i] = b * (element)i;            \
    for (long step = 0; step < steps; ++step) {                            \
      _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; ++i) chain[i] = \
          chain[i] * a + b;                                                \
    }                                                                      \
    vector total = b;                                                      \
    for (int i = 0; i < CHAINS; ++i) total += chain[i];                    \
    sink = total[0];                                                       \
    return 2.0 * CHAINS * (VECTOR / sizeof(element)) * steps;              \
  }

DEFINE_PEAK(peak_float32, float, float_vector)
DEFINE_PEAK(peak_float64, double, double_vector)

#if defined(HAS_TILES)
// The kernel keeps room for tiles for a process that has asked for it.
static int tiles_are_granted(void) {
  enum { ASK = 0x1023, TILE_DATA = 18 };  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
}

static double peak_of_tiles(long steps) {
  enum { TILES = 8, ROWS = 16, BYTES = 64 };
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shapes = {.palette = 1};
  for (int i = 0; i < TILES; ++i) {
    shapes.row_bytes[i] = BYTES;
    shapes.rows[i] = ROWS;
  }
  uint32_t zeros[ROWS * BYTES / 4] = {0};
  __asm__ volatile("" : : "r"(&shapes), "r"(zeros) : "memory");
  _tile_loadconfig(&shapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, zeros, BYTES);
  _tile_loadd(5, zeros, BYTES);
  _tile_loadd(6, zeros, BYTES);
  _tile_loadd(7, zeros, BYTES);
  for (long step = 0; step < steps; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 2.0 * 4 * 16 * 16 * 32 * steps;
}
#endif

double peak_bfloat16(long steps) {
#if defined(HAS_TILES)
  if (tiles_are_granted()) return peak_of_tiles(steps);
#endif
#if defined(__AVX512BF16__)
  const __m512 start = _mm512_set1_ps((float)summand);
  const __m512bh a = _mm512_cvtne2ps_pbh(start, start);
  __m512 chain[CHAINS];
  for (int i = 0; i < CHAINS; ++i) chain[i] = start;
  for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; ++i) chain[i] = _mm512_dpbf16_ps(chain[i], a, a);
  }
  __m512 total = start;
  for (int i = 0; i < CHAINS; ++i) total = _mm512_add_ps(total, chain[i]);
  sink = _mm512_cvtss_f32(total);
  return 4.0 * CHAINS * 16 * steps;
#else
  return 0.0 * steps;
#endif
}
