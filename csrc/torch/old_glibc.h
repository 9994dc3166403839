// What a binary needs of glibc, so that one that is linked on a new Linux loads on an old one.
//
// A linker binds to the newest version of a symbol. Of what is used here two kinds are newer than glibc 2.28, which
// torch's own wheels ask for (manylinux_2_28). `make wheel` has auditwheel look whether others have come in.
#pragma once

#include <dlfcn.h>
#include <stdlib.h>

#if defined(__linux__) && defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#if defined(__x86_64__)
#define CONV_EXT_FIRST_GLIBC "GLIBC_2.2.5"
#else
#define CONV_EXT_FIRST_GLIBC "GLIBC_2.17"
#endif

// In glibc 2.34 these moved from libdl into libc, as new versions of the same functions; the old versions remain.
__asm__(".symver dlopen, dlopen@" CONV_EXT_FIRST_GLIBC);
__asm__(".symver dlsym, dlsym@" CONV_EXT_FIRST_GLIBC);
__asm__(".symver dlerror, dlerror@" CONV_EXT_FIRST_GLIBC);
__asm__(".symver dladdr, dladdr@" CONV_EXT_FIRST_GLIBC);
#undef CONV_EXT_FIRST_GLIBC

// glibc 2.32 has a flag that says whether a process ever had a second thread; the C++ library then leaves out atomic
// instructions where it counts references. Our own flag, seen by this library alone, says that there may be one.
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
