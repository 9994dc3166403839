// How many lanes of a warp meet in a bank of shared memory where sums of wgmma.cuh are put down and read again. Prints
// one line for each kind of access, "NAME WAYS": 1 where none meet.
#include <algorithm>
#include <set>

#include "wgmma/wgmma.cuh"

namespace {

// Lanes of `bytes` each go together up to 128 bytes; those that want different words of a bank wait for each other.
template <class Address>
int ways(int bytes, const Address& address) {
  int most = 0;
  const int together = std::min(32, 128 / bytes);
  for (int first = 0; first < 32; first += together) {
    std::set<int> words[32];
    for (int lane = first; lane < first + together; ++lane)
      for (int word = address(lane) / 4; word < (address(lane) + bytes) / 4; ++word) words[word % 32].insert(word);
    for (const std::set<int>& bank : words) most = std::max(most, int(bank.size()));
  }
  return most;
}

int most_of(int count, int (*one)(int)) {
  int most = 0;
  for (int i = 0; i < count; ++i) most = std::max(most, one(i));
  return most;
}

}  // namespace

int main() {
  using namespace conv_ext::cuda;
  static_assert(kSlab == 32, "a warp reads a position's channels at once");
  // Sum i of a lane stands as device_sm90.h says of multiply_group.
  printf("put_along_channels %d\n", most_of(kSlab / 2, [](int i) {
           return i % 2 != 0 ? 0 : ways(8, [i](int lane) {
             return 4 * slab_place<true>(lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2);
           });
         }));
  printf("put_along_positions %d\n", most_of(kSlab / 2, [](int i) {
           return ways(4, [i](int lane) {
             return 4 * slab_place<false>(lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2);
           });
         }));
  printf("read_vectors_of_16_bits %d\n", most_of(2, [](int half) {
           return ways(16, [half](int lane) { return 4 * slab_place<true>(lane / 4, lane % 4 * 8 + half * 4); });
         }));
  printf("read_vectors_of_32_bits %d\n",
         ways(16, [](int lane) { return 4 * slab_place<true>(lane / 8, lane % 8 * 4); }));
  printf("read_channels %d\n", most_of(64, [](int position) {
           return ways(4, [position](int lane) { return 4 * slab_place<true>(position, lane); });
         }));
  printf("read_positions %d\n", most_of(kSlab, [](int channel) {
           return ways(4, [channel](int lane) { return 4 * slab_place<false>(lane, channel); });
         }));
  return 0;
}
