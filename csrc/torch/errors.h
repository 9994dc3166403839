// What an operator raises, without torch's C++ classes: a std::runtime_error is a RuntimeError in Python.
#pragma once

#include <stdio.h>

#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>

namespace conv_ext {

// NotImplementedError where Python's fast road or the validator raises it; from a bare operator a RuntimeError.
class __attribute__((visibility("default"))) NotImplemented : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Text that is put together. The C++ library's streams would ask for a newer one of it than torch does.
class Text {
 public:
  Text& operator<<(std::string_view part) {
    text_ += part;
    return *this;
  }
  Text& operator<<(char part) {
    text_ += part;
    return *this;
  }
  Text& operator<<(std::integral auto number) { return *this << std::string_view(std::to_string(number)); }
  Text& operator<<(double number) {
    char digits[32];
    snprintf(digits, sizeof digits, "%g", number);
    return *this << std::string_view(digits);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

template <class... Parts>
std::string text_of(const Parts&... parts) {
  Text text;
  (text << ... << parts);
  return text.text();
}

}  // namespace conv_ext

// The parts of the message are computed where it is raised.
#define CONV_EXT_CHECK(condition, ...) \
  if (!(condition)) throw std::runtime_error(conv_ext::text_of(__VA_ARGS__))
