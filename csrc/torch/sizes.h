// The integers of a call: numbers, or symbols of a graph where a call is traced; and lists of them.
#pragma once

#include <stdint.h>

#include <array>
#include <span>
#include <vector>

#include "../common/indexing.h"
#include "errors.h"

namespace conv_ext {

// Prints as [1, 2].
template <class Int>
class List : public std::span<const Int> {
 public:
  using std::span<const Int>::span;
  List() = default;
  List(const std::vector<Int>& values) : List(values.data(), values.size()) {}
  template <size_t count>
  List(const std::array<Int, count>& values) : List(values.data(), count) {}
  List from(size_t first) const { return List(this->data() + first, this->size() - first); }
};

template <class Int>
Text& print(Text& out, const List<Int>& values, char open, char close) {
  out << open;
  for (size_t i = 0; i < values.size(); ++i) out << std::string_view(i ? ", " : "") << values[i];
  return out << close;
}
template <class Int>
Text& operator<<(Text& out, const List<Int>& values) {
  return print(out, values, '[', ']');
}

// A size of a traced call: a number, or the index of an expression that the caller keeps (conv_ext/symbols.py).
struct Symbol {
  int64_t value = 0;  // the number, or the index
  int64_t is_expression = 0;
  Symbol() = default;
  Symbol(int64_t number) : value(number) {}
};

enum class Arithmetic : int32_t { Add, Subtract, Multiply, Divide, Remainder };
enum class Relation : int32_t { Equal, AtLeast };
// A relation must hold (it becomes a guard of the graph, or an assertion in it where only a run can tell); or it is
// asked whether it is known to (not where only a run can tell).
enum class Question : int32_t { Holds, Known };

// Who keeps the expressions answers what is asked of them; a negative answer: that failed, the reason lies there.
struct SymbolKeeper {
  int64_t (*compute)(int32_t arithmetic, const Symbol* a, const Symbol* b);  // the index of the result
  int32_t (*decide)(int32_t question, int32_t relation, const Symbol* a, const Symbol* b);
  int32_t (*print)(const Symbol* a, char* text, int32_t bytes);
};
inline thread_local const SymbolKeeper* symbol_keeper = nullptr;

// What is thrown where the keeper has failed; it has the error.
struct KeeperFailed {};

namespace symbols {

inline Symbol compute(Arithmetic arithmetic, const Symbol& a, const Symbol& b) {
  Symbol result(symbol_keeper->compute(int32_t(arithmetic), &a, &b));
  if (result.value < 0) throw KeeperFailed();
  result.is_expression = 1;
  return result;
}
inline bool decide(Question question, Relation relation, const Symbol& a, const Symbol& b) {
  const int32_t answer = symbol_keeper->decide(int32_t(question), int32_t(relation), &a, &b);
  if (answer < 0) throw KeeperFailed();
  return answer != 0;
}
inline bool are_numbers(const Symbol& a, const Symbol& b) { return !a.is_expression && !b.is_expression; }

}  // namespace symbols

inline Symbol operator-(const Symbol& a, const Symbol& b) {
  return symbols::are_numbers(a, b) ? Symbol(a.value - b.value) : symbols::compute(Arithmetic::Subtract, a, b);
}
inline Symbol operator+(const Symbol& a, const Symbol& b) {
  return symbols::are_numbers(a, b) ? Symbol(a.value + b.value) : symbols::compute(Arithmetic::Add, a, b);
}
inline Symbol operator/(const Symbol& a, const Symbol& b) {
  return symbols::are_numbers(a, b) ? Symbol(a.value / b.value) : symbols::compute(Arithmetic::Divide, a, b);
}
inline Symbol operator%(const Symbol& a, const Symbol& b) {
  return symbols::are_numbers(a, b) ? Symbol(a.value % b.value) : symbols::compute(Arithmetic::Remainder, a, b);
}
inline Text& operator<<(Text& out, const Symbol& a) {
  if (!a.is_expression) return out << a.value;
  char text[256] = "";
  if (symbol_keeper->print(&a, text, sizeof text) < 0) throw KeeperFailed();
  return out << std::string_view(text);
}

// A rule that must hold, and a condition that may be known to be true: over numbers both are comparisons.
inline bool holds_equal(int64_t a, int64_t b) { return a == b; }
inline bool holds_at_least(int64_t a, int64_t b) { return a >= b; }
inline bool known_equal(int64_t a, int64_t b) { return a == b; }
inline bool holds_equal(const Symbol& a, const Symbol& b) {
  return symbols::are_numbers(a, b) ? a.value == b.value : symbols::decide(Question::Holds, Relation::Equal, a, b);
}
inline bool holds_at_least(const Symbol& a, const Symbol& b) {
  return symbols::are_numbers(a, b) ? a.value >= b.value : symbols::decide(Question::Holds, Relation::AtLeast, a, b);
}
inline bool known_equal(const Symbol& a, const Symbol& b) {
  return symbols::are_numbers(a, b) ? a.value == b.value : symbols::decide(Question::Known, Relation::Equal, a, b);
}

// true where the result fits; what is symbolic is bounded already.
inline bool checked_mul(const Symbol& a, const Symbol& b, Symbol* result) {
  int64_t number = 0;
  const bool numbers = symbols::are_numbers(a, b), fits = !numbers || checked_mul(a.value, b.value, &number);
  *result = numbers ? Symbol(number) : symbols::compute(Arithmetic::Multiply, a, b);
  return fits;
}
inline bool checked_add(const Symbol& a, const Symbol& b, Symbol* result) {
  int64_t number = 0;
  const bool numbers = symbols::are_numbers(a, b), fits = !numbers || checked_add(a.value, b.value, &number);
  *result = numbers ? Symbol(number) : symbols::compute(Arithmetic::Add, a, b);
  return fits;
}

inline bool elements_fit(const List<int64_t>& sizes) {
  int64_t elements = 1;
  bool fits = true;
  for (const int64_t size : sizes) {
    if (size == 0) return true;
    fits = fits && checked_mul(elements, size, &elements);
  }
  return fits;
}
inline bool elements_fit(const List<Symbol>& sizes) {
  std::vector<int64_t> numbers;
  for (const Symbol& size : sizes) {
    if (size.is_expression) return true;
    numbers.push_back(size.value);
  }
  return elements_fit(List<int64_t>(numbers));
}

}  // namespace conv_ext
