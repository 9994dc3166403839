// Which kernel library a process takes: the best that its processor runs and the build has, or the one that
// CONV_EXT_ISA names. With Python and without it.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/syscall.h>
#endif
#include <limits.h>
#include <unistd.h>

#include "old_glibc.h"

namespace conv_ext {

using Names = std::vector<std::string>;

// Every instruction set that is chosen by itself, the best first.
inline Names known_isas() { return {"amx", "avx512_bf16", "avx512", "avx2", "baseline"}; }
// AMX's tiles in plain C++, for tests on other processors: never chosen, only named.
constexpr const char* kEmulatedIsa = "amx-emulated";

inline bool holds(const Names& names, const std::string& name) {
  for (const std::string& other : names)
    if (other == name) return true;
  return false;
}

inline std::string joined(const Names& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "none" : text;
}

// Asks Linux for the tiles' registers, which a process has on request only.
inline bool tiles_are_allowed() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

// Instruction sets that this processor and its operating system can run, the best first.
inline Names supported_isas() {
  Names names;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && tiles_are_allowed())
    names.push_back("amx");
  if (bf16) names.push_back("avx512_bf16");
  if (avx512) names.push_back("avx512");
  if (avx2) names.push_back("avx2");
#endif
  names.push_back("baseline");
  return names;
}

// The folder of the kernel libraries: lib beside the binary that this code is linked into.
inline std::string kernel_folder() {
  static const std::string folder = [] {
    Dl_info info;
    char path[PATH_MAX];
    const bool found = dladdr(reinterpret_cast<const void*>(&holds), &info) != 0 && info.dli_fname != nullptr;
    if (!found || realpath(info.dli_fname, path) == nullptr) return std::string("lib");
    const std::string binary = path;
    return binary.substr(0, binary.rfind('/')) + "/lib";
  }();
  return folder;
}

inline std::string library_path(const std::string& isa) { return kernel_folder() + "/libconv_ext_" + isa + ".so"; }

// Instruction sets that this processor can run and this build holds, the best first.
inline Names available_isas() {
  Names names;
  for (const std::string& isa : supported_isas())
    if (access(library_path(isa).c_str(), R_OK) == 0) names.push_back(isa);
  return names;
}

// A value of the environment as a message may show it, whatever bytes it has.
inline std::string shown(std::string text) {
  for (char& letter : text)
    if (letter < ' ' || letter > '~') letter = '?';
  return "'" + text + "'";
}

// The library to load; std::runtime_error where there is none, or CONV_EXT_ISA names none that can be had.
inline std::string chosen_library() {
  Names available = available_isas();
  const char* const variable = getenv("CONV_EXT_ISA");
  if (variable == nullptr || *variable == '\0') {
    if (available.empty())
      throw std::runtime_error("conv_ext has no kernel library for this processor in " + kernel_folder() +
                               ": it looks for " + joined(supported_isas()));
    return library_path(available.front());
  }
  const std::string isa = variable;
  if (isa == kEmulatedIsa && holds(available, "avx512")) return library_path(isa);
  if (!holds(known_isas(), isa))
    throw std::runtime_error("CONV_EXT_ISA must be one of " + joined(known_isas()) + ", got " + shown(isa));
  if (holds(available, isa)) return library_path(isa);
  const bool supported = holds(supported_isas(), isa);
  throw std::runtime_error("CONV_EXT_ISA=" + isa + " is not possible: " +
                           (supported ? "this build does not hold it" : "this processor does not have it") +
                           "; available: " + joined(available));
}

}  // namespace conv_ext
