#include "core/cpu_features.h"

#include <algorithm>
#include <string>
#include <vector>

#include "check.h"

int main() {
  const std::vector<std::string> names = vlarft::cpu_features();
  const auto has = [&](const char* name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  // The compiler's own detection, for the names that it knows, must agree.
#if defined(__x86_64__)
  CHECK(has("avx2") == (__builtin_cpu_supports("avx2") != 0));
  CHECK(has("fma") == (__builtin_cpu_supports("fma") != 0));
  CHECK(has("avx512f") == (__builtin_cpu_supports("avx512f") != 0));
  CHECK(has("avx512_bf16") == (__builtin_cpu_supports("avx512bf16") != 0));
#endif
  if (has("avx512_bf16")) CHECK(has("avx512f"));
  if (has("avx2")) CHECK(has("avx"));
  const int64_t cache = vlarft::last_level_cache();
  CHECK(cache == 0 || (cache >= int64_t{1} << 16 && cache <= int64_t{1} << 32));
}
