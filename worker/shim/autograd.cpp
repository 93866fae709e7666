// What libtorch offers and tch's C interface leaves out: a hook on a leaf that runs when its gradient of a backward
// pass is complete, and autocast on CPUs. Tensors come as tch has them, pointers to at::Tensor.
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

namespace {

// How a gradient gets into its place: 0 copied over what is there, 1 added to it.
using Mode = const volatile std::uint8_t *;
using Ready = void (*)(void *context, std::size_t index);

// Autograd hands a leaf without a gradient the one that it has just computed, without a copy. The hook moves it into
// the flat memory while it is still in the cache, and leaves the leaf without one again: one pass over it, where
// adding to a gradient that was cleared before takes three.
struct Place final : torch::autograd::PostAccumulateGradHook {
  Place(at::Tensor target, std::size_t index, Mode mode, Ready ready, void *context)
      : target(std::move(target)), index(index), mode(mode), ready(ready), context(context) {}

  void operator()(const at::Tensor &leaf) override {
    c10::NoGradGuard guard;
    at::Tensor &gradient = leaf.mutable_grad();
    if (!gradient.defined()) return;
    if (*mode == 0) {
      target.copy_(gradient);
    } else {
      target.add_(gradient);
    }
    gradient.reset();
    ready(context, index);
  }

  at::Tensor target;
  std::size_t index;
  Mode mode;
  Ready ready;
  void *context;
};

char *told(const char *what) { return strdup(what); }

}  // namespace

// Each returns null, or what went wrong, for the caller to free.
extern "C" {

char *muster_place_gradient(void *leaf, void *target, std::size_t index, Mode mode, Ready ready, void *context) {
  try {
    const auto &tensor = *static_cast<at::Tensor *>(leaf);
    auto place = std::make_unique<Place>(*static_cast<at::Tensor *>(target), index, mode, ready, context);
    torch::autograd::impl::set_post_acc_grad_hooks(tensor, std::move(place));
    return nullptr;
  } catch (const std::exception &error) {
    return told(error.what());
  }
}

char *muster_forget_gradient(void *leaf) {
  try {
    torch::autograd::impl::set_post_acc_grad_hooks(*static_cast<at::Tensor *>(leaf), nullptr);
    return nullptr;
  } catch (const std::exception &error) {
    return told(error.what());
  }
}

// Turns autocast on CPUs on, to bf16 (0) or fp16 (1), or off (-1).
char *muster_autocast(int kind) {
  try {
    if (kind >= 0) {
      at::autocast::set_autocast_dtype(at::kCPU, kind == 0 ? at::kBFloat16 : at::kHalf);
      at::autocast::set_autocast_enabled(at::kCPU, true);
    } else {
      // Casts of weights are kept for a pass, and weights change between passes.
      at::autocast::clear_cache();
      at::autocast::set_autocast_enabled(at::kCPU, false);
    }
    return nullptr;
  } catch (const std::exception &error) {
    return told(error.what());
  }
}
}
