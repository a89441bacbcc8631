// Which positions of a stack over tokens see the same of them, and so have one row of a layer's
// result: numbered on the device, whose counts the host never sees.
#pragma once
#include <cstdint>

#include "cuda/indices.h"
#include "cuda/launch.h"
#include "cuda/problem.h"
#include "cuda/stack_fits.h"

namespace convlm::cuda {

constexpr int kContextBlock = 256;                // threads
constexpr int kContextChunk = 4 * kContextBlock;  // positions whose rows are counted together
constexpr int64_t kMostContextBlocks = 2048;
constexpr int kMostLevels = kMostLayers + 1;
constexpr int kNoField = -1;  // padding, and a slot that is free

inline int64_t context_blocks(int64_t threads) {
  const int64_t blocks = divide_up(threads, kContextBlock);
  return blocks < kMostContextBlocks ? blocks : kMostContextBlocks;
}

// Calls body(i) for i from 0 to count - 1, by all threads of a grid of such blocks.
template <class Body>
__device__ void for_each(int64_t count, const Body& body) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kContextBlock + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kContextBlock)
    body(i);
}

// A field is what the taps of a position read: a word each in the first layer, a field of the layer
// before in the others. It is known by its slot in a hash table. Which one that is depends on who
// comes first; but not who shares it, and rows are numbered by the first positions of fields.
// The positions of the result are a level of their own above the layers: each reads one row.
struct LayerContexts {
  int64_t batch;
  int taps, dilation, pad, in_length, out_length;
  const int32_t* in_fields;  // [batch][in_length]
  const int32_t* in_rows;    // [field]; null: a word is its own row
  int64_t* row_count;
  int64_t most_rows;  // as far as the host knows
  int together;       // readers in succession: the first of a row reads it for the others
  // Null where every position is a row:
  int32_t* fields;       // [batch][out_length]
  int32_t* first;        // [field]: its first position, or kNoField
  int32_t* rows;         // [field]
  int32_t* position_of;  // [row]
  int32_t* chunk_rows;   // [chunk of positions]: rows that begin there
  int64_t slots;         // a power of two

  CONVLM_HOST_DEVICE int64_t positions() const { return batch * out_length; }

  // What `tap` reads at a position.
  __device__ int32_t field_read(int position, int tap) const {
    const int sample = position / out_length, out = position % out_length;
    const int at = out + tap * dilation - pad;
    return 0 <= at && at < in_length ? in_fields[sample * in_length + at] : kNoField;
  }
  // The row of the input that `tap` of a row reads, or kNoField.
  __device__ int32_t row_read(int row, int tap) const {
    const int32_t field = field_read(position_of == nullptr ? row : position_of[row], tap);
    return in_rows == nullptr || field == kNoField ? field : in_rows[field];
  }
  // A reader is row * taps + tap.
  __device__ int32_t row_of_reader(int reader) const {
    return row_read(reader / taps, reader % taps);
  }
  __device__ bool reads_first(int reader, int32_t row) const {
    for (int other = reader / together * together; other < reader; ++other)
      if (row_of_reader(other) == row) return false;
    return true;
  }
};

struct Contexts {
  LayerContexts levels[kMostLevels];
  int count;
  Indices tokens;
  int64_t vocab;   // the number of what is no word
  int32_t* words;  // [batch][length]
};

cudaError_t number_contexts(const Contexts& contexts, cudaStream_t stream);

// Who of the next level reads each row, in ascending order.
struct Readers {
  int32_t *count, *begin;    // [row]: where its readers lie
  int32_t *found, *readers;  // [reader]: as they came, and in order
  int32_t* used;
};

// Of all layers.
struct StackReaders {
  Readers layers[kMostLayers];
};

cudaError_t list_readers(const Contexts& contexts, const StackReaders& readers,
                         cudaStream_t stream);

}  // namespace convlm::cuda
