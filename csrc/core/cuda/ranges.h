// NVTX ranges in the domain "vlarft", nested rollout > stage > layer, for Nsight Systems. Off
// unless the environment variable VLARFT_NVTX is 1.
#pragma once

#ifndef VLARFT_EMULATE
#include <nvtx3/nvToolsExt.h>
#endif

#include <string>

#include "core/environment.h"

namespace vlarft::cuda {

#ifdef VLARFT_EMULATE

inline void push_range(const char*) {}
inline void pop_range() {}

#else

// Null where ranges are off.
inline nvtxDomainHandle_t range_domain() {
  static const nvtxDomainHandle_t domain = [] {
    return switched_on("VLARFT_NVTX") ? nvtxDomainCreateA("vlarft") : nullptr;
  }();
  return domain;
}

inline void push_range(const char* name) {
  if (range_domain() == nullptr) return;
  nvtxEventAttributes_t attributes = {};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  nvtxDomainRangePushEx(range_domain(), &attributes);
}

inline void pop_range() {
  if (range_domain() != nullptr) nvtxDomainRangePop(range_domain());
}

#endif

class Range {
 public:
  explicit Range(const std::string& name) { push_range(name.c_str()); }
  ~Range() { pop_range(); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace vlarft::cuda
