// float32 as a sum of parts of shorter numbers, for what multiplies those alone quickly: of bfloat16 (AMX; warpgroups
// on sm_90a), or of TF32 (cuda/math.cuh), which has the same exponents.
#pragma once

namespace conv_ext {

// bfloat16 ends at 2^-133, and AMX takes what is below 2^-126 for zero; parts of a float32 below 2^-110 are that small.
// So operands are scaled before they are cut, and sums back afterwards; powers of two change no digit. Every float32 is
// a multiple of 2^-149; scaled, of 2^-125, and so are its parts: none is subnormal. A sum that is flushed to zero was
// below 2^-174. Numbers from 2^104 on and sums from 2^80 on overflow, and are formed anew as those of Inf are.
constexpr float kPartScale = 0x1p24f, kSumScale = 0x1p-48f;

// Of bfloat16 each part is the nearest one to what those before it leave: two parts have 16 bits, three have 24. What
// is multiplied, (part of one operand, part of the other), the smallest first: two parts take the last three products,
// three parts all six, one part the last. The products that are left out are below 2^-16, or 2^-25, of the whole.
constexpr int kSplitProducts = 6;
constexpr int kSplitProduct[kSplitProducts][2] = {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};

}  // namespace conv_ext
