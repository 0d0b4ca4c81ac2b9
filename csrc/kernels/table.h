// What the *_cpu.cpp define for the instruction set they are compiled for.
#pragma once
#include "kernels.h"

namespace tb {
namespace TB_ISA {

#define KERNEL(result, name, arguments) result name arguments;
#include "kernels/list.h"
#undef KERNEL

}  // namespace TB_ISA
}  // namespace tb
