// The mark of what conv_ext._C, a library of its own, takes from that of the operators: all else is hidden there.
#pragma once

#define CONV_EXT_SHARED __attribute__((visibility("default")))
