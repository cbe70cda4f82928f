// Typed errors of the native code. csrc/python maps each to the class of the same name in
// vlarft/errors.py, so a caller meets one family of errors, whichever language found the mistake.
#pragma once

#include <stdexcept>
#include <string>

namespace vlarft {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ShapeError : Error {
  using Error::Error;
};

struct DtypeError : Error {
  using Error::Error;
};

// A device or kernel is not available here, or failed; the message holds the reason.
struct BackendError : Error {
  using Error::Error;
};

}  // namespace vlarft
