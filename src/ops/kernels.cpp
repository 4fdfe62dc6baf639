// Chooses the table of element-wise kernels by what the CPU has.
#include "kernels.hpp"

#include <algorithm>
#include <cmath>

namespace trainer::ops {

namespace portable {
extern const Kernels kKernels;
}
#if defined(TRAINER_X86_KERNELS)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

const Kernels* kernels_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::Portable:
      return &portable::kKernels;
#if defined(TRAINER_X86_KERNELS)
    case InstructionSet::Avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::kKernels : nullptr;
    case InstructionSet::Avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
                 ? &avx512::kKernels
                 : nullptr;
#else
    default:
      return nullptr;
#endif
  }
  return nullptr;
}

const Kernels& best_kernels() {
  for (const InstructionSet set : {InstructionSet::Avx512, InstructionSet::Avx2}) {
    if (const Kernels* kernels = kernels_of(set)) return *kernels;
  }
  return *kernels_of(InstructionSet::Portable);
}

void set_probability(DropoutMask& mask, double probability) {
  mask.threshold = static_cast<std::uint32_t>(std::min(std::floor(probability * 0x1p32), 0x1p32 - 1));
  mask.scale = static_cast<float>(1.0 / (1.0 - probability));
}

}  // namespace trainer::ops
