/* State that a module keeps in its attributes: found by comparing, and made a pair of an input and an output. */
#include "model.hpp"

#include <functional>
#include <set>

using namespace it;

namespace {

uint64_t mix(uint64_t print, const void *data, size_t bytes)
{
	const auto *at = static_cast<const uint8_t *>(data);
	for (size_t i = 0; i < bytes; i++) {
		print = (print ^ at[i]) * 0x100000001b3u;
	}
	return print;
}

/* A fingerprint of any value: of what could carry something from one run to the next. */
uint64_t print_of(const c10::IValue &value, uint64_t print, const std::set<const void *> &parameters)
{
	const auto tag = value.tagKind();
	print = mix(print, tag.data(), tag.size());
	if (value.isTensor()) {
		const auto &tensor = value.toTensor();
		if (!tensor.defined() || parameters.count(tensor.unsafeGetTensorImpl()) != 0 || tensor.is_quantized()) {
			return print;
		}
		const auto here = tensor.cpu().contiguous();
		return mix(print, here.const_data_ptr(), here.nbytes());
	}
	if (value.isString()) {
		return mix(print, value.toStringRef().data(), value.toStringRef().size());
	}
	if (value.isList() || value.isTuple()) {
		const auto all = value.isList() ? value.toListRef().vec() : std::vector<c10::IValue>(value.toTupleRef().elements());
		for (const auto &one : all) {
			print = print_of(one, print, parameters);
		}
		return mix(print, "]", 1);
	}
	if (value.isGenericDict()) {
		for (const auto &entry : value.toGenericDict()) {
			print = print_of(entry.value(), print_of(entry.key(), print, parameters), parameters);
		}
		return mix(print, "}", 1);
	}
	if (value.isInt()) {
		const int64_t number = value.toInt();
		return mix(print, &number, sizeof number);
	}
	if (value.isDouble()) {
		const double number = value.toDouble();
		return mix(print, &number, sizeof number);
	}
	if (value.isBool()) {
		return mix(print, value.toBool() ? "t" : "f", 1);
	}
	return print;
}

using Visit = std::function<void(const std::string &path, bool parameter, const c10::IValue &value)>;

/* Every attribute of an object and of the objects in it, each object once. */
void walk(const Object &object, const std::string &prefix, std::set<const void *> &been, const Visit &visit)
{
	if (!been.insert(object.get()).second || object->slots().empty()) {
		return;
	}
	const auto type = object->type();
	for (size_t i = 0; i < type->numAttributes() && i < object->slots().size(); i++) {
		const auto &value = object->getSlot(i);
		const std::string path = prefix + type->getAttributeName(i);
		if (value.isObject()) {
			walk(value.toObject(), path + ".", been, visit);
		} else if (!value.isCapsule() && !value.isCustomClass()) {
			visit(path, type->is_parameter(i), value);
		}
	}
}

void every(it_model *model, const Visit &visit)
{
	std::set<const void *> been;
	walk(model->forms[0].module->_ivalue(), "", been, visit);
}

std::set<const void *> parameters_of(it_model *model)
{
	std::set<const void *> parameters;
	every(model, [&](const std::string &, bool parameter, const c10::IValue &value) {
		if (parameter && value.isTensor()) {
			parameters.insert(value.toTensor().unsafeGetTensorImpl());
		}
	});
	return parameters;
}

bool is_state(bool parameter, const c10::IValue &value)
{
	return value.isTensor() && value.toTensor().defined() && !parameter && !value.toTensor().is_quantized();
}

bool same(const at::Tensor &a, const at::Tensor &b)
{
	const auto x = a.cpu().contiguous(), y = b.cpu().contiguous();
	return x.nbytes() == y.nbytes() && memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

} // namespace

IT_EXPORT char *it_watch(it_model *model)
{
	return guarded([&] {
		const auto parameters = parameters_of(model);
		model->seen.clear();
		every(model, [&](const std::string &path, bool parameter, const c10::IValue &value) {
			Seen seen{value.tagKind(), {}, 0};
			if (is_state(parameter, value)) {
				seen.copy = value.toTensor().clone();
			} else if (!parameter) {
				seen.print = print_of(value, 0xcbf29ce484222325u, parameters);
			}
			model->seen.emplace(path, std::move(seen));
		});
	});
}

IT_EXPORT char *it_changes(it_model *model, char **text)
{
	return guarded([&] {
		std::ostringstream lines;
		const auto parameters = parameters_of(model);
		every(model, [&](const std::string &path, bool parameter, const c10::IValue &value) {
			const auto found = model->seen.find(path);
			if (found == model->seen.end()) {
				return;
			}
			const Seen &seen = found->second;
			if (seen.copy.defined() && is_state(parameter, value)) {
				const auto &now = value.toTensor();
				if (now.sizes() != seen.copy.sizes() || now.scalar_type() != seen.copy.scalar_type()) {
					lines << "shape " << path << ' ' << shape_of(seen.copy) << ' ' << shape_of(now) << '\n';
				} else if (!same(now, seen.copy)) {
					lines << "state " << path << '\n';
				}
			} else if (seen.type != value.tagKind() ||
			           (!parameter && seen.print != print_of(value, 0xcbf29ce484222325u, parameters))) {
				lines << "value " << path << ' ' << seen.type << ' ' << value.tagKind() << '\n';
			}
		});
		*text = copy(lines.str());
	});
}

IT_EXPORT char *it_hide(it_model *model, const char *path, it_tensor *in)
{
	return guarded([&] {
		Hidden hidden;
		hidden.path = path;
		hidden.slots[0] = find(*model->forms[0].module, path);
		const auto seen = model->seen.find(path);
		TORCH_CHECK(hidden.slots[0] && seen != model->seen.end(), "the module has no attribute `", path, "`");
		TORCH_CHECK(seen->second.copy.defined(), "the attribute `", path, "` is no tensor that could be state");
		hidden.own = seen->second.copy.clone();
		hidden.host = at::empty(hidden.own.sizes(), hidden.own.options().device(at::kCPU).pinned_memory(model->device.is_cuda()));
		hidden.host.copy_(hidden.own);
		describe(hidden.host, in);
		model->hidden.push_back(std::move(hidden));
	});
}

IT_EXPORT char *it_hidden(it_model *model, size_t k, it_tensor *out)
{
	return guarded([&] {
		auto &hidden = model->hidden.at(k);
		const auto &slot = hidden.slots[model->form];
		const auto value = slot->object->getSlot(slot->index);
		TORCH_CHECK(value.isTensor() && value.toTensor().defined(), "state `", hidden.path, "` is no tensor any more");
		const auto &now = value.toTensor();
		TORCH_CHECK(now.sizes() == hidden.host.sizes() && now.scalar_type() == hidden.host.scalar_type(), "state `",
		            hidden.path, "` was ", shape_of(hidden.host), " and is now ", shape_of(now));
		hidden.after = now.cpu().contiguous();
		describe(hidden.after, out);
	});
}

IT_EXPORT char *it_call(it_model *model, const char *method)
{
	return guarded([&] {
		TORCH_CHECK(model->forms[0].module->find_method(method), "the module has no method `", method, "`");
		model->forms[0].module->get_method(method)({});
	});
}
