/* Opening a file, its forms, its inputs: everything before the first run. */
#include "model.hpp"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <istream>
#include <streambuf>

namespace it {

char *copy(const std::string &text)
{
	char *out = static_cast<char *>(malloc(text.size() + 1));
	if (out != nullptr) {
		memcpy(out, text.c_str(), text.size() + 1);
	}
	return out;
}

char *message()
{
	try {
		throw;
	} catch (const c10::Error &error) {
		return copy(error.what_without_backtrace());
	} catch (const std::exception &error) {
		return copy(error.what());
	} catch (...) {
		return copy("an exception of an unknown kind");
	}
}

static const std::pair<uint32_t, at::ScalarType> TYPES[] = {
    {1, at::kFloat}, {2, at::kDouble}, {3, at::kHalf},    {4, at::kBFloat16}, {5, at::kChar},
    {6, at::kShort}, {7, at::kInt},    {8, at::kLong},    {9, at::kByte},     {10, at::kUInt16},
    {11, at::kUInt32}, {12, at::kUInt64}, {13, at::kBool},
};

uint32_t number_of(at::ScalarType type)
{
	for (const auto &[number, known] : TYPES) {
		if (known == type) {
			return number;
		}
	}
	return 0;
}

at::ScalarType type_of(uint32_t number)
{
	for (const auto &[known, type] : TYPES) {
		if (known == number) {
			return type;
		}
	}
	TORCH_CHECK(false, "dtype number ", number, " is not known");
}

std::string shape_of(const at::Tensor &tensor)
{
	std::ostringstream text;
	text << c10::toString(tensor.scalar_type()) << tensor.sizes();
	return text.str();
}

void describe(const at::Tensor &tensor, it_tensor *out)
{
	TORCH_CHECK(tensor.dim() <= IT_RANK_MAX, "a tensor has ", tensor.dim(), " dimensions, over the limit of ", IT_RANK_MAX);
	out->dtype = number_of(tensor.scalar_type());
	TORCH_CHECK(out->dtype != 0, "a tensor is of type ", c10::toString(tensor.scalar_type()),
	            ", which no client can hold; convert or dequantize it inside the model");
	out->rank = static_cast<uint32_t>(tensor.dim());
	for (int64_t axis = 0; axis < tensor.dim(); axis++) {
		out->dims[axis] = tensor.size(axis);
	}
	out->bytes = tensor.nbytes();
	out->data = static_cast<uint8_t *>(tensor.data_ptr());
}

std::optional<Slot> find(const torch::jit::Module &module, const std::string &path)
{
	Object object = module._ivalue();
	for (size_t from = 0;;) {
		const size_t dot = path.find('.', from);
		const auto index = object->type()->findAttributeSlot(path.substr(from, dot - from));
		if (!index) {
			return std::nullopt;
		}
		if (dot == std::string::npos) {
			return Slot{object, *index};
		}
		if (!object->getSlot(*index).isObject()) {
			return std::nullopt;
		}
		object = object->getSlot(*index).toObject();
		from = dot + 1;
	}
}

} // namespace it

using namespace it;

namespace {

/* Bytes that are read where they lie. */
struct Bytes : std::streambuf {
	Bytes(const void *data, size_t bytes)
	{
		char *begin = const_cast<char *>(static_cast<const char *>(data));
		setg(begin, begin, begin + bytes);
	}
	pos_type seekoff(off_type offset, std::ios_base::seekdir from, std::ios_base::openmode) override
	{
		char *base = from == std::ios_base::beg ? eback() : from == std::ios_base::cur ? gptr() : egptr();
		if (offset < eback() - base || offset > egptr() - base) {
			return pos_type(off_type(-1));
		}
		setg(eback(), base + offset, egptr());
		return gptr() - eback();
	}
	pos_type seekpos(pos_type position, std::ios_base::openmode mode) override
	{
		return seekoff(off_type(position), std::ios_base::beg, mode);
	}
};

void take(Form &form, torch::jit::Module module, const std::string &method)
{
	form.module = std::move(module);
	form.function = &form.module->get_method(method).function();
}

bool is_tensor(const c10::TypePtr &type)
{
	const auto *optional = type->castRaw<c10::OptionalType>();
	return (optional != nullptr ? optional->getElementType() : type)->kind() == c10::TypeKind::TensorType;
}

/* How many tensors a plain tuple holds; 0 for anything else. */
size_t tensors_of(const c10::TypePtr &type)
{
	const auto *tuple = type->castRaw<c10::TupleType>();
	if (tuple == nullptr || tuple->schema() != nullptr) {
		return 0;
	}
	for (const auto &element : tuple->elements()) {
		if (!is_tensor(element)) {
			return 0;
		}
	}
	return tuple->elements().size();
}

bool is_dict(const c10::TypePtr &type)
{
	const auto *dict = type->castRaw<c10::DictType>();
	return dict != nullptr && dict->getKeyType()->kind() == c10::TypeKind::StringType &&
	       dict->getValueType()->kind() == c10::TypeKind::TensorType;
}

std::string arguments(it_model *model)
{
	std::ostringstream text;
	const auto &arguments = model->forms[0].function->getSchema().arguments();
	for (size_t i = 1; i < arguments.size(); i++) {
		const auto &type = arguments[i].type();
		Argument argument;
		size_t tensors = 0;
		const char *kind = "other";
		if (is_tensor(type)) {
			argument.kind = Argument::TENSOR;
			kind = "tensor";
			tensors = 1;
		} else if (is_dict(type)) {
			argument.kind = Argument::DICT;
			kind = "dict";
		} else if ((tensors = tensors_of(type)) != 0) {
			argument.kind = Argument::TUPLE;
			kind = "tuple";
		}
		if (arguments[i].default_value()) {
			argument.otherwise = *arguments[i].default_value();
		} else if (type->kind() == c10::TypeKind::OptionalType) {
			argument.otherwise = c10::IValue();
		}
		text << kind << ' ' << tensors << ' ' << (argument.otherwise ? 1 : 0) << ' ' << arguments[i].name() << ' '
		     << type->repr_str() << '\n';
		argument.inputs.reserve(tensors);
		model->arguments.push_back(std::move(argument));
	}
	return text.str();
}

} // namespace

IT_EXPORT char *it_start(void)
{
	return guarded([] {
		at::set_num_threads(1);
		at::set_num_interop_threads(1);
	});
}

IT_EXPORT void it_free(char *text)
{
	free(text);
}

IT_EXPORT char *it_open(const void *file, size_t bytes, int device, const char *method, it_model **out, char **text)
{
	return guarded([&] {
		auto model = std::make_unique<it_model>();
		model->method = method;
		if (device >= 0) {
			model->device = c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
			const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
			TORCH_CHECK(device < guard.deviceCount(), "there is no device cuda:", device, ": this machine has ",
			            static_cast<int>(guard.deviceCount()), " that this process may use");
			model->stream = guard.getNewStream(model->device);
			for (int i = 0; i < 4; i++) {
				model->events.emplace_back(c10::kCUDA, c10::EventFlag::BACKEND_DEFAULT);
			}
		}
		Bytes buffer(file, bytes);
		std::istream stream(&buffer);
		auto module = torch::jit::load(stream, model->device);
		module.eval();
		TORCH_CHECK(module.find_method(method), "the module has no method `", method, "`");
		take(model->forms[0], std::move(module), model->method);
		*text = copy(arguments(model.get()));
		*out = model.release();
	});
}

IT_EXPORT void it_close(it_model *model)
{
	char *text = guarded([&] { delete model; });
	free(text);
}

IT_EXPORT char *it_add_input(it_model *model, size_t argument, const char *key, it_tensor *tensor)
{
	return guarded([&] {
		Input input;
		input.key = key;
		input.dims.assign(tensor->dims, tensor->dims + tensor->rank);
		const auto options = at::TensorOptions().dtype(type_of(tensor->dtype));
		/* libtorch's own allocators align to 64 bytes, and pin what a device shall read. */
		input.host = at::zeros(input.dims, options.pinned_memory(model->device.is_cuda()));
		input.device = model->device.is_cuda() ? at::zeros(input.dims, options.device(model->device)) : input.host;
		describe(input.host, tensor);
		model->arguments.at(argument).inputs.push_back(model->inputs.size());
		model->inputs.push_back(std::move(input));
	});
}

IT_EXPORT char *it_form(it_model *model, int form)
{
	return guarded([&] {
		auto module = torch::jit::freeze(*model->forms[0].module);
		if (form == 2) {
			std::vector<std::string> methods;
			module = torch::jit::optimize_for_inference(module, methods);
		}
		TORCH_CHECK(module.find_method(model->method), "its method is gone");
		for (auto &hidden : model->hidden) {
			hidden.slots[form] = find(module, hidden.path);
			TORCH_CHECK(hidden.slots[form], "freezing takes its state `", hidden.path, "` away");
		}
		take(model->forms[form], std::move(module), model->method);
	});
}

IT_EXPORT void it_use(it_model *model, int form)
{
	model->form = form;
}

IT_EXPORT void it_drop(it_model *model, int form)
{
	if (form != model->form) {
		for (auto &hidden : model->hidden) {
			hidden.slots[form].reset();
		}
		model->forms[form] = Form();
	}
}

IT_EXPORT char *it_precision(it_model *model, int precision)
{
	return guarded([&] { model->precision = precision; });
}
