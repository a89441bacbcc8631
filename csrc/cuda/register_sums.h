// A tile of sums, kept in the registers of a block, and products added to it one by one: as exact
// as the type is, unlike tensor cores.
//
// A thread holds 8 rows by 8 columns (4 by 8 of float64, whose registers are pairs). For each
// vector of 16 bytes that a row or column has in shared memory it makes 64 products of each number
// in it: 16 loads for 256 products of float32.
#pragma once
#include "cuda/tensor_sums.h"
#include "cuda/tile_vectors.h"

namespace convlm::cuda {

template <class S>
class RegisterSums {
 public:
  using Element = S;
  using Sum = S;
  static constexpr int kRows = 64;
  // Products of a sum over positions before it goes to a total in shared memory; more than of other
  // sums, to go there seldom. 0: none does.
  static constexpr int kChainProducts = sizeof(S) == 8 ? 0 : 256;
  static constexpr int kThreads = kRows / (sizeof(S) == 8 ? 4 : 8) * (kTileColumns / 8);

  __device__ __forceinline__ static S prepared(S value) { return value; }

  __device__ __forceinline__ RegisterSums()
      : row_(static_cast<int>(threadIdx.x) / kColumnThreads),
        column_(static_cast<int>(threadIdx.x) % kColumnThreads) {}

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sums_[i][j] = S(0);
  }

  // Where each thread has totals of its own, beside those of the others.
  static constexpr int kTotals = kRows * kTileColumns;
  __device__ __forceinline__ void clear_totals(S* totals) const {
#pragma unroll
    for (int i = 0; i < kTotals / kThreads; ++i) totals[i * kThreads + threadIdx.x] = S(0);
  }
  __device__ __forceinline__ void move_to(S* totals) {
#pragma unroll
    for (int i = 0; i < kTotals / kThreads; ++i)
      totals[i * kThreads + threadIdx.x] += sums_[i / 8][i % 8];
    clear();
  }
  __device__ __forceinline__ void add(const S* totals) {
#pragma unroll
    for (int i = 0; i < kTotals / kThreads; ++i)
      sums_[i / 8][i % 8] += totals[i * kThreads + threadIdx.x];
  }

  __host__ __device__ static constexpr int pitch(int vectors) {
    return kVectorBytes * (vectors | 1);
  }

  struct Places {
    int at[8];
  };

  // The columns of a thread are not neighbours, so that those of eight threads in succession are:
  // they read eight rows of shared memory that follow each other, without a conflict of banks.
  template <class Place>
  __device__ __forceinline__ Places places_of_rows(const Place& place) const {
    Places places;
#pragma unroll
    for (int j = 0; j < 8; ++j) places.at[j] = place(column_ + j * kColumnThreads);
    return places;
  }

  __device__ __forceinline__ void add_rows(const unsigned char* left, const unsigned char* right,
                                           const Places& places) {
#pragma unroll 1  // more at once would not fit the registers
    for (int k = 0; k < kRowBytes; k += kVectorBytes) {
      Vector<S> b[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) b[j] = vector_at(right + places.at[j] + k);
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const Vector<S> a = vector_at(left + (row_ + i * kRowThreads) * kRowPitch + k);
#pragma unroll
        for (int n = 0; n < kVector<S>; ++n)
#pragma unroll
          for (int j = 0; j < 8; ++j) sums_[i][j] += a.lanes[n] * b[j].lanes[n];
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void visit_rows(const F& f) const {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
        f(row_ + i * kRowThreads, column_ + j * kColumnThreads, sums_[i][j]);
  }

  // Here a thread has vectors of neighbours, for loads of 16 bytes.
  template <class Place>
  __device__ __forceinline__ Places places_of_octets(int, const Place& place) const {
    Places places;
#pragma unroll
    for (int j = 0; j < 8 / kVector<S>; ++j) {
      const int column = (column_ + j * kColumnThreads) * kVector<S>;
      places.at[j] = place(column / kOctet) + column % kOctet * static_cast<int>(sizeof(S));
    }
    return places;
  }

  __device__ __forceinline__ void add_columns(const unsigned char* left, int left_pitch,
                                              const unsigned char* right, int right_pitch,
                                              const Places& places) {
#pragma unroll 4
    for (int k = 0; k < kRowBytes / static_cast<int>(sizeof(S)); ++k) {
      Vector<S> a[kThreadRows / kVector<S>], b[8 / kVector<S>];
#pragma unroll
      for (int i = 0; i < kThreadRows / kVector<S>; ++i)
        a[i] = vector_at(left + k * left_pitch + (row_ + i * kRowThreads) * kVectorBytes);
#pragma unroll
      for (int j = 0; j < 8 / kVector<S>; ++j)
        b[j] = vector_at(right + places.at[j] + k * right_pitch);
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j)
          sums_[i][j] +=
              a[i / kVector<S>].lanes[i % kVector<S>] * b[j / kVector<S>].lanes[j % kVector<S>];
    }
  }

  template <class F>
  __device__ __forceinline__ void visit_columns(const F& f) const {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
        f((row_ + i / kVector<S> * kRowThreads) * kVector<S> + i % kVector<S>,
          (column_ + j / kVector<S> * kColumnThreads) * kVector<S> + j % kVector<S>, sums_[i][j]);
  }

 private:
  static constexpr int kColumnThreads = kTileColumns / 8;
  static constexpr int kRowThreads = kThreads / kColumnThreads;
  static constexpr int kThreadRows = kRows / kRowThreads;

  __device__ __forceinline__ static Vector<S> vector_at(const unsigned char* shared) {
    return *reinterpret_cast<const Vector<S>*>(shared);
  }

  int row_, column_;
  S sums_[kThreadRows][8];
};

}  // namespace convlm::cuda
