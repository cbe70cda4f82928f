#include "core/float8.h"

#include <cmath>
#include <limits>

#include "check.h"

using vlarft::Float8;
using vlarft::from_float8;
using vlarft::to_float8;

namespace {

Float8 code(int bits) { return {static_cast<uint8_t>(bits)}; }

// By the definition: 2^(e - 7) (1 + m / 8), or m 2^-9 where e is 0.
double value_of(int bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  const double size =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return (bits & 0x80) != 0 ? -size : size;
}

void check_codes() {
  for (int bits = 0; bits < 256; ++bits) {
    const float value = from_float8(code(bits));
    if ((bits & 0x7F) == 0x7F) {
      CHECK(std::isnan(value));
      continue;
    }
    CHECK(static_cast<double>(value) == value_of(bits));
    CHECK(std::signbit(value) == ((bits & 0x80) != 0));
    CHECK(to_float8(value).bits == bits);
  }
  CHECK(from_float8(code(0x7E)) == vlarft::kFloat8Largest);
}

// Between two neighbours: each side goes to its own, the middle to the even one.
void check_rounding() {
  for (int bits = 0; bits < 0x7E; ++bits) {
    const auto low = static_cast<float>(value_of(bits)),
               high = static_cast<float>(value_of(bits + 1));
    const float middle = (low + high) / 2;
    for (const float sign : {1.0F, -1.0F}) {
      const int minus = sign < 0 ? 0x80 : 0;
      CHECK(to_float8(sign * std::nextafter(middle, 0.0F)).bits == (bits | minus));
      CHECK(to_float8(sign * std::nextafter(middle, 500.0F)).bits == ((bits + 1) | minus));
      CHECK(to_float8(sign * middle).bits == ((bits % 2 == 0 ? bits : bits + 1) | minus));
    }
  }
  CHECK(to_float8(1e-30F).bits == 0);
}

void check_beyond() {
  CHECK(to_float8(464.0F).bits == 0x7E);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float x : {std::nextafter(464.0F, 500.0F), 1e30F, infinity, std::nanf("")}) {
    CHECK(std::isnan(from_float8(to_float8(x))) && std::isnan(from_float8(to_float8(-x))));
  }
}

}  // namespace

int main() {
  check_codes();
  check_rounding();
  check_beyond();
}
