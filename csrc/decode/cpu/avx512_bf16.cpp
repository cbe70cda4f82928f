#define VLARFT_ISA avx512_bf16
#include "decode/cpu/operations.h"

namespace vlarft::decode::avx512_bf16 {

extern const Kernels kTable;
const Kernels kTable = {"avx512_bf16", true,    &pack,    &multiply, &to_points,
                        &from_points,  &finish, &moments, &absolute, &directions};

}  // namespace vlarft::decode::avx512_bf16
