// Switches that users set as environment variables.
#pragma once

#include <cstdlib>
#include <cstring>

namespace vlarft {

// Whether the variable is 1; anything else is off.
inline bool switched_on(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::strcmp(value, "1") == 0;
}

}  // namespace vlarft
