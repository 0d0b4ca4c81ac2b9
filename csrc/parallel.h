// Parallel loops. Work is cut into chunks whose number does not depend on the number of
// threads, so that results do not either.
#pragma once
#include <cstdint>

namespace tb {

using ChunkFunction = void (*)(void* context, std::int64_t chunk, int thread);

// Runs fn(context, c, t) once for every chunk c in [0, chunks), on up to `threads` threads (the
// calling one is thread 0). Returns when all are done; rethrows the first exception of a chunk.
void parallel_for_raw(std::int64_t chunks, int threads, ChunkFunction fn, void* context);

template <class Body>
void parallel_for(std::int64_t chunks, int threads, Body& body) {
    parallel_for_raw(
        chunks, threads,
        [](void* context, std::int64_t chunk, int thread) {
            (*static_cast<Body*>(context))(chunk, thread);
        },
        &body);
}

}  // namespace tb
