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

namespace {

// What a row counts, of a row or of many.
template <class Part>
void add(Stats& to, const Part& part) {
  to.computed += part.computed;
  to.needed += part.needed;
  to.row_passes += part.row_passes;
  to.accepted += part.accepted;
  for (int source = 0; source < kSources; ++source) {
    to.guessed[source] += part.guessed[source];
    to.right[source] += part.right[source];
  }
}

}  // namespace

Stats& Stats::operator+=(const Stats& other) {
  passes += other.passes;
  add(*this, other);
  return *this;
}

Stats& Stats::operator+=(const RowState& row) {
  add(*this, row);
  return *this;
}

}  // namespace vlarft::imagine
