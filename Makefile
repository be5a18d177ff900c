# inferd: every way in. `make help` lists the targets. Needs Rust, gcc, make and python3 with pip; `make deps`
# adds what the full tests want. GNU make; the recipes keep to a POSIX shell and tools, and install(1). Nothing is written into the clone
# (but for what `make bench` measured, in docs): all that is built lies below CARGO_TARGET_DIR, which several clones may share.

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

.PHONY: all build failpoints torch ort c examples policy demo test test-gpu bench bench-full bench-act bench-peers bench-tch lint fmt deps install install-files \
    install-torch uninstall deb clean campaign help
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

failpoints: ## the programs that tests kill at named steps, beside the ordinary ones; `make test` builds them too
	sh scripts/build_failpoints.sh

test-gpu: ## the checks that need a CUDA device; scripts/test_gpu.sh --carry FOLDER builds them for another machine
	sh scripts/test_gpu.sh

campaign: build examples $(C_DRIVER) ## long counts: at most CAMPAIGN_S (600) seconds a scenario, goes on where it stopped; SUITES="reloads ..."
	INFERD_CAMPAIGN=1 CAMPAIGN_S="$(or $(CAMPAIGN_S),600)" sh scripts/run_tests.sh $(SUITES)

# What is measured. A choice of programs or rows goes into the build folder; all of it is the page in docs.
BENCH ?= data_path loads onnx reloads
PEERS ?= 1
BENCH_SCALE ?= 1
BENCH_DIR = $(CARGO_TARGET_DIR)/bench
BENCH_ROOT = $(BENCH_DIR)/root
BENCH_LINES = $(BENCH_DIR)/lines.jsonl
BENCH_DOCS ?= $(if $(INFERD_BENCH_ROWS)$(filter-out file,$(origin BENCH)),$(BENCH_DIR)/docs,docs)
BENCH_ENV = INFERD_BENCH_JSON="$(BENCH_LINES)" INFERD_BENCH_SCALE="$(BENCH_SCALE)" INFERD_BENCH_DOCS="$(abspath $(BENCH_DOCS))" \
    INFERD_BIN_DIR="$(BENCH_ROOT)$(PREFIX)/bin" INFERD_C_DRIVER="$(C_DRIVER)" INFERD_GO2_POLICY="$(POLICY_DIR)/policy.onnx"

bench: build policy $(C_DRIVER) ## everything beside the physical limit of the same run (15 minutes); writes docs/benchmarks.md and its plots
	for worker in $(LIBRARY_WORKERS); do sh scripts/build_worker.sh --or-skip $$worker || exit 1; done
	$(MAKE) --no-print-directory install-files DESTDIR="$(BENCH_ROOT)" >/dev/null
	mkdir -p "$(BENCH_DOCS)" && { [ "$(BENCH_DOCS)" = docs ] || cp docs/benchmarks.md "$(BENCH_DOCS)/"; }
	$(CARGO) bench --locked --workspace --no-run $(addprefix --bench ,$(BENCH) report)
	rm -f "$(BENCH_LINES)"
	for bench in $(BENCH); do $(BENCH_ENV) $(CARGO) bench --locked --workspace --bench $$bench || exit 1; done
	if [ "$(PEERS)" != 0 ] && [ -e scripts/bench_peers.sh ]; then $(BENCH_ENV) sh scripts/bench_peers.sh "$(POLICY_DIR)/policy.onnx" || exit 1; fi
	$(BENCH_ENV) $(CARGO) bench --locked --workspace --bench report

bench-full: ## the same with eight times the counts: an hour
	$(MAKE) bench BENCH_SCALE=8

# BENCH_ACT: options of scripts/bench_act.py.
bench-act: build ## ACT with a VGA camera, served by tract, ort and torch in turns (ten minutes; PyTorch and LeRobot, 5 GB)
	for worker in $(LIBRARY_WORKERS); do sh scripts/build_worker.sh --or-skip $$worker || exit 1; done
	@$(PYTHON) scripts/bench_act.py $(BENCH_ACT)

bench-peers: build policy ## the systems that people use instead, beside inferd: iceoryx2, zenoh, gRPC, Flask and others (six minutes)
	sh scripts/bench_peers.sh "$(POLICY_DIR)/policy.onnx"

bench-tch: torch ## what docs/decisions/0002 cites: FILE=x.pt INPUT=obs=f32:1,47 through the crate tch and through the worker
	sh scripts/bench_tch.sh "$(FILE)" "$(or $(INPUT),obs=f32:1,47)" --outputs actions --option reset_method=reset_memory

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

# Where things go. Packages set PREFIX=/usr and their LIBDIR; units, sysusers.d and tmpfiles.d are found below any prefix.
LIBDIR ?= $(PREFIX)/lib
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd
D_BIN = $(DESTDIR)$(PREFIX)/bin
D_LIBEXEC = $(DESTDIR)$(PREFIX)/libexec/inferd
D_LIB = $(DESTDIR)$(LIBDIR)
D_INCLUDE = $(DESTDIR)$(PREFIX)/include
D_SHARE = $(DESTDIR)$(PREFIX)/share
D_DOC = $(D_SHARE)/doc/inferd
D_MAN = $(D_SHARE)/man
D_UNITS = $(DESTDIR)$(UNITDIR)
# Where inferd-worker-torch looks, from libexec/inferd.
D_TORCH = $(DESTDIR)$(PREFIX)/lib/inferd
D_CONFIG = $(DESTDIR)$(SYSCONFDIR)/inferd
DOCS = README.md ARCHITECTURE.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE
UNITS = inferd.service inferd-attach.socket inferd-control.socket inferd-stopped.target
PROFILES = rt gpu jit notify-reload
# A worker with an inference library of its own is installed where it was built (`make torch`, `make ort`).
MORE_WORKERS = $(wildcard $(BIN_DIR)/inferd-worker-torch $(BIN_DIR)/inferd-worker-ort)
POINT_AT_PREFIX = sed -e 's|/usr/bin/|$(PREFIX)/bin/|' -e 's|/usr/share/|$(PREFIX)/share/|'

install: build install-files ## below DESTDIR/PREFIX: binaries, library, header, units, manual pages, completions, docs

install-files: # what `install` does with what was built already
	install -d "$(D_BIN)" "$(D_LIBEXEC)" "$(D_LIB)/pkgconfig" "$(D_INCLUDE)" "$(D_DOC)/examples" "$(D_SHARE)/inferd/profiles" \
	    "$(D_UNITS)/system" "$(D_UNITS)/user" "$(D_UNITS)/../sysusers.d" "$(D_UNITS)/../tmpfiles.d" "$(D_MAN)/man1" \
	    "$(D_SHARE)/bash-completion/completions" "$(D_SHARE)/zsh/site-functions" "$(D_SHARE)/fish/vendor_completions.d" \
	    "$(D_CONFIG)/inferd.d"
	install -m 755 "$(BIN_DIR)/inferd" "$(BIN_DIR)/inferctl" "$(D_BIN)/"
	install -m 755 "$(BIN_DIR)/inferd-worker" $(MORE_WORKERS) "$(D_LIBEXEC)/"
	if [ -e "$(BIN_DIR)/libonnxruntime.so.1" ]; then \
	    install -d "$(D_DOC)/onnxruntime" && \
	    install -m 644 "$(BIN_DIR)/libonnxruntime.so.1" "$(D_LIBEXEC)/" && \
	    find "$(BIN_DIR)/onnxruntime-notices" -type f -exec install -m 644 {} "$(D_DOC)/onnxruntime/" \; ; \
	fi
	install -m 644 include/inferd.h "$(D_INCLUDE)/"
	install -m 644 "$(C_STATIC)" "$(D_LIB)/"
	install -m 755 "$(C_SHARED)" "$(D_LIB)/"
	ln -sf $(notdir $(C_SHARED)) "$(D_LIB)/$(C_SONAME)"
	ln -sf $(C_SONAME) "$(D_LIB)/libinferd.so"
	sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@LIBDIR@|$(LIBDIR)|g' -e 's|@VERSION@|$(VERSION)|g' client-c/inferd.pc.in > "$(D_LIB)/pkgconfig/inferd.pc"
	for unit in $(UNITS); do $(POINT_AT_PREFIX) systemd/$$unit > "$(D_UNITS)/system/$$unit" && \
	    $(POINT_AT_PREFIX) systemd/user/$$unit > "$(D_UNITS)/user/$$unit" || exit 1; done
	for profile in $(PROFILES); do $(POINT_AT_PREFIX) systemd/profiles/$$profile.conf > "$(D_SHARE)/inferd/profiles/$$profile.conf" || exit 1; done
	install -m 644 systemd/sysusers.d/inferd.conf "$(D_UNITS)/../sysusers.d/"
	install -m 644 systemd/tmpfiles.d/inferd.conf "$(D_UNITS)/../tmpfiles.d/"
	[ -e "$(D_CONFIG)/inferd.toml" ] || install -m 644 packaging/inferd.toml "$(D_CONFIG)/"
	"$(BIN_DIR)/inferctl" man --dir "$(D_MAN)/man1"
	$(PYTHON) packaging/man/make_man.py --inferd "$(BIN_DIR)/inferd" --version $(VERSION) --out "$(D_MAN)"
	"$(BIN_DIR)/inferctl" completions bash > "$(D_SHARE)/bash-completion/completions/inferctl"
	"$(BIN_DIR)/inferctl" completions zsh > "$(D_SHARE)/zsh/site-functions/_inferctl"
	"$(BIN_DIR)/inferctl" completions fish > "$(D_SHARE)/fish/vendor_completions.d/inferctl.fish"
	install -m 644 $(DOCS) docs/*.md "$(D_DOC)/"
	install -d "$(D_DOC)/plots" && install -m 644 docs/plots/*.svg "$(D_DOC)/plots/"
	install -m 644 examples/config/inferd.toml "$(D_DOC)/examples/"
	install -m 644 examples/models/go2/model.toml "$(D_DOC)/examples/go2.model.toml"

install-torch: torch ## below DESTDIR/PREFIX: inferd-worker-torch and the CPU libraries of libtorch (460 MB)
	install -d "$(D_LIBEXEC)" "$(D_TORCH)/libtorch/lib" "$(D_TORCH)/nvidia/cu13/lib"
	install -m 755 "$(BIN_DIR)/inferd-worker-torch" "$(D_LIBEXEC)/"
	torch=$$($(PYTHON) scripts/fetch_libtorch.py "$(CACHE_DIR)/libtorch-2.11.0") && \
	    install -m 644 "$$torch"/lib/libc10.so "$$torch"/lib/libtorch_cpu.so "$$torch"/lib/libgomp.so.1 "$(D_TORCH)/libtorch/lib/" && \
	    install -m 644 "$$torch"/version.py "$(D_TORCH)/libtorch/" && \
	    install -m 644 "$$torch"/../nvidia/cu13/lib/libcupti.so.13 "$$torch"/../nvidia/cu13/lib/libcudart.so.13 "$(D_TORCH)/nvidia/cu13/lib/"

uninstall: ## what `install` with the same DESTDIR and PREFIX put there; never configuration or models
	rm -f "$(D_BIN)/inferd" "$(D_BIN)/inferctl" "$(D_INCLUDE)/inferd.h" "$(D_LIB)/$(notdir $(C_STATIC))" \
	    "$(D_LIB)/$(notdir $(C_SHARED))" "$(D_LIB)/$(C_SONAME)" "$(D_LIB)/libinferd.so" "$(D_LIB)/pkgconfig/inferd.pc" \
	    $(foreach unit,$(UNITS),"$(D_UNITS)/system/$(unit)" "$(D_UNITS)/user/$(unit)") \
	    "$(D_UNITS)/../sysusers.d/inferd.conf" "$(D_UNITS)/../tmpfiles.d/inferd.conf" \
	    "$(D_MAN)/man1/inferctl.1" "$(D_MAN)"/man1/inferctl-*.1 "$(D_MAN)"/man3/inferd_*.3 "$(D_MAN)/man3/inferd.h.3" \
	    "$(D_MAN)/man5/inferd.toml.5" "$(D_MAN)/man7/inferd.7" "$(D_MAN)/man8/inferd.8" \
	    "$(D_SHARE)/bash-completion/completions/inferctl" "$(D_SHARE)/zsh/site-functions/_inferctl" \
	    "$(D_SHARE)/fish/vendor_completions.d/inferctl.fish"
	rm -rf "$(D_LIBEXEC)" "$(D_DOC)" "$(D_SHARE)/inferd" "$(D_TORCH)"

# Several versions may be built side by side: an upgrade is tested with a higher one.
DEB_VERSION ?= $(VERSION)
DEB_OUT ?= $(CARGO_TARGET_DIR)/deb

deb: build ## Debian packages from what was built, into CARGO_TARGET_DIR/deb
	CARGO_TARGET_DIR="$(CARGO_TARGET_DIR)" sh packaging/build_deb.sh "$(DEB_VERSION)" "$(DEB_OUT)"
