// What becomes of the thread pool in a forked child.
//
// A child has one thread, a copy of the one that called fork; the workers of that thread's OpenMP pool stay behind in
// the parent. GNU's run-time library does not notice: the child's first parallel region waits for them for ever, in
// PyTorch's own operators as in ours. So the pool ends before each fork, as OpenBLAS's does. The next parallel region
// starts another one, in the parent as in the child, which costs some 100 us.
#pragma once

#if defined(_OPENMP) && (defined(__unix__) || defined(__APPLE__))
#include <omp.h>
#include <pthread.h>

// Of OpenMP 5.0: gives back what the run-time library holds, the calling thread's pool above all. A weak symbol, since
// the library is torch's and may be older than that.
#pragma weak omp_pause_resource_all
#endif

namespace conv_ext {

// Whether this process is the child of one whose pool could not be ended: it computes on its one thread.
inline bool pool_left_behind = false;

inline void end_the_pool_before_a_fork() {
#if defined(_OPENMP) && (defined(__unix__) || defined(__APPLE__))
  static thread_local bool ended = true;  // several threads may fork at once
  const auto end = [] { ended = omp_pause_resource_all != nullptr && omp_pause_resource_all(omp_pause_soft) == 0; };
  const auto in_child = [] { pool_left_behind = pool_left_behind || !ended; };
  pthread_atfork(end, nullptr, in_child);
#endif
}

}  // namespace conv_ext
