// Lists who reads each row. Where a list lies, and in what order its entries come, is up to atomics
// on integers; then each entry counts those below it, and has its place.
#include "cuda/contexts.h"

namespace convlm::cuda {
namespace {

// Calls body(readers of a layer, reader, row) for all that are listed.
template <class Body>
__device__ void for_each_reader(const Contexts& c, const StackReaders& r, const Body& body) {
  for (int i = 1; i < c.count; ++i) {
    const LayerContexts& l = c.levels[i];
    for_each(*l.row_count * l.taps, [&](int reader) {
      const int32_t row = l.row_of_reader(reader);
      if (row != kNoField && l.reads_first(reader, row)) body(r.layers[i - 1], reader, row);
    });
  }
}

__global__ void __launch_bounds__(kContextBlock)
    clear_counts_kernel(const __grid_constant__ Contexts c,
                        const __grid_constant__ StackReaders r) {
  for (int i = 0; i + 1 < c.count; ++i) {
    for_each(1, [&](int64_t) { *r.layers[i].used = 0; });
    for_each(*c.levels[i].row_count, [&](int64_t row) { r.layers[i].count[row] = 0; });
  }
}

__global__ void __launch_bounds__(kContextBlock)
    count_readers_kernel(const __grid_constant__ Contexts c,
                         const __grid_constant__ StackReaders r) {
  for_each_reader(c, r, [](const Readers& l, int, int row) { atomicAdd(l.count + row, 1); });
}

// A list is filled from its end: then `begin` is where it begins.
__global__ void __launch_bounds__(kContextBlock)
    place_lists_kernel(const __grid_constant__ Contexts c, const __grid_constant__ StackReaders r) {
  for (int i = 0; i + 1 < c.count; ++i)
    for_each(*c.levels[i].row_count, [&](int64_t row) {
      const Readers& l = r.layers[i];
      l.begin[row] = atomicAdd(l.used, l.count[row]) + l.count[row];
    });
}

__global__ void __launch_bounds__(kContextBlock)
    fill_lists_kernel(const __grid_constant__ Contexts c, const __grid_constant__ StackReaders r) {
  for_each_reader(c, r, [](const Readers& l, int reader, int row) {
    l.found[atomicAdd(l.begin + row, -1) - 1] = reader;
  });
}

__global__ void __launch_bounds__(kContextBlock)
    order_lists_kernel(const __grid_constant__ Contexts c, const __grid_constant__ StackReaders r) {
  for_each_reader(c, r, [](const Readers& l, int reader, int row) {
    const int32_t* found = l.found + l.begin[row];
    int below = 0;
    for (int i = 0; i < l.count[row]; ++i) below += found[i] < reader;
    l.readers[l.begin[row] + below] = reader;
  });
}

}  // namespace

cudaError_t list_readers(const Contexts& c, const StackReaders& r, cudaStream_t stream) {
  int64_t most = 0;
  for (int i = 0; i < c.count; ++i) {
    const int64_t readers = c.levels[i].most_rows * c.levels[i].taps;
    if (readers > most) most = readers;
  }
  cudaError_t error = cudaSuccess;
  for (const auto kernel : {&clear_counts_kernel, &count_readers_kernel, &place_lists_kernel,
                            &fill_lists_kernel, &order_lists_kernel})
    if (error == cudaSuccess)
      error = launch(kernel, context_blocks(most), kContextBlock, 0, stream, c, r);
  return error;
}

}  // namespace convlm::cuda
