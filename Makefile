# Two commands on a fresh machine (Python 3.11+, Rust, a C linker): `make demo` and `make test`. `make help` lists all.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := demo-run

.DEFAULT_GOAL := help
.PHONY: help setup build demo test quick check format docs bench fuzz memcheck audit clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mess needs Python 3.11 or newer, this is " + sys.version)'
	@command -v cargo >/dev/null || { echo "mess needs Rust (cargo) to build from source"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# the dependencies alone: the project itself is built once, by `make build`
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*p["dependencies"], *p["optional-dependencies"]["torch"], *p["optional-dependencies"]["dev"], sep="\n")' \
	  > $(VENV)/wanted.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock -r $(VENV)/wanted.txt
	touch $@

setup: $(VENV)/.ready ## make .venv with everything, at the versions of requirements.lock

build: setup ## compile the Rust core into .venv (release)
	@VIRTUAL_ENV="$$(cd "$(VENV)" && pwd)" $(BIN)/maturin develop --release --quiet

demo: build ## the whole job on drawn scenes, about three minutes; pictures in demo-run/pictures
	$(BIN)/mess demo --out $(RUN)

# a process a core, and one thread of torch in each: two pools of threads on the same cores wait for each other
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

test: build ## all tests, Rust and Python
	cargo test --quiet --workspace
	$(PYTEST)

quick: build ## the tests that take seconds
	HYPOTHESIS_PROFILE=quick $(PYTEST) -m "not slow"

check: build ## lint, format, types, stubs, import layers: what CI checks
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest mess_core._mess_core
	$(BIN)/lint-imports

format: setup ## rewrite the code in the house format
	cargo fmt --all
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: setup ## the documentation site, in build/site; a broken link or docstring is an error
	rm -rf build/docs-source && mkdir -p build/docs-source/benches
	cp -r README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md LICENSE docs build/docs-source
	cp -r benches/record build/docs-source/benches
	NO_COLOR=1 $(BIN)/zensical build --clean --strict

bench: build ## time the core against OpenCV, SciPy and torch; prints a table and writes benches/record/
	$(BIN)/python benches/python/exit_policy.py

# what `cargo fuzz` passes, less the sanitizer, which needs nightly; the target keeps it from build scripts
FUZZ_SECONDS ?= 60
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
FUZZ_FLAGS := --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares

fuzz: build ## fuzz the core and every file reader for FUZZ_SECONDS each (Linux); findings go to fuzz-findings/
	cd rust/fuzz && RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --quiet --release --target $(HOST)
	@mkdir -p fuzz-findings
	@$(BIN)/python -m tests.fuzz --list > rust/fuzz/target/python-targets 2> rust/fuzz/target/list.log \
	  || { cat rust/fuzz/target/list.log; exit 1; }
	@{ for t in confidence maps search journal; do echo "rust/fuzz/target/$(HOST)/release/$$t -max_len=256"; done; \
	   for t in $$(cat rust/fuzz/target/python-targets); do echo "$(BIN)/python -m tests.fuzz $$t"; done; } \
	  | RAYON_NUM_THREADS=1 MESS_CORE_THREADS=1 OMP_NUM_THREADS=1 xargs -P 2 -I COMMAND sh -c \
	  'log=$$(COMMAND -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=4096 \
	  -artifact_prefix=fuzz-findings/ 2>&1) && echo "COMMAND: $$(echo "$$log" | grep -a "^Done")" || { echo "COMMAND"; echo "$$log" | tail -40; exit 255; }'

memcheck: ## the core's tests under valgrind, which must be installed
	cargo test --quiet --no-run -p mess-core
	cargo test --no-run -p mess-core --message-format=json 2>/dev/null \
	  | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' > target/memcheck
	while IFS= read -r t; do RAYON_NUM_THREADS=2 PROPTEST_CASES=4 \
	  valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite \
	  "$$t" --test-threads=1 --skip the_peak || exit; done < target/memcheck

audit: setup ## compare the locked dependencies with the advisory databases (needs the network and cargo-audit)
	cargo audit
	cd rust/fuzz && cargo audit
	$(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip

clean: ## remove what was built here, the virtual environment included
	rm -rf $(VENV) build target rust/fuzz/target fuzz-findings dist $(RUN)
