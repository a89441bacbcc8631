// The first steps of cpu.md, each a function of its own, on one layer of a language model.
//   g++ -std=c++17 -O3 -march=native docs/cpu_steps.cpp -o cpu_steps && ./cpu_steps [channels]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

constexpr int kBatch = 16, kLength = 1024, kTaps = 3, kDilation = 4, kPad = kDilation * (kTaps - 1);

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8;
#else
constexpr int kLanes = 8, kRows = 4;
#endif
constexpr int kVectors = 3, kWidth = kVectors * kLanes;
typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4)));

struct Layer {
  int channels;  // in and out
  std::vector<float> x, weight, y;
};

// As it is written down: causal, y[n][o][t] = sum over c, k of w[o][c][k] * x[n][c][t + k d - pad].
void naive(Layer& l) {
  const int C = l.channels;
  for (int n = 0; n < kBatch; ++n)
    for (int o = 0; o < C; ++o)
      for (int t = 0; t < kLength; ++t) {
        float sum = 0;
        for (int c = 0; c < C; ++c)
          for (int k = 0; k < kTaps; ++k) {
            const int p = t + k * kDilation - kPad;
            if (p >= 0) sum += l.weight[(o * C + c) * kTaps + k] * l.x[(n * C + c) * kLength + p];
          }
        l.y[(n * C + o) * kLength + t] = sum;
      }
}

// Positions innermost: neighbours in the loop are neighbours in memory, and the compiler
// vectorises.
void positions_innermost(Layer& l) {
  const int C = l.channels;
  std::fill(l.y.begin(), l.y.end(), 0.f);
  for (int n = 0; n < kBatch; ++n)
    for (int o = 0; o < C; ++o)
      for (int c = 0; c < C; ++c)
        for (int k = 0; k < kTaps; ++k) {
          const float w = l.weight[(o * C + c) * kTaps + k];
          const int shift = k * kDilation - kPad;
          float* y = &l.y[(n * C + o) * kLength];
          const float* x = &l.x[(n * C + c) * kLength];
          for (int t = -shift; t < kLength; ++t) y[t] += w * x[t + shift];
        }
}

// Sums of ROWS x kVectors vectors stay in registers for the whole reduction. `row_step` elements
// lie between the weights of neighbouring output channels, `step` between those of one channel's
// taps.
template <int ROWS>
void multiply(const float* w, int row_step, int channel_step, int tap_step, const float* x,
              int pitch, int channels, float* y) {
  Vector sum[ROWS][kVectors] = {};
  for (int c = 0; c < channels; ++c, w += channel_step, x += pitch)
    for (int k = 0; k < kTaps; ++k) {
      Vector v[kVectors];
      for (int j = 0; j < kVectors; ++j)
        std::memcpy(&v[j], x + k * kDilation + j * kLanes, 4 * kLanes);
      for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < kVectors; ++j) sum[i][j] += w[i * row_step + k * tap_step] * v[j];
    }
  for (int i = 0; i < ROWS; ++i) std::memcpy(y + i * kWidth, sum[i], 4 * kWidth);
}

// A strip of kWidth outputs is computed from a staged copy of what it reads: the copy knows about
// padding and ends, the loops do not. With `packed`, the weights of a block of rows lie in the
// order in which they are read; else they are taken from where they are.
template <int ROWS, bool PACKED>
void blocked(Layer& l) {
  const int C = l.channels, products = C * kTaps;
  std::vector<float> packed(PACKED ? C * products : 0);
  for (int o = 0; PACKED && o < C; ++o)
    for (int i = 0; i < products; ++i)
      packed[o / ROWS * ROWS * products + i * ROWS + o % ROWS] = l.weight[o * products + i];
  constexpr int kTile = 4 * kWidth;               // staged at once
  const int pitch = kTile + 4 * kLanes + kLanes;  // an odd number of cache lines
  std::vector<float> staged(C * pitch), tile(ROWS * kWidth);
  for (int n = 0; n < kBatch; ++n)
    for (int first = 0; first < kLength; first += kTile) {
      for (int c = 0; c < C; ++c)
        for (int i = 0; i < kTile + kPad; ++i) {
          const int p = first + i - kPad;
          staged[c * pitch + i] = p < 0 || p >= kLength ? 0 : l.x[(n * C + c) * kLength + p];
        }
      for (int o = 0; o < C; o += ROWS)
        for (int t = first; t < std::min(first + kTile, kLength); t += kWidth) {
          if (PACKED)
            multiply<ROWS>(&packed[o * products], 1, kTaps * ROWS, ROWS, &staged[t - first], pitch,
                           C, tile.data());
          else
            multiply<ROWS>(&l.weight[o * products], products, kTaps, 1, &staged[t - first], pitch,
                           C, tile.data());
          for (int i = 0; i < ROWS; ++i)
            std::copy_n(&tile[i * kWidth], std::min(kWidth, kLength - t),
                        &l.y[(n * C + o + i) * kLength + t]);
        }
    }
}

int main(int argc, char** argv) {
  Layer l;
  l.channels = argc > 1 ? std::atoi(argv[1]) : 64;
  if (l.channels < kRows || l.channels % kRows != 0) {
    std::printf("channels must be a multiple of %d, got %s\n", kRows, argv[1]);
    return 1;
  }
  std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  l.x.resize(kBatch * l.channels * kLength);
  l.weight.resize(l.channels * l.channels * kTaps);
  l.y.resize(l.x.size());
  for (float& v : l.x) v = normal(generator);
  for (float& v : l.weight) v = normal(generator) / std::sqrt(l.channels * kTaps);

  const struct {
    const char* name;
    void (*run)(Layer&);
  } steps[] = {{"1 naive", naive},
               {"2 positions innermost", positions_innermost},
               {"3 one row of vectors in registers", blocked<1, false>},
               {"4 block of rows and vectors", blocked<kRows, false>},
               {"5 packed weights", blocked<kRows, true>}};
  std::vector<float> expected;
  double before = 0;
  for (const auto& step : steps) {
    std::vector<double> times;
    for (int repeat = 0; repeat < (expected.empty() ? 1 : 9); ++repeat) {
      const auto start = std::chrono::steady_clock::now();
      step.run(l);
      times.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    const double time = times[times.size() / 2];
    if (expected.empty()) expected = l.y;
    for (size_t i = 0; i < expected.size(); ++i)
      if (!(std::abs(l.y[i] - expected[i]) < 1e-4f)) return std::printf("wrong at %zu\n", i), 1;
    const double rate = 2.0 * l.y.size() * l.channels * kTaps / time / 1e9;
    std::printf("%-36s %9.2f ms %8.1f GFLOP/s", step.name, time * 1e3, rate);
    if (before > 0) std::printf("   %.1fx", before / time);
    std::printf("\n");
    before = time;
  }
}
