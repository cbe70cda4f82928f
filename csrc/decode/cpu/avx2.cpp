#define VLARFT_ISA avx2
#include "decode/cpu/operations.h"

namespace vlarft::decode::avx2 {

extern const Kernels kTable;
const Kernels kTable = {"avx2",       false,   &pack,    &multiply, &to_points,
                        &from_points, &finish, &moments, &absolute, &directions};

}  // namespace vlarft::decode::avx2
