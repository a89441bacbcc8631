// The multiply-adds in registers that take as long as one element of what is read, hardly computed
// with, and written. Measured.
constexpr int64_t kMemoryOperation = 8;

// Work for all threads: body(begin, end) over pieces of [0, jobs), see parallel() in runtime.h.
template <class Body>
CONVLM_INLINE void parallel_jobs(int64_t jobs, int64_t multiply_adds_per_job, const Body& body) {
  parallel(
      jobs, multiply_adds_per_job,
      [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      &body);
}
