// A tile of sums, kept in the registers of a block, and products added to it by tensor cores.
//
// A warp holds 32 rows by 64 columns: of 16 x 8 each, two tiles of rows by eight of columns. So for
// the 16 products of matrices that a step takes it loads 2 + 4 times four matrices.
#pragma once
#include "cuda/tile_vectors.h"

namespace convlm::cuda {

constexpr int kTileColumns = 128;

// Bytes of the summed index that one row of an operand has in a stage, where it runs within rows;
// and how far apart the rows are: 16 bytes further than they are long, so that eight rows in
// succession, which is what an instruction reads, begin in eight different groups of banks.
constexpr int kRowBytes = 64;
constexpr int kRowPitch = kRowBytes + kVectorBytes;

// Columns are held in octets; each operand of a stage says where one begins in shared memory.
constexpr int kOctet = 8;

template <class S, int kTileRows>
class TensorSums {
 public:
  using Element = S;
  using Sum = float;
  static constexpr int kRows = kTileRows;
  // No chains as in RegisterSums: 8 or 16 products are one addition, and what those of a piece may
  // err by is less than TF32 rounds factors by, or 16-bit types results.
  static constexpr int kChainProducts = 0;
  static constexpr int kThreads = 2 * kRows;

  // How a number is stored for the tensor cores.
  __device__ __forceinline__ static S prepared(S value) {
    if constexpr (sizeof(S) == 4)
      return to_tf32(value);
    else
      return value;
  }

  // Bytes from row to row, `vectors` long, where the summed index runs across rows. Transposing
  // loads take eight rows at once: an odd number of vectors. Of TF32 four rows of eight numbers are
  // read, so they are 8 or 24 banks apart.
  __host__ __device__ static constexpr int pitch(int vectors) {
    return kVectorBytes * (sizeof(S) == 4 ? (vectors + 1) / 4 * 4 + 2 : vectors | 1);
  }

  __device__ __forceinline__ TensorSums()
      : lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        row_(static_cast<int>(threadIdx.x) / kWarpSize / 2 * 32),
        column_(static_cast<int>(threadIdx.x) / kWarpSize % 2 * 64) {}

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k) sums_[i][j][k] = 0.0f;
  }

  // The bytes at which this thread reads the columns of the right operand.
  struct Places {
    int at[8];
  };

  // Where the summed index runs within rows: `place` of a column is the byte its row starts at.
  template <class Place>
  __device__ __forceinline__ Places places_of_rows(const Place& place) const {
    Places places;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      places.at[j] = place(column_ + 16 * j + lane_ / 16 * 8 + lane_ % 8) + lane_ / 8 % 2 * 16;
    return places;
  }

  __device__ __forceinline__ void add_rows(const unsigned char* left, const unsigned char* right,
                                           const Places& places) {
    const unsigned char* left_row = left + (row_ + lane_ % 16) * kRowPitch + lane_ / 16 * 16;
#pragma unroll
    for (int k = 0; k < kRowBytes; k += 32) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) load_matrices(a[i], left_row + 16 * i * kRowPitch + k);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t b[4];
        load_matrices(b, right + places.at[j] + k);
        add_pair(a, b, 2 * j);
      }
    }
  }

  // f(row, column, sum) for every sum that this thread holds.
  template <class F>
  __device__ __forceinline__ void visit_rows(const F& f) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          f(row_ + 16 * i + lane_ / 4 + k / 2 * 8, column_ + 8 * j + lane_ % 4 * 2 + k % 2,
            sums_[i][j][k]);
  }

  // Where it runs across rows: `place` of an octet of columns is where row 0 of it starts.
  template <class Place>
  __device__ __forceinline__ Places places_of_octets(int pitch, const Place& place) const {
    Places places;
    if constexpr (sizeof(S) == 4) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        places.at[j] = place(column_ / kOctet + j) + lane_ % 4 * pitch + lane_ / 4 * 4;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        places.at[j] = place(column_ / kOctet + 2 * j + lane_ / 16) + lane_ % 16 * pitch;
    }
    return places;
  }

  __device__ __forceinline__ void add_columns(const unsigned char* left, int left_pitch,
                                              const unsigned char* right, int right_pitch,
                                              const Places& places) {
    constexpr int kDepth = 32 / sizeof(S);  // of one product of matrices
#pragma unroll
    for (int k = 0; k < 2 * kDepth; k += kDepth) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) read_left(a[i], left, left_pitch, k, row_ + 16 * i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t b[4];
        if constexpr (sizeof(S) == 4) {
#pragma unroll
          for (int n = 0; n < 4; ++n)
            b[n] = word(right + places.at[2 * j + n / 2] + (k + n % 2 * 4) * right_pitch);
        } else {
          load_matrices_transposed(b, right + places.at[j] + k * right_pitch);
        }
        add_pair(a, b, 2 * j);
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void visit_columns(const F& f) const {
    visit_rows(f);
  }

 private:
  __device__ __forceinline__ static uint32_t word(const unsigned char* shared) {
    return *reinterpret_cast<const uint32_t*>(shared);
  }

  __device__ __forceinline__ void read_left(uint32_t (&a)[4], const unsigned char* left, int pitch,
                                            int k, int row) const {
    if constexpr (sizeof(S) == 4) {
#pragma unroll
      for (int n = 0; n < 4; ++n)
        a[n] = word(left + (k + lane_ % 4 + n / 2 * 4) * pitch + (row + lane_ / 4 + n % 2 * 8) * 4);
    } else {
      const int at = k + lane_ % 8 + lane_ / 16 * 8;
      load_matrices_transposed(a, left + at * pitch + (row + lane_ / 8 % 2 * 8) * 2);
    }
  }

  __device__ __forceinline__ void add_pair(const uint32_t (&a)[2][4], const uint32_t (&b)[4],
                                           int j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      multiply_matrices<S>(sums_[i][j], a[i], b[0], b[1]);
      multiply_matrices<S>(sums_[i][j + 1], a[i], b[2], b[3]);
    }
  }

  int lane_, row_, column_;
  float sums_[2][8][4];
};

}  // namespace convlm::cuda
