// Hands out pieces of one allocation, whose sizes change from call to call: they hold nothing but
// numbers to multiply, see scratch(). Laid out twice: the first time only to learn the size.
struct Arena {
  char* data;
  int64_t size = 0;

  template <class T>
  T* take(int64_t count) {
    static_assert(std::is_floating_point_v<T>);
    T* piece = data == nullptr ? nullptr : reinterpret_cast<T*>(data + size);
    size += divide_up(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
    return piece;
  }
};

template <class Layout>
CONVLM_INLINE void lay_out(Slot slot, Layout&& layout) {
  Arena counted{nullptr};
  layout(counted);
  Arena real{static_cast<char*>(scratch(slot, counted.size))};
  layout(real);
}
