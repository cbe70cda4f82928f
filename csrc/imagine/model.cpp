#include "imagine/model.h"

#include "core/errors.h"

namespace vlarft::imagine {

const float* tensor_named(const Tensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw Error("Imaginer: the weights lack " + name);
  return found->second;
}

}  // namespace vlarft::imagine
