/* One run: state and inputs in, the method, outputs and state out. */
#include "model.hpp"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/jit/api/function_impl.h>

using namespace it;

namespace {

/* Autocast for the length of a run. */
class Autocast {
      public:
	Autocast(const it_model *model) : on_(model->precision != 0), type_(model->device.type())
	{
		if (on_) {
			at::autocast::set_autocast_dtype(type_, model->precision == 1 ? at::kHalf : at::kBFloat16);
			at::autocast::set_autocast_enabled(type_, true);
			at::autocast::increment_nesting();
		}
	}
	~Autocast()
	{
		if (on_) {
			if (at::autocast::decrement_nesting() == 0) {
				at::autocast::clear_cache();
			}
			at::autocast::set_autocast_enabled(type_, false);
		}
	}

      private:
	bool on_;
	at::DeviceType type_;
};

void add(it_model *model, size_t &count, const std::string &key, const c10::IValue &value, int depth)
{
	if (value.isTensor() && value.toTensor().defined()) {
		if (model->settled) {
			TORCH_CHECK(count < model->outputs.size(), "it gave more outputs than when it was loaded");
			model->outputs[count].tensor = value.toTensor();
			model->outputs[count].key = key;
		} else {
			Output output;
			output.key = key;
			output.tensor = value.toTensor();
			model->outputs.push_back(std::move(output));
		}
		count++;
		return;
	}
	TORCH_CHECK(depth < 2, "its outputs are nested deeper than a tuple, list or dict within another");
	if (value.isTensorList() || value.isList() || value.isTuple()) {
		const auto all = value.isTuple() ? value.toTupleRef().elements().vec() : value.toListRef().vec();
		for (size_t i = 0; i < all.size(); i++) {
			add(model, count, key.empty() ? key : key + "." + std::to_string(i), all[i], depth + 1);
		}
	} else if (value.isGenericDict()) {
		for (const auto &entry : value.toGenericDict()) {
			TORCH_CHECK(entry.key().isString(), "a dict among its outputs has keys that are no strings");
			const auto &name = entry.key().toStringRef();
			add(model, count, key.empty() ? name : key + "." + name, entry.value(), depth + 1);
		}
	} else {
		TORCH_CHECK(false, "output ", count, " is no tensor, but ", value.tagKind(),
		            "; return tensors, or a tuple, list or dict of them");
	}
}

/* Every output contiguous on the CPU, in the dtype and shape that it was settled with. */
void collect(it_model *model, const c10::IValue &value)
{
	if (!model->settled) {
		model->outputs.clear();
	}
	size_t count = 0;
	add(model, count, "", value, 0);
	TORCH_CHECK(count == model->outputs.size(), "it gave ", count, " outputs, and ", model->outputs.size(), " when it was loaded");
	for (size_t i = 0; i < count; i++) {
		auto &output = model->outputs[i];
		auto tensor = output.tensor;
		TORCH_CHECK(tensor.layout() == at::kStrided, "output ", i, " is a sparse tensor; return a dense one");
		if (model->settled) {
			TORCH_CHECK(tensor.sizes() == at::IntArrayRef(output.dims), "output ", i, " is ", shape_of(tensor),
			            " in this run, and had the shape ", at::IntArrayRef(output.dims), " when it was loaded");
			if (tensor.scalar_type() != output.dtype) {
				TORCH_CHECK(model->precision != 0, "output ", i, " is ", shape_of(tensor), " in this run, and ",
				            c10::toString(output.dtype), " when it was loaded");
				tensor = tensor.to(output.dtype);
			}
		}
		if (tensor.is_conj() || tensor.is_neg()) {
			tensor = tensor.resolve_conj().resolve_neg();
		}
		tensor = tensor.contiguous();
		if (tensor.device().is_cuda()) {
			if (!output.pinned.defined() || output.pinned.sizes() != tensor.sizes() || output.pinned.scalar_type() != tensor.scalar_type()) {
				output.pinned = at::empty(tensor.sizes(), tensor.options().device(at::kCPU).pinned_memory(true));
			}
			output.pinned.copy_(tensor, true);
			tensor = output.pinned;
		}
		output.tensor = tensor;
	}
}

/* A model may change the shape of a tensor that it was given (`unsqueeze_`): the next run gets it as it was. */
void restore(Input &input)
{
	if (input.device.sizes() != at::IntArrayRef(input.dims) || !input.device.is_contiguous()) {
		const bool one = input.device.is_same(input.host);
		input.device = at::empty({0}, input.device.options()).set_(input.device.storage(), 0, input.dims);
		if (one) {
			input.host = input.device;
		}
	}
}

void record(it_model *model, size_t event)
{
	if (model->stream) {
		model->events[event].record(*model->stream);
	}
}

/* What the method gets for an argument. */
c10::IValue value_of(const it_model *model, const Argument &argument)
{
	const auto tensor = [&](size_t input) -> const at::Tensor & { return model->inputs[input].device; };
	if (argument.inputs.empty() && argument.otherwise) {
		return *argument.otherwise;
	}
	if (argument.kind == Argument::TENSOR) {
		return tensor(argument.inputs.at(0));
	}
	if (argument.kind == Argument::TUPLE) {
		std::vector<c10::IValue> elements;
		elements.reserve(argument.inputs.size());
		for (const size_t input : argument.inputs) {
			elements.emplace_back(tensor(input));
		}
		return c10::ivalue::Tuple::create(std::move(elements));
	}
	c10::Dict<std::string, at::Tensor> dict;
	for (const size_t input : argument.inputs) {
		dict.insert(model->inputs[input].key, tensor(input));
	}
	return dict;
}

void step(it_model *model)
{
	const bool apart = model->stream.has_value();
	const auto &form = model->forms[model->form];
	record(model, 0);
	for (auto &hidden : model->hidden) {
		if (hidden.own.sizes() != hidden.host.sizes() || hidden.own.scalar_type() != hidden.host.scalar_type()) {
			hidden.own = at::empty(hidden.host.sizes(), hidden.host.options().pinned_memory(false).device(model->device));
		}
		hidden.own.copy_(hidden.host, apart);
		const auto &slot = hidden.slots[model->form];
		slot->object->setSlot(slot->index, hidden.own);
	}
	torch::jit::Stack stack;
	stack.reserve(model->arguments.size() + 1);
	stack.emplace_back(form.module->_ivalue());
	for (auto &input : model->inputs) {
		restore(input);
		if (apart) {
			input.device.copy_(input.host, true);
		}
	}
	for (const auto &argument : model->arguments) {
		stack.push_back(value_of(model, argument));
	}
	record(model, 1);
	c10::IValue value;
	{
		const Autocast autocast(model);
		value = (*form.function)(std::move(stack));
	}
	record(model, 2);
	collect(model, value);
	record(model, 3);
	if (apart) {
		model->stream->synchronize();
		for (size_t i = 0; i < 3; i++) {
			model->times[i] = static_cast<uint64_t>(model->events[i].elapsedTime(model->events[i + 1]) * 1e6);
		}
	}
}

} // namespace

IT_EXPORT char *it_run(it_model *model)
{
	return guarded([&] {
		/* The number of threads is a thread's own in OpenMP: the executor is another thread than the one that loaded. */
		thread_local bool alone = false;
		if (!alone) {
			at::set_num_threads(1);
			alone = true;
		}
		c10::OptionalStreamGuard guard;
		if (model->stream) {
			guard.reset_stream(*model->stream);
		}
		step(model);
	});
}

IT_EXPORT void it_settle(it_model *model)
{
	for (auto &output : model->outputs) {
		output.dtype = output.tensor.scalar_type();
		output.dims = output.tensor.sizes().vec();
	}
	model->settled = true;
}

IT_EXPORT void it_seed(uint64_t seed)
{
	char *text = guarded([&] { at::manual_seed(seed); });
	free(text);
}

IT_EXPORT size_t it_outputs(it_model *model)
{
	return model->outputs.size();
}

IT_EXPORT void it_output(it_model *model, size_t i, it_tensor *out, const char **key)
{
	const auto &output = model->outputs[i];
	*key = output.key.c_str();
	char *text = guarded([&] { describe(output.tensor, out); });
	if (text != nullptr) {
		out->dtype = 0;
		free(text);
	}
}

IT_EXPORT int it_times(it_model *model, uint64_t times[3])
{
	if (!model->stream) {
		return 0;
	}
	memcpy(times, model->times, sizeof model->times);
	return 1;
}

IT_EXPORT int it_device_works(it_model *model)
{
	if (!model->stream) {
		return 1;
	}
	char *text = guarded([&] {
		c10::StreamGuard guard(*model->stream);
		model->stream->synchronize();
		at::zeros({1}, at::TensorOptions().device(model->device)).add_(1).cpu();
	});
	free(text);
	return text == nullptr;
}
