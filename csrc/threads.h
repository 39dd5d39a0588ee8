// Threads that are guests of the process: they sleep when there is no work, and the caller never
// waits for one that the scheduler has not let run.
#pragma once

#include <cstdint>
#include <type_traits>

namespace crs {

using ChunkFunction = void (*)(void* context, int64_t chunk, int worker);
void parallel_for(int threads, int64_t chunks, ChunkFunction run, void* context);

// body(chunk, worker) for every chunk in [0, chunks), each once, on the calling thread (worker 0)
// and at most `threads` - 1 others; worker < threads. Chunks are handed out one by one, so small
// ones let a thread that comes late, or never, be made up for. The first exception is thrown again
// after all have stopped. With one thread, and when another call has the threads, the caller does
// all chunks in order.
template <typename Body>
void parallel_for(int64_t threads, int64_t chunks, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  parallel_for(
      static_cast<int>(threads), chunks,
      [](void* context, int64_t chunk, int worker) {
        (*static_cast<Plain*>(context))(chunk, worker);
      },
      const_cast<std::remove_const_t<Plain>*>(&body));
}

}  // namespace crs
