// Rates are of the right size and their arguments mean what they say; how fast is not tested.
#include "core/rates.h"

#include <vector>

#include "core/tests/check.h"

int main() {
  const std::vector<uint8_t> data(8 << 20, 1);
  for (const int threads : {1, 2, 3}) {
    // Nothing reads a byte in less than a picosecond, or 8 MiB in more than ten seconds.
    const double seconds = vlarft::read_seconds(data.data(), data.size(), threads);
    CHECK(seconds > 8e-6 && seconds < 10);
    const double rate = vlarft::multiply_rate(vlarft::Multiply::kFloat32, threads, 0.01);
    CHECK(rate > 1e7 && rate < 1e13);
    const double dots = vlarft::multiply_rate(vlarft::Multiply::kBfloat16, threads, 0.01);
    CHECK(dots == 0 || (dots > 1e7 && dots < 1e14));
  }
  CHECK(vlarft::read_seconds(data.data(), 0, 2) < 10);
  return 0;
}
