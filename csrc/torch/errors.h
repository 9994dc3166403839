// What an operator raises, without torch's C++ classes: a std::runtime_error is a RuntimeError in Python.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace conv_ext {

// NotImplementedError where Python's fast road or the validator raises it; from a bare operator a RuntimeError.
class __attribute__((visibility("default"))) NotImplemented : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string text_of(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace conv_ext

// The parts of the message are computed where it is raised.
#define CONV_EXT_CHECK(condition, ...) \
  if (!(condition)) throw std::runtime_error(conv_ext::text_of(__VA_ARGS__))
