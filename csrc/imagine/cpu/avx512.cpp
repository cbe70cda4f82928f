#define VLARFT_ISA avx512
#include "imagine/cpu/elementwise.h"
#include "imagine/cpu/gemm.h"

namespace vlarft::imagine::avx512 {

extern const Kernels kTable;
const Kernels kTable = {"avx512", kF32,          kBf16,  kBf16,   &rms_norm,
                        &swiglu,  &softmax_tile, &scale, &soften, &noisy};

}  // namespace vlarft::imagine::avx512
