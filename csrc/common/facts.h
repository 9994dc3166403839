// What explain() shows of a plan: names with numbers, or with words. For plans alone: no kernel includes it.
#pragma once

#include <stdint.h>

#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace conv_ext {

using Facts = std::vector<std::pair<const char*, std::variant<int64_t, std::string>>>;

inline void add_facts(Facts* facts, const Facts& more) { facts->insert(facts->end(), more.begin(), more.end()); }

}  // namespace conv_ext
