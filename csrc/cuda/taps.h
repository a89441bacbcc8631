// The taps of every class of positions in ascending order of what they read, found once on the
// host.
#pragma once
#include "cuda/fits.h"
#include "cuda/problem.h"

namespace convlm::cuda {

// Of one class: output q reads position begin + q * Correlation::step + in of the input first, with
// tap `weight` of the weight.
struct ClassTaps {
  int count, weight, in;
};

struct Taps {
  ClassTaps classes[kMostClasses];
  int weight_step, in_step;  // from tap to tap
  int64_t begin;
  int reach;  // last position that output 0 of any class reads - begin

  // Positions that outputs 0 to count - 1 of all classes read.
  int window(int64_t count, int64_t step) const {
    return static_cast<int>((count - 1) * step + reach + 1);
  }
};

template <class S>
Taps taps_of(const Correlation<S>& p) {
  Taps taps{};
  taps.in_step = 1;
  int64_t low[kMostClasses], begin = 0, end = 0;
  bool any = false;
  for (int i = 0; i < static_cast<int>(p.classes); ++i) {
    const PositionClass c = position_class(p, i);
    if (c.taps == 0) continue;
    const bool down = c.offset_step < 0;
    const int64_t last = c.offset + (c.taps - 1) * c.offset_step;
    low[i] = down ? last : c.offset;
    const int64_t high = down ? c.offset : last;
    begin = any && begin < low[i] ? begin : low[i];
    end = any && end > high ? end : high;
    any = true;
    taps.classes[i].count = static_cast<int>(c.taps);
    taps.classes[i].weight = static_cast<int>(down ? c.first + (c.taps - 1) * c.step : c.first);
    taps.weight_step = static_cast<int>(down ? -c.step : c.step);
    taps.in_step = static_cast<int>(down ? -c.offset_step : c.offset_step);
  }
  for (int i = 0; i < static_cast<int>(p.classes); ++i)
    if (taps.classes[i].count > 0) taps.classes[i].in = static_cast<int>(low[i] - begin);
  taps.begin = begin;
  taps.reach = static_cast<int>(end - begin);
  return taps;
}

}  // namespace convlm::cuda
