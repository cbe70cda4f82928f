#define VLARFT_ISA portable
#include "imagine/cpu/elementwise.h"
#include "imagine/cpu/gemm.h"

namespace vlarft::imagine::portable {

extern const Kernels kTable;
const Kernels kTable = {"portable", kF32,          kBf16,  kBf16,   &rms_norm,
                        &swiglu,    &softmax_tile, &scale, &soften, &noisy};

}  // namespace vlarft::imagine::portable
