# The Python client's targets. Included by the Makefile; needs C_DIR, BIN_DIR and CARGO_TARGET_DIR.
.PHONY: wheel walk test-export bench-py

WHEEL_DIR = $(CARGO_TARGET_DIR)/wheels

wheel: c ## the Python package with libinferd in it; its path is the last line
	@$(PYTHON) scripts/build_wheel.py "$(C_SHARED)" "$(WHEEL_DIR)"

# WALK_OPTIONS: those of examples/walk/walk.py.
walk: build ## a robot that walks in MuJoCo with inferd as its brain
	@sh scripts/walk.sh "$(CARGO_TARGET_DIR)" $(WALK_OPTIONS)

bench-py: build policy ## a call in Python beside the same call in C, and beside ONNX Runtime in the same process
	@$(PYTHON) client-py/bench/run.py

test-export: build ## tools/export with the real frameworks: 5 GB of downloads, so no part of the suites
	$(PYTHON) client-py/tests/run.py export
	$(PYTHON) client-py/tests/run.py export --env tensorflow
	$(PYTHON) client-py/tests/run.py client-py --env torch
