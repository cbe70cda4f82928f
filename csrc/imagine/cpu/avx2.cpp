#define VLARFT_ISA avx2
#include "imagine/cpu/gemm.h"
// After gemm.h, whose products it tabulates.
#include "imagine/cpu/elementwise.h"

namespace vlarft::imagine::avx2 {

extern const Kernels kTable;
const Kernels kTable = {"avx2", kF32,          kBf16,  kBf16,   &rms_norm,
                        &swiglu,    &softmax_tile, &scale, &soften, &noisy};

}  // namespace vlarft::imagine::avx2
