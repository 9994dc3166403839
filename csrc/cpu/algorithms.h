// The ordered list of algorithms: the first that can and wants to computes a problem. An algorithm is a folder and one
// line here.
//
// NAME(Enumerator, folder): the folder's plan.cpp has folder_declines, folder_yields, prepare_folder and
// describe_folder (candidates.h says what they do), and another source of it has select_folder (pass.h).
#pragma once

#define CONV_EXT_ALGORITHMS(NAME)   \
  NAME(Depthwise, depthwise)        \
  NAME(Winograd, winograd)          \
  NAME(Grouped, grouped)            \
  NAME(ImplicitGemm, implicit_gemm) \
  NAME(Broadcast, broadcast)        \
  NAME(Panels, panels)              \
  NAME(Direct, direct)              \
  NAME(Reference, reference)
