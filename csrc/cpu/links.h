// Which rows of its input each row of a layer's result reads, and how many distinct rows there are.
#pragma once
#include <cstdint>
#include <vector>

#include "stack.h"

namespace convlm::cpu {

// Every position has a row of its own, as have those of the input. `samples` are linked: rows of
// further ones follow in the same way.
// Where the layer has room for the tiles of a filter it gets them.
void link_positions(const LayerTaps& taps, int64_t batch, int64_t samples, StackLayer& layer);

// How many numbers the tiles of a layer take; 0 where a filter does not pay.
int64_t filter_links_size(const LayerTaps& taps, const StackLayer& layer, int64_t samples);
// Room for them.
void take_filter_links(const LayerTaps& taps, int64_t samples, int32_t* room, StackFilter& filter);

// Links a stack over tokens (batch, length). A unit sees only its receptive field, and in a batch
// of padded words most of these repeat: with `share`, a layer has one row for each distinct field
// where that leaves at most half of them. Sharing ends with the first layer that has more, and
// before the last one, whose rows are the result. Returns how many samples go through the layers
// together: `group` where nothing is shared, else all.
int64_t link_tokens(const int64_t* tokens, int64_t batch, int64_t group, int64_t vocab,
                    const std::vector<LayerTaps>& taps, bool share, StackLayer* layers);

}  // namespace convlm::cpu
