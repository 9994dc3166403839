// A case for every number: a problem of some family, and how it lies in memory, what it holds, in which ways it runs.
#pragma once

#include "runs_families.h"

namespace fuzz {

class Drawer {
 public:
  // Whether each case runs on threads, too (for ThreadSanitizer).
  explicit Drawer(bool always_threads) : always_threads_(always_threads) {}

  Case draw(uint64_t seed, uint64_t index) const {
    Random first(seed * 0x9e3779b97f4a7c15u + index);
    Random random(first.bits());
    Case c;
    c.z = Families(&random).problem();
    for (Layout& layout : c.layout) layout = draw_layout(&random);
    if (random.chance(0.75)) alike(&random, &c);
    draw_sharing(&random, &c);
    c.z.channels_last = c.layout[0].is_order("0231") || c.layout[1].is_order("0231");
    if (random.chance(0.05)) c.z.channels_last = !c.z.channels_last;
    if (random.chance(0.4)) c.bias_stride = random.chance(0.8) ? 1 : random.between(0, 3);
    c.relu = !conv_ext::is_complex(c.z.dtype) && random.chance(0.25);
    if (!c.relu && random.chance(0.4)) draw_epilogue(&random, &c);
    const int64_t kind = random.between(0, 99);
    c.data = kind < 45   ? Data::Integers
             : kind < 65 ? Data::Signed
             : kind < 80 ? Data::Positive
             : kind < 90 ? Data::Special
                         : Data::Wide;
    c.seed = random.bits() >> 1;
    const bool shared = products_of(c.z) >= kSharedProducts * 0.98;
    if (random.chance(shared ? 0.3 : 0.06)) c.shuffled = int(random.pick({2, 3, 7}));
    if (always_threads_)
      c.threads = random.chance(0.2) ? 7 : 3;
    else if (random.chance(shared ? 0.3 : 0.01))
      c.threads = 7;
    if (c.z.n > 1 && random.chance(0.1)) {
      c.cut_begin = random.between(0, c.z.n - 1);
      c.cut_end = random.between(c.cut_begin + 1, c.z.n);
    }
    // Small ones most of all: blocks of a small problem are cut as those of a large one are.
    if (random.chance(shared ? 0.6 : 0.25)) {
      c.l1 = random.pick({1, 4, 16, 64, 128});
      c.l2 = random.pick({4, 16, 64, 256, 512, 2048, 4096});
      c.last = random.pick({1, 16, 256, 4096, 65536});
    }
    return c;
  }

 private:
  static void set_order(Layout* layout, const char* digits) {
    for (int i = 0; i < 4; ++i) layout->order[i] = digits[i] - '0';
  }
  static Layout draw_layout(Random* random) {
    Layout layout;
    if (random->chance(0.45))
      set_order(&layout, "0231");
    else if (random->chance(0.2))
      for (int i = 3; i > 0; --i) std::swap(layout.order[i], layout.order[random->between(0, i)]);
    // Slices: of the fastest dimension with a step, of the others with neighbours that are not theirs.
    if (random->chance(0.06)) layout.step = random->between(2, 3);
    for (int64_t& gap : layout.gap)
      if (random->chance(0.07)) gap = random->between(1, 5);
    if (random->chance(0.2)) layout.odd = int(random->between(1, 4));
    layout.at_begin = random->chance(0.25);
    if (random->chance(0.15)) layout.shift = int(random->between(1, 15));
    return layout;
  }
  // Mostly the three tensors are in one of the usual formats together.
  static void alike(Random* random, Case* c) {
    const bool last = random->chance(0.5);
    for (Layout& layout : c->layout) {
      set_order(&layout, last ? "0231" : "0123");
      if (random->chance(0.8)) {
        layout.step = 1;
        for (int64_t& gap : layout.gap) gap = 0;
      }
    }
  }
  // Expanded and overlapping operands.
  static void draw_sharing(Random* random, Case* c) {
    for (Layout& layout : c->layout) {
      if (random->chance(0.04)) layout.expand = 1 << random->between(0, 3);
      if (random->chance(0.03)) layout.overlap = int(random->between(1, 4));
    }
  }

  static void draw_epilogue(Random* random, Case* c) {
    c->adds = conv_ext::is_complex(c->z.dtype) || random->chance(0.6);
    c->residual = random->chance(0.6) ? c->layout[2] : draw_layout(random);
    if (random->chance(0.1)) c->residual.expand = 1 << random->between(0, 3);
    if (!conv_ext::is_complex(c->z.dtype)) c->activation = Behind(random->between(c->adds ? 0 : 1, kBehindKinds - 1));
  }

  bool always_threads_;
};

}  // namespace fuzz
