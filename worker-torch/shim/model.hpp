/* What the shim's files share: a model, and how exceptions become messages. Internal. */
#pragma once
#include "shim.h"

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/jit/api/module.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#define IT_EXPORT extern "C" __attribute__((visibility("default")))

namespace it {

using Object = c10::intrusive_ptr<c10::ivalue::Object>;

/* One attribute of a module or of one of its submodules. */
struct Slot {
	Object object;
	size_t index;
};

/* An argument of the method, and the inputs that it is made of. */
struct Argument {
	enum { TENSOR, TUPLE, DICT, OTHER } kind = OTHER;
	/* What it gets where no input is its own; none: it has to have inputs. */
	std::optional<c10::IValue> otherwise;
	std::vector<size_t> inputs;
};

/* A tensor that clients fill: `host` is the worker's buffer, `device` what the module gets. They are one on the CPU. */
struct Input {
	std::string key;
	at::Tensor host, device;
	std::vector<int64_t> dims;
};

/* Hidden state: `own` is put into the attribute before each run, so that no session's value is ever written elsewhere. */
struct Hidden {
	std::string path;
	at::Tensor host, own;
	/* After a run, on the CPU and contiguous. */
	at::Tensor after;
	/* Where the attribute lies in each form. */
	std::optional<Slot> slots[IT_FORMS];
};

struct Output {
	std::string key;
	at::Tensor tensor;
	/* As settled. */
	at::ScalarType dtype;
	std::vector<int64_t> dims;
	/* Where a copy from the device lands. */
	at::Tensor pinned;
};

struct Form {
	std::optional<torch::jit::Module> module;
	torch::jit::Function *function = nullptr;
};

/* What an attribute was when it was watched. */
struct Seen {
	std::string type;
	at::Tensor copy;
	uint64_t print;
};

} // namespace it

struct it_model {
	c10::Device device{c10::kCPU};
	std::string method;
	it::Form forms[IT_FORMS];
	int form = 0;
	std::vector<it::Argument> arguments;
	std::vector<it::Input> inputs;
	std::vector<it::Hidden> hidden;
	std::map<std::string, it::Seen> seen;
	std::vector<it::Output> outputs;
	bool settled = false;
	int precision = 0;
	/* On a device of its own. */
	std::optional<c10::Stream> stream;
	std::vector<c10::Event> events;
	uint64_t times[3] = {0, 0, 0};
};

namespace it {

char *copy(const std::string &text);
/* The message of the exception that is being handled. */
char *message();

/* Runs `body` in inference mode; no exception leaves. */
template <typename Body> char *guarded(Body body)
{
	try {
		c10::InferenceMode inference;
		body();
		return nullptr;
	} catch (...) {
		return message();
	}
}

uint32_t number_of(at::ScalarType type);
at::ScalarType type_of(uint32_t number);
/* Describes a contiguous tensor on the CPU. */
void describe(const at::Tensor &tensor, it_tensor *out);
std::string shape_of(const at::Tensor &tensor);
/* The attribute at a dotted path, if the module has it. */
std::optional<Slot> find(const torch::jit::Module &module, const std::string &path);

} // namespace it
