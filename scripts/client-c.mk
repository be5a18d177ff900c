# How libinferd is built: C11, libc only, no Rust. Included by the Makefile; needs CARGO_TARGET_DIR and VERSION.
# Two sets of objects, because only the shared library needs position-independent code. The symbol map ends in
# `local: *`, so that what the header does not declare is not exported.

C_DIR = $(CARGO_TARGET_DIR)/c
C_SOURCES = $(wildcard client-c/*.c)
C_HEADERS = include/inferd.h $(wildcard client-c/*.h)
C_WARNINGS = -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror
CFLAGS ?= -O2 -g
C_FLAGS = -std=c11 $(CFLAGS) $(C_WARNINGS) -fvisibility=hidden -Iinclude
C_SONAME = libinferd.so.$(firstword $(subst ., ,$(VERSION)))
C_STATIC = $(C_DIR)/libinferd.a
C_SHARED = $(C_DIR)/libinferd.so.$(VERSION)
C_EXAMPLES = $(patsubst examples/c/%.c,$(C_DIR)/%,$(wildcard examples/c/*.c))
# The driver through which the scenarios use this client; tests/DRIVER.md.
C_DRIVER = $(if $(wildcard client-c/driver/driver.c),$(C_DIR)/driver_c)

# Clones may share the folder, and flags may change: what was built for others is not taken for ours.
C_STAMP = $(C_DIR)/built-for
$(C_STAMP): FORCE
	@mkdir -p $(@D)
	@echo '$(CURDIR) $(CC) $(CFLAGS) $(LDFLAGS)' | cmp -s - $@ || echo '$(CURDIR) $(CC) $(CFLAGS) $(LDFLAGS)' > $@
FORCE:

c: $(C_STATIC) $(C_SHARED) $(C_DIR)/libinferd.so ## libinferd, static and shared

$(C_DIR)/a/%.o: client-c/%.c $(C_HEADERS) $(C_STAMP)
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -c -o $@ $<

$(C_DIR)/so/%.o: client-c/%.c $(C_HEADERS) $(C_STAMP)
	@mkdir -p $(@D)
	$(CC) $(C_FLAGS) -fPIC -c -o $@ $<

$(C_STATIC): $(patsubst client-c/%.c,$(C_DIR)/a/%.o,$(C_SOURCES))
	rm -f $@
	$(AR) rcs $@ $^

$(C_SHARED): $(patsubst client-c/%.c,$(C_DIR)/so/%.o,$(C_SOURCES)) client-c/libinferd.map
	$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,$(C_SONAME) -Wl,--version-script,client-c/libinferd.map -o $@ \
	    $(filter %.o,$^) -pthread

$(C_DIR)/libinferd.so: $(C_SHARED)
	ln -sf $(notdir $(C_SHARED)) $(C_DIR)/$(C_SONAME)
	ln -sf $(C_SONAME) $@

# Examples and driver link the static library: they run without an installation.
$(C_DIR)/%: examples/c/%.c $(C_STATIC) include/inferd.h $(C_STAMP)
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(C_WARNINGS) -Iinclude -o $@ $< $(C_STATIC) -lm -pthread

$(C_DIR)/driver_c: $(wildcard client-c/driver/*.c) $(wildcard client-c/driver/*.h) $(C_STATIC) include/inferd.h $(C_STAMP)
	@mkdir -p $(@D)
	$(CC) -std=c11 $(CFLAGS) $(C_WARNINGS) -Iinclude -o $@ $(filter %.c,$^) $(C_STATIC) -lm -ldl -pthread
