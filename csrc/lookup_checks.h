// The checks of look-ups. A look-up is the convolution of one-hot vectors: in_channels of its
// geometry is the size of the vocabulary.
#pragma once
#include "checks.h"

namespace convlm {

class LookupChecks : public GeometryChecks {
 public:
  LookupChecks(const char* function, int64_t stride, int64_t pad_left, int64_t pad_right,
               int64_t dilation)
      : GeometryChecks(function, stride, pad_left, pad_right, dilation, 1) {}

  void tokens(const Tensor& tokens, const char* other_argument, const Tensor& other) {
    check_indices(function_, "tokens", tokens, "(batch, length)", other_argument, other);
    geometry_.batch = tokens.size(0);
    geometry_.length = tokens.size(1);
  }

  void target(const Tensor& target, const char* other_argument, const Tensor& other) const {
    check_indices(function_, "target", target, "(batch, out_length)", other_argument, other);
    STD_TORCH_CHECK(target.size(0) == geometry_.batch && target.size(1) == geometry_.out_length,
                    function_, ": target must have the shape (", geometry_.batch, ", ",
                    geometry_.out_length, "), got ", shape_of(target));
  }

  // Rows of tokens and of target that are named are the batch then, those of all steps together.
  void rows(const Tensor& rows, const Tensor& tokens, bool of_steps) {
    check_rows(function_, rows, tokens, of_steps);
    geometry_.batch = rows.numel();
  }

  // Returns kernel_size.
  int64_t embedding(const Tensor& embedding, const Tensor& weight) const {
    three_dimensional("weight", weight, "(out_channels, embedding_dim, kernel_size)");
    STD_TORCH_CHECK(embedding.dim() == 2, function_,
                    ": embedding must have the two dimensions (vocab, embedding_dim), got shape ",
                    shape_of(embedding));
    const int64_t embedding_dim = embedding.size(1);
    at_least("embedding_dim", embedding_dim, 1);
    if (weight.size(1) == embedding_dim) return weight.size(2);
    STD_TORCH_CHECK(weight.size(1) == 1 && weight.size(2) % embedding_dim == 0, function_,
                    ": weight must have the shape (out_channels, ", embedding_dim,
                    ", kernel_size) or (out_channels, 1, kernel_size * ", embedding_dim, "), got ",
                    shape_of(weight));
    return weight.size(2) / embedding_dim;
  }

  void floating(const char* argument, const Tensor& t) const {
    using Dtype = torch::headeronly::ScalarType;
    STD_TORCH_CHECK(t.scalar_type() == Dtype::Float || t.scalar_type() == Dtype::Double, function_,
                    ": ", argument, " must be float32 or float64, got ",
                    torch::headeronly::toString(t.scalar_type()));
  }

  void table_sizes(int64_t kernel_size, int64_t vocab, int64_t out_channels) {
    at_least("vocab", vocab, 1);
    channels(vocab, out_channels, kernel_size);
  }
};

inline Conv1dGeometry check_lookup(const Tensor& tokens, const Tensor& table, const Tensor* bias,
                                   int64_t stride, int64_t pad_left, int64_t pad_right,
                                   int64_t dilation) {
  LookupChecks checks("lookup", stride, pad_left, pad_right, dilation);
  checks.tokens(tokens, "table", table);
  checks.three_dimensional("table", table, "(kernel_size, vocab, out_channels)");
  checks.table_sizes(table.size(0), table.size(1), table.size(2));
  if (bias != nullptr) {
    checks.same_kind("bias", *bias, "table", table);
    checks.bias(*bias);
  }
  checks.outputs();
  return checks.geometry_;
}

inline Conv1dGeometry check_lookup_grad_table(const Tensor& grad_output, const Tensor& tokens,
                                              int64_t kernel_size, int64_t vocab, int64_t stride,
                                              int64_t pad_left, int64_t pad_right,
                                              int64_t dilation) {
  LookupChecks checks("lookup_grad_table", stride, pad_left, pad_right, dilation);
  checks.tokens(tokens, "grad_output", grad_output);
  checks.three_dimensional("grad_output", grad_output, "(batch, out_channels, out_length)");
  checks.table_sizes(kernel_size, vocab, grad_output.size(1));
  checks.outputs();
  checks.grad_output(grad_output);
  return checks.geometry_;
}

inline Conv1dGeometry check_cross_entropy(const char* function, const Tensor& tokens,
                                          const Tensor& target, const Tensor* rows,
                                          const Tensor& embedding, const Tensor& weight,
                                          const Tensor* bias, int64_t stride, int64_t pad_left,
                                          int64_t pad_right, int64_t dilation,
                                          bool of_steps = false) {
  LookupChecks checks(function, stride, pad_left, pad_right, dilation);
  checks.floating("weight", weight);
  checks.tokens(tokens, "weight", weight);
  checks.same_kind("embedding", embedding, "weight", weight);
  const int64_t kernel_size = checks.embedding(embedding, weight);
  checks.table_sizes(kernel_size, embedding.size(0), weight.size(0));
  if (bias != nullptr) {
    checks.same_kind("bias", *bias, "weight", weight);
    checks.bias(*bias);
  }
  checks.outputs();
  checks.target(target, "weight", weight);
  if (rows != nullptr) checks.rows(*rows, tokens, of_steps);
  return checks.geometry_;
}

}  // namespace convlm
