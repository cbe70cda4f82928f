// Which table runs: the one named like the kernels of csrc/imagine, which know the processor.
#include "core/errors.h"
#include "decode/cpu/kernels.h"
#include "imagine/cpu/kernels.h"

namespace vlarft::decode {

namespace portable {
extern const Kernels kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kTable;
}
namespace avx512 {
extern const Kernels kTable;
}
namespace avx512_bf16 {
extern const Kernels kTable;
}
namespace amx {
extern const Kernels kTable;
}
#endif

const Kernels& kernels(const std::string& name) {
  const std::string chosen = imagine::kernels(name).name;  // refuses what cannot run here
#if defined(__x86_64__)
  if (chosen == amx::kTable.name) return amx::kTable;
  if (chosen == avx512_bf16::kTable.name) return avx512_bf16::kTable;
  if (chosen == avx512::kTable.name) return avx512::kTable;
  if (chosen == avx2::kTable.name) return avx2::kTable;
#endif
  if (chosen == portable::kTable.name) return portable::kTable;
  throw BackendError("convolutions: no kernels named '" + chosen + "'");
}

const Kernels& kernels() { return kernels(imagine::kernels().name); }

}  // namespace vlarft::decode
