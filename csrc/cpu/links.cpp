#include "cpu/links.h"

#include <algorithm>

#include "cpu/runtime.h"
#include "geometry.h"

namespace convlm::cpu {
namespace {

// Of a pair that has no number yet.
constexpr int32_t kFree = -1;

// Numbers of distinct pairs of small numbers.
class PairNumbers {
 public:
  PairNumbers() { grow(1 << 10); }

  // Where the number of a pair stands: whoever finds it free gives it one.
  int32_t& place(int32_t a, int32_t b) {
    const uint64_t key =
        static_cast<uint64_t>(static_cast<uint32_t>(a)) << 32 | static_cast<uint32_t>(b);
    if (Entry& entry = find(key); entry.number != kFree) return entry.number;
    if (2 * static_cast<size_t>(++count_) > entries_.size()) grow(2 * entries_.size());
    Entry& entry = find(key);
    entry.key = key;
    return entry.number;
  }

  // In the order in which they first come.
  int32_t number(int32_t a, int32_t b) {
    int32_t& number = place(a, b);
    if (number == kFree) number = count_ - 1;
    return number;
  }

 private:
  struct Entry {
    uint64_t key;
    int32_t number;
  };

  Entry& find(uint64_t key) {
    const size_t mask = entries_.size() - 1;
    size_t slot = (key * 0x9e3779b97f4a7c15u) >> shift_;
    while (entries_[slot].number != kFree && entries_[slot].key != key) slot = (slot + 1) & mask;
    return entries_[slot];
  }

  void grow(size_t size) {
    std::vector<Entry> old(size, Entry{0, kFree});
    old.swap(entries_);
    shift_ = 64 - __builtin_ctzll(size);
    for (const Entry& entry : old)
      if (entry.number != kFree) find(entry.key) = entry;
  }

  std::vector<Entry> entries_;
  int shift_ = 0;
  int32_t count_ = 0;
};

// The same for numbers in [-1, below), where a place for each pair costs no more to clear than the
// pairs cost to look up.
class SmallPairNumbers {
 public:
  explicit SmallPairNumbers(int64_t below) : width_(below + 1) {
    const int64_t count = width_ * width_;
    numbers_ = static_cast<int32_t*>(scratch(Slot::pairs, sizeof(int32_t) * count));
    std::fill_n(numbers_, count, kFree);
  }

  static bool fit(int64_t below, int64_t pairs) {
    constexpr int64_t kInCache = 32 * 1024;
    const int64_t places = (below + 1) * (below + 1);
    return places <= (places <= kInCache ? 32 : 4) * pairs;
  }

  int32_t& place(int32_t a, int32_t b) { return numbers_[(a + 1) * width_ + b + 1]; }

 private:
  int64_t width_;
  int32_t* numbers_;
};

// The rows of one layer: which one each position has.
struct Rows {
  int32_t* of_position;  // [batch][length]
  int64_t count;
};

// What the taps of a layer read of one sample.
struct Reader {
  const int32_t* rows;
  uint64_t length;

  // One look at both ends: what lies before the first position is past every last one.
  int32_t operator[](int64_t position) const {
    const uint64_t at = static_cast<uint64_t>(position);
    return at < length ? rows[at] : StackLayer::kNone;
  }
};

// Gives every distinct field its number, in the order in which they first come, and its links; its
// number stands at place_of(reader, what the first tap reads). False once there are more than
// `most`.
template <class PlaceOf>
bool number_all(const LayerTaps& taps, int64_t batch, const Rows& in, int64_t most, Rows& out,
                StackLayer& layer, const PlaceOf& place_of) {
  int32_t* links = const_cast<int32_t*>(layer.links);
  int32_t* numbers = out.of_position;
  int32_t count = 0;
  for (int64_t n = 0; n < batch; ++n, numbers += taps.out_length) {
    const Reader read{in.of_position + n * taps.in_length, static_cast<uint64_t>(taps.in_length)};
    for (int64_t t = 0; t < taps.out_length; ++t) {
      const int64_t first = t - taps.pad_left;
      int32_t& number = place_of(read, first);
      if (number == kFree) {
        if (count == most) return false;
        for (int64_t k = 0; k < taps.kernel_size; ++k)
          links[k * layer.link_pitch + count] = read[first + k * taps.dilation];
        number = count++;
      }
      numbers[t] = number;
    }
  }
  out.count = count;
  return true;
}

// A field is every combination of the rows that the taps read.
bool number_fields(const LayerTaps& taps, int64_t batch, const Rows& in, int64_t most, Rows& out,
                   StackLayer& layer) {
  const int64_t d = taps.dilation, last = taps.kernel_size - 1;
  if (taps.kernel_size == 2 && SmallPairNumbers::fit(in.count, batch * taps.out_length)) {
    SmallPairNumbers pairs(in.count);
    return number_all(taps, batch, in, most, out, layer,
                      [&](const Reader& read, int64_t first) -> int32_t& {
                        return pairs.place(read[first], read[first + d]);
                      });
  }
  std::vector<PairNumbers> pairs(std::max<int64_t>(1, last));
  return number_all(taps, batch, in, most, out, layer,
                    [&](const Reader& read, int64_t first) -> int32_t& {
                      int32_t field = read[first];
                      if (last == 0) return pairs[0].place(field, StackLayer::kNone);
                      for (int64_t k = 1; k < last; ++k)
                        field = pairs[k - 1].number(field, read[first + k * d]);
                      return pairs[last - 1].place(field, read[first + last * d]);
                    });
}

// Every position has a row of its own.
void link_all(const LayerTaps& taps, int64_t batch, const Rows& in, StackLayer& layer) {
  for (int64_t k = 0; k < taps.kernel_size; ++k) {
    int32_t* links = const_cast<int32_t*>(layer.links) + k * layer.link_pitch;
    const int64_t start = input_position(0, k, 1, taps.dilation, taps.pad_left);
    const int64_t first = std::clamp<int64_t>(-start, 0, taps.out_length);
    const int64_t last = std::clamp<int64_t>(taps.in_length - start, first, taps.out_length);
    const int32_t* rows = in.of_position;
    for (int64_t n = 0; n < batch; ++n, rows += taps.in_length) {
      links = std::fill_n(links, first, StackLayer::kNone);
      if (first < last) links = std::copy(rows + start + first, rows + start + last, links);
      links = std::fill_n(links, taps.out_length - last, StackLayer::kNone);
    }
  }
}

int64_t most_positions(const std::vector<LayerTaps>& taps) {
  int64_t most = 0;
  for (const LayerTaps& layer : taps) most = std::max({most, layer.in_length, layer.out_length});
  return most;
}

constexpr int64_t kFilteredTaps = 2;

// Tiles of one sample: the last ones may make one row instead of two.
int64_t filter_tiles(const LayerTaps& taps) {
  const int64_t block = StackFilter::kOutputs * taps.dilation;
  return taps.out_length / block * taps.dilation + std::min(taps.dilation, taps.out_length % block);
}

// By what a sample takes: how many there are must not show in the bits of one.
bool filter_pays(const LayerTaps& taps, const StackLayer& layer) {
  if (taps.kernel_size != kFilteredTaps) return false;
  // Multiply-adds that it costs for each channel of a tile to add rows before and after products.
  constexpr int64_t kAdditions = 20;
  int64_t direct = 0;  // products of rows
  for (int64_t k = 0; k < taps.kernel_size; ++k) {
    const int64_t first = input_position(0, k, 1, taps.dilation, taps.pad_left);
    direct += std::max<int64_t>(
        0, std::min(taps.in_length, first + taps.out_length) - std::max<int64_t>(0, first));
  }
  const int64_t saved = direct - StackFilter::kComponents * filter_tiles(taps);
  return saved * layer.in_channels * layer.columns >
         kAdditions * filter_tiles(taps) * (layer.in_channels + layer.columns);
}

void link_tiles(const LayerTaps& taps, int64_t batch, int64_t samples, StackLayer& layer) {
  StackFilter& filter = layer.filter;
  const int64_t d = taps.dilation, tiles = filter_tiles(taps);
  filter.tiles = batch * tiles;
  filter.pitch = samples * tiles;
  int32_t* inputs = const_cast<int32_t*>(filter.inputs);
  int32_t* outputs = const_cast<int32_t*>(filter.outputs);
  int32_t* readers = const_cast<int32_t*>(filter.readers);
  int32_t* components = const_cast<int32_t*>(filter.components);
  std::fill(inputs, inputs + StackFilter::kInputs * filter.pitch, StackLayer::kNone);
  std::fill(outputs, outputs + StackFilter::kOutputs * filter.pitch, StackLayer::kNone);
  std::fill(readers, readers + StackFilter::kInputs * layer.reader_pitch, StackLayer::kNone);
  int32_t tile = 0;
  for (int64_t n = 0; n < samples; ++n)
    for (int64_t block = 0; block < taps.out_length; block += StackFilter::kOutputs * d)
      for (int64_t first = block; first < std::min(block + d, taps.out_length); ++first, ++tile) {
        int64_t made = 0;
        for (int64_t t = first; made < StackFilter::kOutputs && t < taps.out_length; t += d) {
          const int64_t row = n * taps.out_length + t;
          outputs[made * filter.pitch + tile] = static_cast<int32_t>(row);
          for (int64_t k = 0; k < kFilteredTaps; ++k)
            components[k * layer.link_pitch + row] =
                static_cast<int32_t>((made + k) * filter.pitch + tile);
          ++made;
        }
        for (int64_t j = 0; j <= made; ++j) {
          const int64_t position = input_position(first, j, 1, d, taps.pad_left);
          if (position < 0 || position >= taps.in_length) continue;
          const int64_t row = n * taps.in_length + position;
          inputs[j * filter.pitch + tile] = static_cast<int32_t>(row);
          readers[j * layer.reader_pitch + row] = tile;
        }
      }
}

}  // namespace

int64_t filter_links_size(const LayerTaps& taps, const StackLayer& layer, int64_t samples) {
  const bool fits = StackFilter::kComponents * samples * filter_tiles(taps) <= INT32_MAX;
  if (!fits || !filter_pays(taps, layer)) return 0;
  return samples * ((StackFilter::kInputs + StackFilter::kOutputs) * filter_tiles(taps) +
                    StackFilter::kInputs * taps.in_length + kFilteredTaps * taps.out_length);
}

void take_filter_links(const LayerTaps& taps, int64_t samples, int32_t* room, StackFilter& filter) {
  const int64_t tiles = samples * filter_tiles(taps);
  filter.inputs = room;
  filter.outputs = filter.inputs + StackFilter::kInputs * tiles;
  filter.readers = filter.outputs + StackFilter::kOutputs * tiles;
  filter.components = filter.readers + StackFilter::kInputs * samples * taps.in_length;
}

void link_positions(const LayerTaps& taps, int64_t batch, int64_t samples, StackLayer& layer) {
  int32_t* links = const_cast<int32_t*>(layer.links);
  int32_t* readers = const_cast<int32_t*>(layer.readers);
  layer.in_rows = batch * taps.in_length;
  layer.out_rows = batch * taps.out_length;
  layer.link_pitch = samples * taps.out_length;
  layer.reader_pitch = samples * taps.in_length;
  std::fill(readers, readers + taps.kernel_size * layer.reader_pitch, StackLayer::kNone);
  for (int64_t k = 0; k < taps.kernel_size; ++k)
    for (int64_t n = 0; n < samples; ++n)
      for (int64_t t = 0; t < taps.out_length; ++t) {
        const int64_t out = n * taps.out_length + t;
        const int64_t position = input_position(t, k, 1, taps.dilation, taps.pad_left);
        const bool exists = 0 <= position && position < taps.in_length;
        const int64_t in = n * taps.in_length + position;
        links[k * layer.link_pitch + out] = exists ? static_cast<int32_t>(in) : StackLayer::kNone;
        if (exists) readers[k * layer.reader_pitch + in] = static_cast<int32_t>(out);
      }
  if (layer.filter.inputs != nullptr) link_tiles(taps, batch, samples, layer);
}

int64_t link_tokens(const int64_t* tokens, int64_t batch, int64_t group, int64_t vocab,
                    const std::vector<LayerTaps>& taps, bool share, StackLayer* layers) {
  const int64_t positions = batch * most_positions(taps);
  int32_t* numbers = static_cast<int32_t*>(scratch(Slot::numbers, sizeof(int32_t) * 2 * positions));
  std::copy_n(tokens, batch * taps[0].in_length, numbers);
  Rows in{numbers, vocab};
  size_t i = 0;
  for (bool shared = true; shared && i < taps.size(); ++i) {
    StackLayer& layer = layers[i];
    const int64_t out_rows = batch * taps[i].out_length;
    layer.in_rows = in.count;
    layer.link_pitch = out_rows;
    layer.readers = nullptr;
    Rows out{numbers + (i % 2 == 0 ? positions : 0), out_rows};
    shared =
        share && i + 1 < taps.size() && number_fields(taps[i], batch, in, out_rows / 2, out, layer);
    if (!shared) link_all(taps[i], batch, in, layer);
    layer.out_rows = out.count;
    in = out;
  }
  const int64_t together = i == 1 ? group : batch;  // the first layer is the first not to share
  for (; i < taps.size(); ++i) link_positions(taps[i], batch, together, layers[i]);
  return together;
}

}  // namespace convlm::cpu
