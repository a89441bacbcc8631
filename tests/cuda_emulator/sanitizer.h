// AddressSanitizer's interface, or nothing where that is not used.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
inline void poison(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
inline void leave_stack(void** keep, const void* next, size_t bytes) {
  __sanitizer_start_switch_fiber(keep, next, bytes);
}
inline void arrive_on_stack(void* kept, const void** last, size_t* bytes) {
  __sanitizer_finish_switch_fiber(kept, last, bytes);
}
#else
constexpr bool kSanitized = false;
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
inline void leave_stack(void**, const void*, size_t) {}
inline void arrive_on_stack(void*, const void**, size_t*) {}
#endif

}  // namespace emulator
