# Two verbs: `make run` continues a prompt with the model that ships in models/, `make test` builds
# and passes the tests. Both install what is missing first (Debian 12).

BUILD ?= build-release
MODEL ?= models/young-readers
PROMPT ?= Once upon a time, there was a little
MAX_TOKENS ?= 200
JOBS ?= $(shell nproc)

.PHONY: run test fast slow setup build format clean

run: build-tool
	$(BUILD)/bin/braid run --model $(MODEL) --prompt "$(PROMPT)" --max-tokens $(MAX_TOKENS) --stats

test: build
	ctest --test-dir $(BUILD) --output-on-failure -LE slow -j$(JOBS)

fast: build
	ctest --test-dir $(BUILD) --output-on-failure -L fast -j$(JOBS)

slow: build
	ctest --test-dir $(BUILD) --output-on-failure -L slow

setup:
	@scripts/setup.sh

$(BUILD)/build.ninja: CMakeLists.txt CMakePresets.json | setup
	cmake --preset release -B $(BUILD)

.PHONY: build-tool
build-tool: $(BUILD)/build.ninja
	cmake --build $(BUILD) --target braid_tool

build: $(BUILD)/build.ninja
	cmake --build $(BUILD)

format:
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i

clean:
	rm -rf $(BUILD)
