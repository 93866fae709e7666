// TorchScript modules, as far as training one whose tensors belong to somebody else needs it: tch's interface has no
// buffers and cannot exchange tensors. Tensors come and go as tch has them, pointers to at::Tensor.
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

namespace {

using torch::jit::Module;

// Tells of a tensor by its name; whoever hears of it owns it.
using Tell = void (*)(void *context, const char *name, void *tensor);

char *told(const char *what) { return strdup(what); }

// Runs `body`; null, or what went wrong, for the caller to free.
template <typename Body>
char *guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception &error) {
    return told(error.what());
  } catch (...) {
    return told("libtorch failed");
  }
}

}  // namespace

extern "C" {

char *muster_script_load(const char *path, void **module) {
  return guarded([&] { *module = new Module(torch::jit::load(path, c10::Device(c10::kCPU))); });
}

void muster_script_free(void *module) { delete static_cast<Module *>(module); }

// Tells of all parameters, or of all buffers. One that is held in several places is told of for each.
char *muster_script_tensors(void *module, int buffers, void *context, Tell tell) {
  return guarded([&] {
    const auto &script = *static_cast<Module *>(module);
    const auto each = [&](const auto &list) {
      for (const auto &entry : list) tell(context, entry.name.c_str(), new at::Tensor(entry.value));
    };
    if (buffers) {
      each(script.named_buffers());
    } else {
      each(script.named_parameters());
    }
  });
}

// Puts a tensor in the place of the one with this name, whose parts are divided by points.
char *muster_script_set(void *module, const char *name, void *tensor) {
  return guarded([&] {
    Module owner = *static_cast<Module *>(module);
    std::string rest(name);
    for (std::size_t point; (point = rest.find('.')) != std::string::npos; rest.erase(0, point + 1)) {
      owner = owner.attr(rest.substr(0, point)).toModule();
    }
    owner.setattr(rest, *static_cast<at::Tensor *>(tensor));
  });
}

// How many tensors forward takes.
char *muster_script_inputs(void *module, std::size_t *count) {
  return guarded([&] {
    const auto method = static_cast<Module *>(module)->get_method("forward");
    *count = method.function().getSchema().arguments().size() - 1;
  });
}

char *muster_script_train(void *module, int on) {
  return guarded([&] { static_cast<Module *>(module)->train(on != 0); });
}

char *muster_script_forward(void *module, void *const *inputs, std::size_t count, void **output) {
  return guarded([&] {
    std::vector<torch::jit::IValue> values;
    for (std::size_t index = 0; index < count; ++index) values.emplace_back(*static_cast<at::Tensor *>(inputs[index]));
    const torch::jit::IValue result = static_cast<Module *>(module)->forward(std::move(values));
    if (!result.isTensor()) throw std::runtime_error("forward returns " + result.tagKind() + ", not one tensor");
    *output = new at::Tensor(result.toTensor());
  });
}
}
