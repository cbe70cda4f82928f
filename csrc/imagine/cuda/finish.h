// The end of a pass: tokens are drawn from its logits, rows are settled, the next pass is listed.
//
// No launch of its own where the last block to arrive can do it:
//   drawing     one logit row (kFusedRows): by the last block of the head's product.
//               more: by `sample_kernel`, a block a row
//   collecting  always: by the last block of whichever kernel draws
// A pass is then 5 kernels a layer and 2 (one row) or 3 beside, where it was 4.
//
// Why one row: only the last block knows that a row's logits are all there, and one block draws its
// rows one after the other. A row of 9,008 ids has about 8 sweeps, of some 20 instructions an id (a
// division, an exponential, places of 64 bits); a multiprocessor issues at most 4 a cycle for 32
// ids, so a row takes at least 8 x 9,008 x 20 / (4 x 32) = 11,260 cycles, 6 us at 1.8 GHz, where a
// launch is estimated at 2.5. So a second row already loses more than the launch saves, and 16 rows
// lose 15 times as much, while `sample_kernel` draws all rows at once. An estimate, not measured:
// `docs/gpu-todo.md`.
//
// Bytes: 4 an id and row written and then read about 8 times from L2, as before: top-p needs the
// largest logit before the first mass, and all masses before the first token. One row's are read by
// the block that wrote the last of them. Saved: launches (1 a pass, 2 with one row), nothing else.
//
// Same bits as drawing and collecting in kernels of their own: it is the same text.
#pragma once

#include "imagine/cuda/product.h"
#include "imagine/cuda/rows.h"
#include "imagine/cuda/sampler.h"

namespace vlarft::imagine::cuda {

inline constexpr int kFusedRows = 1;

static_assert(kSamplerThreads == kProductThreads && kSamplerThreads == kCollectThreads);

struct FinishPass {
  using Memory = SamplerMemory;

  SampleRows sample;
  Rows rows;
  int32_t* arrived;  // [1] blocks of this launch that have come so far
  int32_t blocks;    // of this launch

  // Behind the head's product: all of its blocks have rows to multiply, or none has.
  __device__ void operator()(Memory& memory) const {
    if (!last_block(arrived, blocks)) return;
    const int count = sample.pass.counts[1];
    for (int i = 0; i < count; ++i) sample_row(memory, sample, i);
    collect(rows, sample.pass);
  }
};

// A block a row. Blocks without one arrive too: collecting changes how many rows there are, which
// no block may read after that.
static __global__ void __launch_bounds__(kSamplerThreads, 1) sample_kernel(FinishPass f) {
  __shared__ SamplerMemory memory;
  if (block_x() < f.sample.pass.counts[1]) sample_row(memory, f.sample, block_x());
  if (last_block(f.arrived, f.blocks)) collect(f.rows, f.sample.pass);
}

}  // namespace vlarft::imagine::cuda
