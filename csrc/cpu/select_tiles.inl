// Which problems of bfloat16 go by tiles, and their functions; the others are left to vectors.

// Vectors do so many multiply-adds while tiles do one more that they need not: measured.
constexpr int64_t kTileGain = 8;

// The batch has no say: it must not show in the bits.
template <class Problem>
bool tiles_pay(const Problem& p, int64_t rows, int64_t columns, int64_t depth) {
  constexpr int64_t kFewest = 4096;
  const int64_t products = p.rows * p.channels * p.outputs;
  return products * p.taps >= kFewest && rows * columns * depth <= kTileGain * products;
}
inline bool tiles_pay(const Correlation<bfloat16>& p) {
  return tiles_pay(p, in_tiles(p.rows, kTileRows), in_tiles(p.outputs, kTileColumns),
                   in_tiles(p.channels, kTileDepth));
}
inline bool tiles_pay(const WeightGradient<bfloat16>& p) {
  return p.batch > 0 &&
         tiles_pay(p, in_tiles(p.rows, kTileRows), in_tiles(p.channels, kTileColumns),
                   in_tiles(p.outputs, kTileDepth));
}
inline bool tiles_pay(const GradInputArguments& a) {
  bool any = false, pay = true;
  for_each_class<bfloat16>(a, false, [&](const Correlation<bfloat16>& p) {
    any = any || p.taps > 0;
    pay = p.taps == 0 || tiles_pay(p);
    return pay;
  });
  return any && pay;
}

// Two products of pairs take as long as four of floats where there are tiles; they save memory.
template <class Arguments>
const Kernels& vectors_for(const Arguments& a, Kernel (*Kernels::*kernel_of)(const Arguments&)) {
  const bool by_pairs = a.dtype == ScalarType::bfloat16 && a.geometry.batch > 0 &&
                        (avx512_bf16_kernels.*kernel_of)(a) == Kernel::depthwise;
  return by_pairs ? avx512_bf16_kernels : avx512_kernels;
}

inline bool forward_by_tiles(const ForwardArguments& a) {
  return a.dtype == ScalarType::bfloat16 && tiles_pay(forward_problem<bfloat16>(a));
}
inline bool grad_input_by_tiles(const GradInputArguments& a) {
  return a.dtype == ScalarType::bfloat16 && a.geometry.length > 0 && tiles_pay(a);
}
inline bool grad_weight_by_tiles(const GradWeightArguments& a) {
  return a.dtype == ScalarType::bfloat16 && tiles_pay(weight_gradient_problem<bfloat16>(a));
}

void forward(const ForwardArguments& a) {
  if (!forward_by_tiles(a)) return vectors_for(a, &Kernels::forward_kernel).forward(a);
  const Correlation<bfloat16> p = forward_problem<bfloat16>(a);
  if (p.batch > 0) correlate_tiles(&p, 1);
}
Kernel forward_kernel(const ForwardArguments& a) {
  return forward_by_tiles(a) ? Kernel::tiles
                             : vectors_for(a, &Kernels::forward_kernel).forward_kernel(a);
}

void grad_input(const GradInputArguments& a) {
  if (!grad_input_by_tiles(a)) return vectors_for(a, &Kernels::grad_input_kernel).grad_input(a);
  Correlation<bfloat16>* parts = static_cast<Correlation<bfloat16>*>(scratch(
      Slot::parts, sizeof(Correlation<bfloat16>) * smaller(a.geometry.stride, a.geometry.length)));
  int64_t count = 0;
  for_each_class<bfloat16>(a, false, [&](const Correlation<bfloat16>& p) {
    parts[count++] = p;
    return true;
  });
  if (a.geometry.batch > 0) correlate_tiles(parts, count);
}
Kernel grad_input_kernel(const GradInputArguments& a) {
  return grad_input_by_tiles(a) ? Kernel::tiles
                                : vectors_for(a, &Kernels::grad_input_kernel).grad_input_kernel(a);
}

void grad_weight(const GradWeightArguments& a) {
  if (!grad_weight_by_tiles(a)) return vectors_for(a, &Kernels::grad_weight_kernel).grad_weight(a);
  grad_weight_tiles(weight_gradient_problem<bfloat16>(a));
}
Kernel grad_weight_kernel(const GradWeightArguments& a) {
  return grad_weight_by_tiles(a)
             ? Kernel::tiles
             : vectors_for(a, &Kernels::grad_weight_kernel).grad_weight_kernel(a);
}

void gradients(const GradientsArguments& a) {
  if (grad_input_by_tiles(a.input) || grad_weight_by_tiles(a.weight)) {
    grad_input(a.input);
    grad_weight(a.weight);
    return;
  }
  vectors_for(a.input, &Kernels::grad_input_kernel).gradients(a);
}
