# `make help` lists the targets. Everything is built with the one release profile, for tools and tests alike.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/muster
export MUSTER_TEST_CACHE ?= $(CACHE)/test

.PHONY: help build test test-rust test-loom test-miri test-tsan test-helgrind test-sim test-golden test-sdk demo bench bench-collectives lint doc libtorch python data rivals preconditions

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | column -t -s "$$(printf '\t')"

preconditions:
	@scripts/preconditions.sh

build: libtorch ## Build muster and muster-worker into target/release
	cargo build --release --workspace --locked

test: preconditions build python data test-rust test-loom test-sim test-golden test-sdk ## Set up and run every test

test-rust: ## Unit, property, simulation and black-box tests
	@scripts/strace.sh
	cargo test --release --workspace --locked

test-loom: ## Go through the orders in which ranks and threads can meet in shared memory
	@# Its own folder: the flag would have everything else built anew. RUSTFLAGS of the caller do not come along.
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/loom \
		cargo test --release --locked -p muster-collectives --lib -- loom_

test-miri: ## Interpret the collectives' unit tests with Miri, where it is installed
	@scripts/checkers.sh miri

test-tsan: ## Watch the collectives' tests with ThreadSanitizer, where it is installed
	@scripts/checkers.sh tsan

test-helgrind: ## Watch ranks as processes with valgrind's helgrind, where it is installed
	@scripts/checkers.sh helgrind

test-sim: ## Run 2,000 simulated worlds, and find each planted bug
	@# First: its build leaves a muster-sim with planted bugs, which the build after it replaces.
	cargo test --release --workspace --locked --features muster-sim/planted --test planted -- --nocapture
	cargo build --release --workspace --locked
	target/release/muster-sim fuzz --seeds 0..2000

test-golden: ## Replay the recordings of kube-apiserver and of the training operator
	python3 tests/golden/check.py --muster target/release/muster
	python3 tests/golden/replay_scenarios.py --muster target/release/muster

test-sdk: ## Run the official kubeflow-training client against muster
	.venv/bin/python -m pytest -q tests/sdk

demo: build data ## Train Fashion-MNIST from a PyTorchJob and check the result
	scripts/demo.sh

bench: build ## Run the benchmarks, results under benches/results
	cargo bench --workspace --locked --bench control-plane

bench-collectives: build rivals ## Measure all-reduce beside gloo and Open MPI, results under benches/results
	scripts/bench-collectives.sh

lint: ## Formatting and lints, as CI runs them
	cargo fmt --check
	cargo clippy --release --workspace --exclude muster-worker --all-targets --locked -- -D warnings

doc: ## Build the documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --locked

libtorch: ## Put the small libtorch set into the cache folder
	@scripts/libtorch.sh

python: ## Make .venv with torch and the Kubeflow SDK
	@scripts/python.sh

data: ## Put the Fashion-MNIST data set into the cache folder
	@scripts/data.sh

rivals: python ## Install what muster bench compares with: gloo and Open MPI
	@scripts/rivals.sh
