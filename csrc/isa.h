// Which build of the kernels runs on this processor.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace tb {

const Kernels& active_kernels();
std::string active_isa();
std::vector<std::string> available_isas();  // best first
void set_isa(const std::string& name);      // throws std::invalid_argument for an unavailable one

}  // namespace tb
