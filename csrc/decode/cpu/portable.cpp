#define VLARFT_ISA portable
#include "decode/cpu/operations.h"

namespace vlarft::decode::portable {

extern const Kernels kTable;
const Kernels kTable = {"portable",   false,   &pack,    &multiply, &to_points,
                        &from_points, &finish, &moments, &absolute, &directions};

}  // namespace vlarft::decode::portable
