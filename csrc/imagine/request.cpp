#include "imagine/request.h"

#include <algorithm>

namespace vlarft::imagine {

bool Request::uses(Source source) const {
  return width > 1 && std::find(guesses.begin(), guesses.end(), source) != guesses.end();
}

Rules Request::rules() const {
  return {static_cast<int32_t>(frames), static_cast<int32_t>(frame_tokens),
          static_cast<int32_t>(action_dim), static_cast<int32_t>(width)};
}

Stats& Stats::operator+=(const Stats& other) {
  passes += other.passes;
  computed += other.computed;
  needed += other.needed;
  row_passes += other.row_passes;
  accepted += other.accepted;
  for (int source = 0; source < kSources; ++source) {
    guessed[source] += other.guessed[source];
    right[source] += other.right[source];
  }
  return *this;
}

Stats& Stats::operator+=(const RowState& row) {
  computed += row.computed;
  needed += row.needed;
  row_passes += row.row_passes;
  accepted += row.accepted;
  for (int source = 0; source < kSources; ++source) {
    guessed[source] += row.guessed[source];
    right[source] += row.right[source];
  }
  return *this;
}

}  // namespace vlarft::imagine
