#define VLARFT_ISA avx512
#include "decode/cpu/operations.h"

namespace vlarft::decode::avx512 {

extern const Kernels kTable;
const Kernels kTable = {"avx512",     false,   &pack,    &multiply, &to_points,
                        &from_points, &finish, &moments, &absolute, &directions};

}  // namespace vlarft::decode::avx512
