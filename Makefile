# The project's commands. `make` alone lists them.

SHELL := /bin/bash
CARGO := scripts/cargo.sh
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PROFILE_DIR := $(TARGET_DIR)/release
# Cargo features, for instance: make build FEATURES=avx512
FEATURES ?=
FEATURE_ARGS := $(if $(FEATURES),--features "$(FEATURES)")

.DEFAULT_GOAL := help
.PHONY: help setup build host-library install demo test test-library check fmt precommit fuzz sanitize patch-lines clean-native

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-13s %s\n", $$1, $$2 }'

setup: ## install what is missing; fetch and check llama.cpp and the demo model
	@scripts/bootstrap.sh
	@python3 scripts/fetch.py llama.cpp >/dev/null
	@python3 scripts/fetch.py demo-model >/dev/null

build: setup ## build everything, optimised; the tools are left in target/release
	@$(CARGO) build --release $(FEATURE_ARGS)

host-library: setup ## libpipeshard.so.0 and the NVIGI plug-in for programs, in target/host-library (docs/embedding.md, docs/nvigi.md)
	@$(CARGO) build --package pipeshard-capi --profile host-library $(FEATURE_ARGS)
	@$(CARGO) build --package pipeshard-nvigi --profile host-library $(FEATURE_ARGS)
	@cd $(TARGET_DIR)/host-library && cp -f libpipeshard_capi.so libpipeshard.so.0 && ln -sfn libpipeshard.so.0 libpipeshard.so && \
		cp -f libpipeshard_nvigi.so nvigi.plugin.gpt.ggml.pipeshard.so

# Where the library for programs goes
PREFIX ?= /usr/local
DESTDIR ?=

install: ## install it with header, pkg-config and CMake files: PREFIX=/usr/local, DESTDIR=
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" scripts/install-host-library.sh

demo: build ## a real model answers under a VRAM budget that it does not fit in
	@scripts/demo.sh

test: build test-library host-library ## all tests, against stock llama.cpp
	@python3 scripts/fetch.py server-tests >/dev/null
	@$(CARGO) test --release $(FEATURE_ARGS)

test-library: setup ## the library with the switches for tests, in target/test-hooks (tests build it for themselves)
	@$(CARGO) build --package pipeshard --lib --profile test-hooks --features "test-hooks $(FEATURES)"

check: setup patch-lines ## formatting, lints, imports in a circle, documents, and the size of the patches
	@cargo fmt --all --check
	@python3 scripts/check-imports.py
	@python3 scripts/check-docs.py
	@$(CARGO) clippy --release --all-targets $(FEATURE_ARGS) -- -D warnings
	@$(CARGO) clippy --profile host-library --package pipeshard-capi --package pipeshard-nvigi $(FEATURE_ARGS) -- -D warnings

fmt: ## format the Rust code
	@cargo fmt --all

# Seconds for each fuzz target
TIME ?= 60

fuzz: ## hand damaged input to every reader of foreign bytes, TIME seconds each (needs cargo-fuzz)
	@scripts/fuzz.sh $(TIME)

sanitize: ## tests and evaluations under ThreadSanitizer and AddressSanitizer
	@scripts/sanitize.sh

patch-lines: ## count the lines that patches/ add to llama.cpp
	@scripts/count-patch-lines.sh

precommit: check test ## what has to pass before a commit

clean-native: ## forget the build of llama.cpp (the fetched archive stays)
	@rm -rf $(TARGET_DIR)/native
