// What the cores multiply, by the storage type of the tensors: elements of the compute type, unless
// the instruction set has something better (pairs.inl).

template <class S>
struct OperandOf {
  using type = Compute<S>;
};
template <class S>
using Operand = typename OperandOf<S>::type;

// How many elements of the reduction one operand holds.
template <class T>
constexpr int kDepth = 1;

// What the products of an operand are added up in, and what a finished sum may be stored as.
template <class T>
struct SumOf {
  using type = T;
};
template <class T>
using Sum = typename SumOf<T>::type;
template <class T>
struct StoredOf {
  using type = T;
};
template <class T>
using Stored = typename StoredOf<T>::type;

// What a row is read as where an operand's elements are neighbours in it, and where a row is read
// as operands, how far the next one is.
template <class S>
struct ElementOf {
  using type = S;
};
template <class S>
using Element = typename ElementOf<S>::type;
template <class In>
constexpr int kSpacing = 1;

// The sum and the product, lane by lane.
template <class T>
CONVLM_INLINE Vector<T> multiply_add(Vector<T> sum, T scalar, Vector<T> v) {
  return sum + scalar * v;
}
CONVLM_INLINE Vector<float> multiply_add(Vector<float> sum, Vector<float> a, Vector<float> b) {
  return sum + a * b;
}
CONVLM_INLINE Vector<double> multiply_add(Vector<double> sum, Vector<double> a, Vector<double> b) {
  return sum + a * b;
}
CONVLM_INLINE Vector<float> add(Vector<float> sum, Vector<float> v) { return sum + v; }
CONVLM_INLINE Vector<double> add(Vector<double> sum, Vector<double> v) { return sum + v; }
