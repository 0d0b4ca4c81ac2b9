// The table of kernels of one instruction set.
#include "kernels/table.h"

namespace tb {
namespace TB_ISA {

extern const Kernels kernels;
const Kernels kernels = {
#define KERNEL(result, name, arguments) name,
#include "kernels/list.h"
#undef KERNEL
};

}  // namespace TB_ISA
}  // namespace tb
