# One word for each habit. `make demo` and `make test` need Python 3.11, a C++ compiler, nothing else.
PYTHON ?= python3
VENV := .venv
# An interpreter with llama-cpp-python and gguf (the extra `peers`); without it they are left out.
PEER_PYTHON ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
NATIVE_SOURCES := CMakeLists.txt $(wildcard native/*/*.cpp native/*/*.h)
CXX_FILES := $(wildcard native/*/*.cpp native/*/*.h)

.PHONY: demo test check native arm bench docs soak fuzz sanitize format clean

demo: $(INSTALLED)  ## the whole story on the embedded model
	$(BIN)/python -m pliant.recipes.demo

test: $(INSTALLED)  ## the whole suite
	$(BIN)/python -m pytest

check: $(INSTALLED)  ## style, types, docstrings, C++ format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/interrogate src
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(INSTALLED)  ## rewrite sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

native: $(INSTALLED)  ## build the extension again

arm: $(BIN)/cmake  ## the kernels cross-compiled for 64-bit ARM and run by qemu
	CMAKE=$< native/tests/run.sh aarch64

bench: $(INSTALLED)  ## every benchmark, then the tables and pictures made from them
	$(BIN)/python benchmarks/tale.py
	$(BIN)/python benchmarks/frontier.py
	$(BIN)/python benchmarks/bits.py $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python benchmarks/shift_add.py
	$(BIN)/python benchmarks/shift_add_mixed.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/kinds.py
	$(BIN)/python benchmarks/engine_scaling.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/kv_bits.py
	$(BIN)/python benchmarks/threads.py
	$(BIN)/python benchmarks/head_screen.py
	$(BIN)/python benchmarks/vs_peers.py $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON),--types none)
	$(BIN)/python benchmarks/interop.py $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python benchmarks/build_memory.py
	$(BIN)/python benchmarks/build_cost.py --data-free 1B
	$(BIN)/python benchmarks/predictions.py
	$(BIN)/python benchmarks/few_measurements.py
	$(BIN)/python benchmarks/sampling.py $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python benchmarks/serving.py $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python benchmarks/switching.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/tables.py

soak: $(INSTALLED)  ## half an hour of clients of all kinds against a server with too little memory
	mkdir -p .demo
	test -d .demo/soak.pliant || $(BIN)/pliant build models/tale-750k -o .demo/soak.pliant
	$(BIN)/python tests/serve/soak.py .demo/soak.pliant

docs: $(INSTALLED)  ## the generated parts of the documentation
	$(BIN)/python -m pliant.cli.reference
	$(BIN)/python -m pliant.serve.openapi
	$(BIN)/python benchmarks/tables.py

sanitize: build/sanitize/_native.so  ## the native suite and a short fuzz run under ASan and UBSan
	CMAKE=$(BIN)/cmake native/tests/run.sh sanitize
	$(SANITIZED) $(BIN)/python tests/fuzz/fuzz_artifact.py --mutations 2000 --native $<

fuzz: build/sanitize/_native.so  ## 100 000 damaged artifacts through loader and engine, and models through importers
	$(SANITIZED) $(BIN)/python tests/fuzz/fuzz_artifact.py --mutations 100000 --jobs 2 --native $<
	$(BIN)/python tests/fuzz/fuzz_imports.py --mutations 100000 --jobs 2

# Python itself is not instrumented, so the runtimes come first; its own leaks are not ours.
SANITIZED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0

$(BIN)/cmake: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt cmake ninja nanobind

build/sanitize/_native.so: $(INSTALLED) $(BIN)/cmake
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Debug \
	    -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g" -DPLIANT_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)
	$(BIN)/cmake --build build/sanitize --target _native
	cp build/sanitize/_native.*.so $@

clean:
	rm -rf build .demo $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/bin/python pyproject.toml constraints.txt $(NATIVE_SOURCES)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[torch,plot,serve,load,export,test,conformance,check]'
	touch $@
