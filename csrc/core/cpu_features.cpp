#include "core/cpu_features.h"

#include <algorithm>
#include <cstdint>
#include <fstream>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace vlarft {

#if defined(__x86_64__)
namespace {

enum Register { kEax, kEbx, kEcx, kEdx };

struct Feature {
  const char* name;
  uint32_t leaf, subleaf;
  Register reg;
  int bit;
  uint64_t state;  // XCR0 bits that the operating system must have switched on
};

// Intel SDM volume 1, 13.1 (XCR0) and volume 2, CPUID; AMD APM volume 3, appendix E.
constexpr uint64_t kAvx = 0b110;           // SSE and AVX registers
constexpr uint64_t kAvx512 = 0b1110'0110;  // also opmask and both halves of the ZMM registers
constexpr uint64_t kAmx = 0b11ULL << 17;   // tile configuration and data
constexpr Feature kFeatures[] = {
    {"sse4_2", 1, 0, kEcx, 20, 0},           {"avx", 1, 0, kEcx, 28, kAvx},
    {"f16c", 1, 0, kEcx, 29, kAvx},          {"fma", 1, 0, kEcx, 12, kAvx},
    {"avx2", 7, 0, kEbx, 5, kAvx},           {"bmi2", 7, 0, kEbx, 8, 0},
    {"avx_vnni", 7, 1, kEax, 4, kAvx},       {"avx512f", 7, 0, kEbx, 16, kAvx512},
    {"avx512bw", 7, 0, kEbx, 30, kAvx512},   {"avx512dq", 7, 0, kEbx, 17, kAvx512},
    {"avx512vl", 7, 0, kEbx, 31, kAvx512},   {"avx512_vnni", 7, 0, kEcx, 11, kAvx512},
    {"avx512_bf16", 7, 1, kEax, 5, kAvx512}, {"avx512_fp16", 7, 0, kEdx, 23, kAvx512},
    {"amx_tile", 7, 0, kEdx, 24, kAmx},      {"amx_int8", 7, 0, kEdx, 25, kAmx},
    {"amx_bf16", 7, 0, kEdx, 22, kAmx},
};

uint64_t enabled_state() {
  uint32_t a, b, c, d;
  constexpr uint32_t kOsxsave = 1U << 27;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsxsave)) return 0;
  uint32_t low, high;
  // The instruction itself: the intrinsic would need -mxsave for this whole file.
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

}  // namespace

std::vector<std::string> cpu_features() {
  const uint64_t state = enabled_state();
  std::vector<std::string> names;
  for (const Feature& f : kFeatures) {
    uint32_t r[4] = {};
    if (!__get_cpuid_count(f.leaf, f.subleaf, &r[kEax], &r[kEbx], &r[kEcx], &r[kEdx])) continue;
    if (((r[f.reg] >> f.bit) & 1U) && (state & f.state) == f.state) names.emplace_back(f.name);
  }
  return names;
}
#else
std::vector<std::string> cpu_features() { return {}; }
#endif

int64_t last_level_cache() {
  // sysconf() may tell the sum of all caches of a socket; the kernel tells the one of this
  // processor.
  int64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) +
                       "/size");
    int64_t size = 0;
    char unit = 0;
    if (!(file >> size >> unit)) break;
    largest = std::max(largest, size << (unit == 'M' ? 20 : 10));
  }
  return largest;
}

}  // namespace vlarft
