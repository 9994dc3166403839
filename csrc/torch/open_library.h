// Opens a library of kernels, which lies in a file of its own beside the operators.
#pragma once

#include <stdint.h>
#include <stdio.h>

#include <algorithm>
#include <memory>
#include <string>
#if defined(__linux__)
#include <elf.h>
#endif

#include "errors.h"
#include "old_glibc.h"

namespace conv_ext {

// What an ELF file lacks of the bytes that its own headers place in it, 0 where it is whole or no such file. The loader
// does not ask: it maps a file that was cut short (a full disk, a copy that broke off), and the first touch of what is
// missing ends the process. conv_ext/_C.py asks the same of the operators themselves and of the fast road.
inline int64_t missing_bytes(const std::string& path) {
#if defined(__linux__) && __SIZEOF_POINTER__ == 8
  const std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path.c_str(), "rb"), fclose);
  Elf64_Ehdr head;
  if (file == nullptr || fread(&head, sizeof head, 1, file.get()) != 1) return 0;
  if (std::string(reinterpret_cast<const char*>(head.e_ident), SELFMAG) != ELFMAG) return 0;
  uint64_t end = std::max(head.e_phoff + uint64_t(head.e_phnum) * sizeof(Elf64_Phdr),
                          head.e_shoff + uint64_t(head.e_shnum) * sizeof(Elf64_Shdr));
  bool sought = fseek(file.get(), long(head.e_phoff), SEEK_SET) == 0;
  Elf64_Phdr part;
  for (int i = 0; sought && i < head.e_phnum && fread(&part, sizeof part, 1, file.get()) == 1; ++i)
    end = std::max(end, part.p_offset + part.p_filesz);
  sought = fseek(file.get(), 0, SEEK_END) == 0;
  return sought ? std::max<int64_t>(0, int64_t(end) - ftell(file.get())) : 0;
#else
  static_cast<void>(path);
  return 0;
#endif
}

inline void* open_library(const std::string& path, const char* what) {
  const int64_t missing = missing_bytes(path);
  CONV_EXT_CHECK(missing == 0, what, " is cut short: ", path, " lacks its last ", missing, " bytes");
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  CONV_EXT_CHECK(handle != nullptr, what, " did not load: ", dlerror());
  return handle;
}

}  // namespace conv_ext
