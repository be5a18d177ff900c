# inferd: every way in. `make help` lists the targets. Needs Rust, gcc, make and python3 with pip; `make deps`
# adds what the full tests want. GNU make; the recipes keep to a POSIX shell and tools, and install(1). Nothing is written into the clone:
# all that is built lies below CARGO_TARGET_DIR, which several clones may share.

CACHE_DIR = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/inferd
CARGO_TARGET_DIR ?= $(CACHE_DIR)/target
export CARGO_TARGET_DIR CACHE_DIR

CARGO ?= cargo
CC ?= cc
AR ?= ar
PYTHON ?= python3
PREFIX ?= /usr/local
DESTDIR ?=

VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)
BIN_DIR = $(CARGO_TARGET_DIR)/release
POLICY_DIR = $(CARGO_TARGET_DIR)/policies/go2

.PHONY: all build torch ort c examples policy demo test test-gpu bench bench-peers lint fmt deps install install-torch uninstall clean campaign help
.DEFAULT_GOAL := build

help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/\1	\2/p' Makefile scripts/client-py.mk | while IFS='	' read -r target text; do printf '  %-10s %s\n' "$$target" "$$text"; done

build: c ## daemon, worker, inferctl (release) and the C library
	$(CARGO) build --release --locked --workspace --bins --examples

torch: ## inferd-worker-torch, for TorchScript; finds or fetches libtorch (500 MB in the cache folder)
	sh scripts/build_worker.sh torch

ort: build ## ONNX Runtime's library for inferd-worker-ort, fetched by hash (24 MB) unless ORT_DYLIB_PATH names one
	sh scripts/build_worker.sh ort

include scripts/client-c.mk
include scripts/client-py.mk

policy: ## the Go2 walking policy, checked by hash, into the build folder
	@$(PYTHON) scripts/fetch_policy.py "$(POLICY_DIR)"

examples: build $(C_EXAMPLES) ## both robot examples, Rust and C

demo: examples policy ## a policy served at 1 kHz, reloaded and killed in between; then a robot that walks
	$(PYTHON) examples/demo/demo.py --bin-dir "$(BIN_DIR)" --c-dir "$(C_DIR)" --policy "$(POLICY_DIR)/policy.onnx"
	@echo; echo 'ten seconds of a Go2 with inferd as its brain:'
	@sh scripts/walk.sh "$(CARGO_TARGET_DIR)" --realtime --reload-at 4 --kill-client-at 7 --picture "$(CARGO_TARGET_DIR)/walk.png" \
	    --strip "$(CARGO_TARGET_DIR)/walk-strip.png"

# Workers with a library of their own, which the tests build too: `make test TORCH=0` leaves one out.
LIBRARY_WORKERS = torch ort
TORCH ?= 1
ORT ?= 1
export TORCH ORT

test: build examples $(C_DRIVER) ## every suite; prints `N passed, N failed, N skipped` at the end (TORCH=0, ORT=0: without those)
	for worker in $(LIBRARY_WORKERS); do sh scripts/build_worker.sh --or-skip $$worker || exit 1; done
	sh scripts/run_tests.sh

test-gpu: ## the checks that need a CUDA device; scripts/test_gpu.sh --carry FOLDER builds them for another machine
	sh scripts/test_gpu.sh

campaign: build examples $(C_DRIVER) ## long counts: at most CAMPAIGN_S (600) seconds a scenario, goes on where it stopped; SUITES="reloads ..."
	INFERD_CAMPAIGN=1 CAMPAIGN_S="$(or $(CAMPAIGN_S),600)" sh scripts/run_tests.sh $(SUITES)

BENCH ?= data_path onnx reloads
bench: build $(C_DRIVER) ## round trips beside the ping-pong of the same run, sizes, both ONNX backends, a thousand reloads; BENCH=reloads for some
	for bench in $(BENCH); do $(CARGO) bench --locked --workspace --bench $$bench || exit 1; done

bench-peers: ## what docs/decisions/0001 cites: the textbook crates beside the ping-pong
	$(CARGO) run --release --locked --quiet --manifest-path tests/peers/Cargo.toml

lint: ## formatting, clippy, licences, the tree's own rules
	sh scripts/check_tree.sh
	sh scripts/run_lint.sh

fmt: ## rewrites the Rust sources as rustfmt.toml says
	$(CARGO) fmt --all

deps: ## system packages that the full tests want (root)
	sh scripts/deps.sh

clean: ## what was built, in CARGO_TARGET_DIR
	$(CARGO) clean
	rm -rf "$(C_DIR)" "$(POLICY_DIR)"

BINDIR = $(DESTDIR)$(PREFIX)/bin
LIBEXECDIR = $(DESTDIR)$(PREFIX)/libexec/inferd
LIBDIR = $(DESTDIR)$(PREFIX)/lib
INCLUDEDIR = $(DESTDIR)$(PREFIX)/include
DOCDIR = $(DESTDIR)$(PREFIX)/share/doc/inferd
MANDIR = $(DESTDIR)$(PREFIX)/share/man/man1
BASH_COMPLETIONS = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSH_COMPLETIONS = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISH_COMPLETIONS = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
DOCS = README.md ARCHITECTURE.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE

install: build ## below DESTDIR/PREFIX: binaries, library, header, units, manual pages, completions, docs
	install -d "$(BINDIR)" "$(LIBEXECDIR)" "$(LIBDIR)/pkgconfig" "$(INCLUDEDIR)" "$(DOCDIR)/examples" \
	    "$(LIBDIR)/systemd/system" "$(LIBDIR)/systemd/user" "$(LIBDIR)/sysusers.d" "$(MANDIR)" \
	    "$(BASH_COMPLETIONS)" "$(ZSH_COMPLETIONS)" "$(FISH_COMPLETIONS)"
	install -m 755 "$(BIN_DIR)/inferd" "$(BIN_DIR)/inferctl" "$(BINDIR)/"
	install -m 755 "$(BIN_DIR)/inferd-worker" "$(BIN_DIR)/inferd-worker-ort" "$(LIBEXECDIR)/"
	if [ -e "$(BIN_DIR)/libonnxruntime.so.1" ]; then \
	    install -d "$(DOCDIR)/onnxruntime" && \
	    install -m 644 "$(BIN_DIR)/libonnxruntime.so.1" "$(LIBEXECDIR)/" && \
	    find "$(BIN_DIR)/onnxruntime-notices" -type f -exec install -m 644 {} "$(DOCDIR)/onnxruntime/" \; ; \
	fi
	install -m 644 include/inferd.h "$(INCLUDEDIR)/"
	install -m 644 "$(C_STATIC)" "$(LIBDIR)/"
	install -m 755 "$(C_SHARED)" "$(LIBDIR)/"
	ln -sf $(notdir $(C_SHARED)) "$(LIBDIR)/$(C_SONAME)"
	ln -sf $(C_SONAME) "$(LIBDIR)/libinferd.so"
	sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@VERSION@|$(VERSION)|g' client-c/inferd.pc.in > "$(LIBDIR)/pkgconfig/inferd.pc"
	sed 's|^ExecStart=/usr/bin/|ExecStart=$(PREFIX)/bin/|' systemd/inferd.service > "$(LIBDIR)/systemd/system/inferd.service"
	sed 's|^ExecStart=/usr/bin/|ExecStart=$(PREFIX)/bin/|' systemd/user/inferd.service > "$(LIBDIR)/systemd/user/inferd.service"
	install -m 644 systemd/inferd.sysusers.conf "$(LIBDIR)/sysusers.d/inferd.conf"
	"$(BIN_DIR)/inferctl" man --dir "$(MANDIR)"
	"$(BIN_DIR)/inferctl" completions bash > "$(BASH_COMPLETIONS)/inferctl"
	"$(BIN_DIR)/inferctl" completions zsh > "$(ZSH_COMPLETIONS)/_inferctl"
	"$(BIN_DIR)/inferctl" completions fish > "$(FISH_COMPLETIONS)/inferctl.fish"
	install -m 644 $(DOCS) docs/*.md "$(DOCDIR)/"
	install -m 644 examples/config/inferd.toml "$(DOCDIR)/examples/"
	install -m 644 examples/models/go2/model.toml "$(DOCDIR)/examples/go2.model.toml"

install-torch: torch ## below DESTDIR/PREFIX: inferd-worker-torch and the CPU libraries of libtorch (460 MB)
	install -d "$(LIBEXECDIR)" "$(LIBDIR)/inferd/libtorch/lib" "$(LIBDIR)/inferd/nvidia/cu13/lib"
	install -m 755 "$(BIN_DIR)/inferd-worker-torch" "$(LIBEXECDIR)/"
	torch=$$($(PYTHON) scripts/fetch_libtorch.py "$(CACHE_DIR)/libtorch-2.11.0") && \
	    install -m 644 "$$torch"/lib/libc10.so "$$torch"/lib/libtorch_cpu.so "$$torch"/lib/libgomp.so.1 "$(LIBDIR)/inferd/libtorch/lib/" && \
	    install -m 644 "$$torch"/version.py "$(LIBDIR)/inferd/libtorch/" && \
	    install -m 644 "$$torch"/../nvidia/cu13/lib/libcupti.so.13 "$$torch"/../nvidia/cu13/lib/libcudart.so.13 "$(LIBDIR)/inferd/nvidia/cu13/lib/"

uninstall: ## what `install` with the same DESTDIR and PREFIX put there; never configuration or models
	rm -f "$(BINDIR)/inferd" "$(BINDIR)/inferctl" "$(INCLUDEDIR)/inferd.h" "$(LIBDIR)/$(notdir $(C_STATIC))" \
	    "$(LIBDIR)/$(notdir $(C_SHARED))" "$(LIBDIR)/$(C_SONAME)" "$(LIBDIR)/libinferd.so" \
	    "$(LIBDIR)/pkgconfig/inferd.pc" "$(LIBDIR)/systemd/system/inferd.service" \
	    "$(LIBDIR)/systemd/user/inferd.service" "$(LIBDIR)/sysusers.d/inferd.conf" \
	    "$(MANDIR)/inferctl.1" "$(MANDIR)"/inferctl-*.1 "$(BASH_COMPLETIONS)/inferctl" \
	    "$(ZSH_COMPLETIONS)/_inferctl" "$(FISH_COMPLETIONS)/inferctl.fish"
	rm -rf "$(LIBEXECDIR)" "$(DOCDIR)" "$(LIBDIR)/inferd"
