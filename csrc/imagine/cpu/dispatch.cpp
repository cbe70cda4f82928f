// Which kernels run: a list, best first, chosen once.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/cpu_features.h"
#include "core/errors.h"
#include "imagine/cpu/kernels.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vlarft::imagine {

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

namespace {

struct Path {
  const Kernels* kernels;
  std::vector<const char*> needs;
};

const std::vector<Path>& paths() {
  static const std::vector<Path> all = {
#if defined(__x86_64__)
      {&amx::kTable,
       {"fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_tile",
        "amx_bf16"}},
      {&avx512_bf16::kTable, {"fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}},
      {&avx512::kTable, {"fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"}},
      {&avx2::kTable, {"fma", "avx2"}},
#endif
      {&portable::kTable, {}},
  };
  return all;
}

// Linux hands out the tile registers on request, once a process.
bool tiles_granted() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

bool runs(const Path& path) {
  static const std::vector<std::string> features = cpu_features();
  const bool listed = std::all_of(path.needs.begin(), path.needs.end(), [](const char* need) {
    return std::find(features.begin(), features.end(), need) != features.end();
  });
  return listed && (std::strcmp(path.kernels->name, "amx") != 0 || tiles_granted());
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> built_kernels() {
  std::vector<std::string> names;
  for (const Path& path : paths()) names.emplace_back(path.kernels->name);
  return names;
}

std::vector<std::string> runnable_kernels() {
  std::vector<std::string> names;
  for (const Path& path : paths()) {
    if (runs(path)) names.emplace_back(path.kernels->name);
  }
  return names;
}

const Kernels& kernels(const std::string& forced) {
  for (const Path& path : paths()) {
    if ((forced.empty() || forced == path.kernels->name) && runs(path)) return *path.kernels;
  }
  const std::vector<std::string> built = built_kernels();
  const bool known = std::find(built.begin(), built.end(), forced) != built.end();
  throw BackendError(
      "VLARFT_CPU = '" + forced + "' " + (known ? "cannot run on this machine" : "is unknown") +
      "; built: " + joined(built) + "; this machine runs: " + joined(runnable_kernels()));
}

const Kernels& kernels() {
  static const Kernels& chosen = [&]() -> const Kernels& {
    const char* forced = std::getenv("VLARFT_CPU");
    return kernels(forced == nullptr ? "" : forced);
  }();
  return chosen;
}

}  // namespace vlarft::imagine
