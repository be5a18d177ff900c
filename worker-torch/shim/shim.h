/* The C interface between the worker, in Rust, and libtorch, in C++.
 *
 * It exists because what serving needs of TorchScript (attributes of a module, freezing, inference mode, streams) has no
 * C interface of libtorch's own. Mechanism only: what is tried, compared and chosen is decided in Rust.
 *
 * Errors: a function that returns char * returns NULL on success, else a message that it_free frees. No exception leaves.
 * Threads: a model is used by one thread at a time, and may move between calls. Ownership: it_open gives a model, it_close
 * takes it back; pointers to inputs and hidden values live as long as the model, pointers to outputs until its next run. */
#ifndef INFERD_TORCH_SHIM_H
#define INFERD_TORCH_SHIM_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define IT_RANK_MAX 8
/* The forms of a module that it_form makes: as loaded, frozen, frozen and optimised for inference. */
#define IT_FORMS 3

struct it_model;

/* A tensor's description; dtype is the number of inferd's ABI. */
struct it_tensor {
	uint8_t *data;
	uint64_t bytes;
	int64_t dims[IT_RANK_MAX];
	uint32_t rank;
	uint32_t dtype;
};

/* Once per process, before anything else: one thread, no pool. */
char *it_start(void);
void it_free(char *text);

/* A file's bytes become a model on a device (-1: the CPU); its method is what a step calls. text: the method's arguments,
 * a line `KIND TENSORS OPTIONAL NAME TYPE` each, KIND being tensor, tuple, dict or other, TENSORS how many inputs it is made
 * of (0: any number), OPTIONAL 1 where the method runs without. */
char *it_open(const void *file, size_t bytes, int device, const char *method, struct it_model **model, char **text);
void it_close(struct it_model *model);
/* Whether the device still answers; a CUDA error that sticks makes it say no for ever. */
int it_device_works(struct it_model *model);

/* Adds an input of this dtype and shape: an argument of that number, its next element if it is a tuple, an entry of this
 * key if it is a dict. An optional argument without inputs gets its default. The buffer is 64-byte aligned. */
char *it_add_input(struct it_model *model, size_t argument, const char *key, struct it_tensor *tensor);

/* Every attribute of the module is remembered (it_watch), then compared (it_changes): a line each that changed:
 * `state PATH`, `shape PATH FROM TO`, `value PATH TYPE`. */
char *it_watch(struct it_model *model);
char *it_changes(struct it_model *model, char **text);
/* Makes the tensor attribute at path hidden state; in: what is put in before a run. */
char *it_hide(struct it_model *model, const char *path, struct it_tensor *in);
/* The value of hidden state k: after a run, or as a method left it. */
char *it_hidden(struct it_model *model, size_t k, struct it_tensor *out);
/* Calls a method without arguments on the module as loaded. */
char *it_call(struct it_model *model, const char *method);

/* Makes a form; a form that cannot hold the hidden state is refused. it_use runs it from here on; it_drop frees its weights. */
char *it_form(struct it_model *model, int form);
void it_use(struct it_model *model, int form);
void it_drop(struct it_model *model, int form);

/* 0: as the file says, 1: f16, 2: bf16. Outputs keep the dtypes that they had at it_settle. */
char *it_precision(struct it_model *model, int precision);
/* What the last run gave is what every run gives: other shapes are errors from here on. */
void it_settle(struct it_model *model);

void it_seed(uint64_t seed);
char *it_run(struct it_model *model);
size_t it_outputs(struct it_model *model);
/* Output i of the last run, in the order of tuples, lists and dicts; key: its key in a dict, or empty. */
void it_output(struct it_model *model, size_t i, struct it_tensor *out, const char **key);
/* Nanoseconds of the last run on a device: to it, on it, from it. 0: it ran on the CPU. */
int it_times(struct it_model *model, uint64_t times[3]);

#ifdef __cplusplus
}
#endif
#endif
