// What this machine can do at best, measured: the roof under which every other time is read.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vlarft {

// Seconds that `threads` threads take to read `bytes` bytes once, each its own contiguous part.
// `data` should be several times larger than the last cache level and have been written before.
double read_seconds(const uint8_t* data, size_t bytes, int threads);

enum class Multiply { kFloat32, kBfloat16 };

// Multiply-adds from registers only: operations a second (a multiply-add counts two) of `threads`
// threads together, over about `seconds` seconds. kBfloat16 is the dot product instruction of
// AVX512-BF16 with float32 sums; 0 where the processor has none. On other processors than x86-64,
// kFloat32 is what the compiler makes of a plain loop.
double multiply_rate(Multiply kind, int threads, double seconds);

}  // namespace vlarft
