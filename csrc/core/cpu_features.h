// What this processor and its operating system let a program use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vlarft {

// Names as in /proc/cpuinfo ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", ...), in the
// order of the table in cpu_features.cpp. Empty on a processor that is not x86-64.
std::vector<std::string> cpu_features();

// Bytes of the largest cache of a processor; 0 where the system does not say.
int64_t last_level_cache();

}  // namespace vlarft
