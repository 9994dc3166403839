// The example of docs/adding-an-algorithm.md: forward by rows of patches, without vectors of its own.
//
//   for each few rows of outputs of an image and group (in parallel):
//     for each output: copy what it reads; for each channel of the result: a sum of products
#include "layout.h"

#include "../base/epilogue.h"
#include "../base/pack.h"
#include "../pass.h"

namespace conv_ext {
namespace {

template <class T, class A>
struct Im2row {
  const ConvProblem& z;
  View<T> input, weight, output;
  const T* bias;
  int64_t bias_stride;
  const Buffers& buffers;
  const Finish<T, A> finish{z, buffers};

  void copy_patch(A* to, int64_t n, int64_t group, int64_t p, int64_t q) const {
    for (int64_t c = group * z.group_c(); c < (group + 1) * z.group_c(); ++c)
      for (int64_t r = 0; r < z.r; ++r)
        for (int64_t s = 0; s < z.s; ++s) {
          const int64_t h = p * z.stride_h + r * z.dilation_h - z.pad_top;
          const int64_t w = q * z.stride_w + s * z.dilation_w - z.pad_left;
          const bool inside = h >= 0 && h < z.h && w >= 0 && w < z.w;
          *to++ =
              inside ? read<A>(input.data + n * input.n + c * input.channel + h * input.row + w * input.column) : A(0);
        }
  }
  A product_of(const A* patch, int64_t k) const {
    A sum = bias != nullptr ? read<A>(bias + k * bias_stride) : A(0);
    for (int64_t c = 0; c < z.group_c(); ++c)
      for (int64_t r = 0; r < z.r; ++r)
        for (int64_t s = 0; s < z.s; ++s)
          sum +=
              *patch++ * read<A>(weight.data + k * weight.n + c * weight.channel + r * weight.row + s * weight.column);
    return sum;
  }
  void run_row(int64_t n, int64_t group, int64_t p, A* patch) const {
    for (int64_t q = 0; q < z.q; ++q) {
      copy_patch(patch, n, group, p, q);
      for (int64_t k = group * z.group_k(); k < (group + 1) * z.group_k(); ++k) {
        T* const to = output.data + n * output.n + k * output.channel + p * output.row + q * output.column;
        write<T>(to, finish.one(product_of(patch, k), to));
      }
    }
    finish_results(finish, true, buffers, 1, {n, group * z.group_k(), z.group_k(), p, 1, 0, z.q});
  }
};

template <class T, class A>
void run_im2row(const ConvProblem& z, const Plan& plan, const Buffers& b, const Executor& executor) {
  const Im2rowPlan& own = plan.own<Im2rowPlan>();
  const Im2row<T, A> task{z,
                          view_of<T>(b.input, 1),
                          view_of<T>(b.weight, 1),
                          view_of<T>(b.output, 1),
                          static_cast<const T*>(b.bias),
                          b.bias_stride,
                          b};
  parallel_for(executor, plan.tasks, plan.scratch_bytes, [&](int64_t index, void* scratch) {
    Carver memory(scratch);
    const Im2rowScratch<A> s = im2row_scratch<A>(z, memory);
    const int64_t blocks = ceil_div(z.p, own.rows), first = index % blocks * own.rows;
    const int64_t group = index / blocks % z.groups, n = index / blocks / z.groups;
    for (int64_t p = first; p < min_of(z.p, first + own.rows); ++p) task.run_row(n, group, p, s.patch);
  });
}

}  // namespace

RunPlan select_im2row(Pass, DType dtype) {
  return with_types(dtype, [](auto types) -> RunPlan {
    typedef decltype(types) Types;
    return run_im2row<typename Types::T, typename Types::A>;
  });
}

}  // namespace conv_ext
