// Numbers the distinct fields of each layer. Integers only: atomics on them give the same result in
// any order.
#include "cuda/contexts.h"

namespace convlm::cuda {
namespace {

constexpr int kEach = kContextChunk / kContextBlock;  // positions of a thread

// Empties the tables, and gives what is no word a number too.
__global__ void __launch_bounds__(kContextBlock)
    number_words_kernel(const __grid_constant__ Contexts c) {
  for (int i = 0; i < c.count; ++i) {
    const LayerContexts& l = c.levels[i];
    if (l.fields == nullptr) for_each(1, [&](int64_t) { *l.row_count = l.positions(); });
    for_each(l.slots, [&](int64_t slot) { l.first[slot] = kNoField; });
  }
  const int length = c.levels[0].in_length;
  for_each(c.levels[0].batch * length, [&](int64_t i) {
    const int64_t word = c.tokens.at(i / length, i % length);
    c.words[i] = static_cast<int32_t>(0 <= word && word < c.vocab ? word : c.vocab);
  });
}

__device__ inline uint64_t hash_of(const LayerContexts& l, int position) {
  uint64_t hash = 0;
  for (int tap = 0; tap < l.taps; ++tap) {
    hash = (hash ^ static_cast<uint32_t>(l.field_read(position, tap))) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  return hash;
}

__device__ inline bool same_field(const LayerContexts& l, int position, int other) {
  for (int tap = 0; tap < l.taps; ++tap)
    if (l.field_read(position, tap) != l.field_read(other, tap)) return false;
  return true;
}

// A slot that is taken keeps its field, so a stale position in it is as good as a new one. It is
// looked at before it is changed: few positions are the first of their field.
__device__ inline int64_t take_slot(const LayerContexts& l, int position) {
  const volatile int32_t* first = l.first;
  for (int64_t slot = hash_of(l, position);; ++slot) {
    slot &= l.slots - 1;
    int32_t there = first[slot];
    if (there == kNoField) there = atomicCAS(l.first + slot, kNoField, position);
    if (there == kNoField) return slot;
    if (!same_field(l, position, there)) continue;
    if (position < there) atomicMin(l.first + slot, position);
    return slot;
  }
}

__global__ void __launch_bounds__(kContextBlock)
    find_fields_kernel(const __grid_constant__ LayerContexts l) {
  for_each(l.positions(), [&](int64_t position) {
    l.fields[position] = static_cast<int32_t>(take_slot(l, static_cast<int>(position)));
  });
}

// The level and the chunk of its positions that a block has.
struct Chunk {
  const LayerContexts* level;
  int chunk;
};

int64_t chunks_of(const Contexts& c) {
  int64_t chunks = 0;
  for (int i = 0; i < c.count; ++i)
    if (c.levels[i].fields != nullptr) chunks += divide_up(c.levels[i].positions(), kContextChunk);
  return chunks;
}

__device__ inline Chunk chunk_of_block(const Contexts& c, int64_t block) {
  for (int i = 0;; ++i) {
    if (c.levels[i].fields == nullptr) continue;
    const int64_t chunks = divide_up(c.levels[i].positions(), kContextChunk);
    if (block < chunks) return {&c.levels[i], static_cast<int>(block)};
    block -= chunks;
  }
}

__device__ inline bool begins_row(const LayerContexts& l, int position) {
  return position < l.positions() && l.first[l.fields[position]] == position;
}

// The sum of what the threads before this one have; and of all. The whole block calls it, and
// `shared` has an int for each thread.
__device__ inline int sum_before(int value, int& all, int* shared) {
  const int thread = threadIdx.x;
  shared[thread] = value;
  for (int reach = 1; reach < kContextBlock; reach *= 2) {
    __syncthreads();
    const int before = thread >= reach ? shared[thread - reach] : 0;
    __syncthreads();
    shared[thread] += before;
  }
  __syncthreads();
  all = shared[kContextBlock - 1];
  const int sum = shared[thread] - value;
  __syncthreads();
  return sum;
}

__global__ void __launch_bounds__(kContextBlock)
    count_rows_kernel(const __grid_constant__ Contexts c, int64_t blocks) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const Chunk at = chunk_of_block(c, block);
    int count = 0, all;
    for (int i = 0; i < kEach; ++i)
      count += begins_row(*at.level, at.chunk * kContextChunk + i * kContextBlock + threadIdx.x);
    sum_before(count, all, shared);
    if (threadIdx.x == 0) at.level->chunk_rows[at.chunk] = all;
  }
}

__global__ void __launch_bounds__(kContextBlock)
    number_rows_kernel(const __grid_constant__ Contexts c, int64_t blocks) {
  int* shared = reinterpret_cast<int*>(shared_memory());
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const Chunk at = chunk_of_block(c, block);
    const LayerContexts& l = *at.level;
    int before = 0, row, all;
    for (int chunk = threadIdx.x; chunk < at.chunk; chunk += kContextBlock)
      before += l.chunk_rows[chunk];
    sum_before(before, row, shared);
    for (int i = 0; i < kEach; ++i) {
      const int position = at.chunk * kContextChunk + i * kContextBlock + threadIdx.x;
      const bool begins = begins_row(l, position);
      const int mine = row + sum_before(begins, all, shared);
      row += all;
      if (!begins) continue;
      l.rows[l.fields[position]] = mine;
      l.position_of[mine] = position;
    }
    const bool is_last = (at.chunk + 1) * static_cast<int64_t>(kContextChunk) >= l.positions();
    if (is_last && threadIdx.x == 0) *l.row_count = row;
  }
}

}  // namespace

cudaError_t number_contexts(const Contexts& c, cudaStream_t stream) {
  constexpr int kShared = kContextBlock * static_cast<int>(sizeof(int));
  const LayerContexts& first = c.levels[0];
  int64_t threads = first.batch * first.in_length + 1;  // without a word it counts, too
  for (int i = 0; i < c.count; ++i)
    if (c.levels[i].fields != nullptr && c.levels[i].slots > threads) threads = c.levels[i].slots;
  cudaError_t error =
      launch(&number_words_kernel, context_blocks(threads), kContextBlock, 0, stream, c);
  for (int i = 0; i < c.count && error == cudaSuccess; ++i) {
    const LayerContexts& l = c.levels[i];
    if (l.fields != nullptr)
      error =
          launch(&find_fields_kernel, context_blocks(l.positions()), kContextBlock, 0, stream, l);
  }
  const int64_t chunks = chunks_of(c);
  if (error == cudaSuccess)
    error = launch(&count_rows_kernel, chunks, kContextBlock, kShared, stream, c, chunks);
  if (error == cudaSuccess)
    error = launch(&number_rows_kernel, chunks, kContextBlock, kShared, stream, c, chunks);
  return error;
}

}  // namespace convlm::cuda
