// Device twin of gumbel_fill in core/philox.h: same addresses, same numbers.
#pragma once

#include <cstdint>

namespace vlarft::cuda {

// out[r, id] = Gumbel noise of token `id` at addresses[r], queued on `stream` (a cudaStream_t) of
// `device`. Throws BackendError with CUDA's words when the launch is refused.
void gumbel_fill(const uint32_t* addresses /*[rows,3]*/, float* out /*[rows,ids]*/, int64_t rows,
                 int64_t ids, uint64_t seed, int device, uintptr_t stream);

}  // namespace vlarft::cuda
