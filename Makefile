# Strongroom on Debian. `make demo` shows it, `make test` tests everything; both install what they need first.
#
#   make lab          build target/release/lab and the programs that it runs
#   make demo         the story, step by step: grant, work, attack, revoke, reissue
#   make vm           the whole recovery with real guests, by QEMU (as root)
#                     `make vm DRIVER=libvirt` has the guests restarted by libvirt, by a libvirtd of its own
#   make xen          the same on a real Xen system, in one emulated machine (as root; minutes)
#   make test         unit tests, tests in the lab, conformance suites, the story with real guests
#   make check        what to run before a commit: format, lints, unit and doc tests, docs, licences
#   make bench        the mount beside sshfs, GlusterFS, CephFS, MooseFS and a local FUSE passthrough, as a table, JSON and a
#                     page with plots; revocation under load; contracts. `make bench PEERS=` leaves the heavy peers out
#   make bench-recovery  the part of it about attacks: from alert to work, and ransomware over 10,000 files (minutes)
#   make scale        what one operation costs against files, sessions and revocations, as a page with plots (minutes; a million files)
#   make conformance  pjdfstest, fsx (buffered, mapped, direct, two guests), fio, dbench, stress-ng, PostgreSQL, git, SQLite on a real mount (as root)
#   make soak         the same for hours: many seeds, a million operations; and the long tests
#   make install      to $(DESTDIR)$(PREFIX)/bin, the helper of mount(8) to $(DESTDIR)/sbin, unit files to /etc
#   make clean        remove what was built

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
OPS ?= 100000
SUITES ?= pjdfstest erofs fsx fio dbench stress postgres git sqlite
# What `make test` runs of them: minutes, not hours.
TEST_SUITES ?= pjdfstest erofs fsx fio dbench postgres sqlite
TEST_OPS ?= 15000
# By what `make vm` restarts guests: qemu or libvirt.
DRIVER ?= qemu
PEERS ?= --peers
SEEDS ?= 1
SOAK_SEEDS ?= 1 2 3 4 5 6 7 8 9 10

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BIN := $(TARGET)/release
TOOLS := $(TARGET)/tools/bin
BUILD := $(CARGO) build --release --locked -p strongroom-cli -p strongroom-gateway -p strongroom-fuse-client \
	-p strongroom-recovery
# For guests, which have no libraries of this machine.
STATIC_TARGET := $(shell uname -m)-unknown-linux-gnu
STATIC_FLAGS := CARGO_TARGET_$(shell echo $(STATIC_TARGET) | tr a-z- A-Z_)_RUSTFLAGS="-C target-feature=+crt-static"
GUEST := STRONGROOM_GUEST_BIN="$(TARGET)/$(STATIC_TARGET)/release" STRONGROOM_GUEST_CACHE="$(TARGET)/guests"
# rustc allows no dot in a program's name, and mount(8) wants one.
LINK = ln -sfn mount-strongroom "$(BIN)/mount.strongroom"
UNITS := $(wildcard dist/systemd/*)

# The tests' labs run the optimised programs: they are what is shipped, and fast enough for whole repositories.
export STRONGROOM_BIN_DIR := $(BIN)
export STRONGROOM_BIN := $(BIN)
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: all lab build demo vm xen guests test bench scale conformance soak check install clean need-build need-lab need-test need-bench need-vm need-xen

all: lab

need-build:
	@tools/setup.sh build
need-lab:
	@tools/setup.sh build lab
need-test:
	@tools/setup.sh build lab test
	@tools/setup.sh vm || echo "make test: what real guests need is not there"
need-vm:
	@tools/setup.sh build vm $(filter libvirt,$(DRIVER))
need-xen:
	@tools/setup.sh build xen
need-bench:
	@tools/setup.sh build lab bench $(if $(PEERS),peers)

lab build: need-lab
	$(BUILD) -p strongroom-tests --bins
	@$(LINK)

demo: lab
	@$(BIN)/demo

guests: need-build
	$(STATIC_FLAGS) $(BUILD) --target $(STATIC_TARGET)

vm: need-vm guests
	@$(GUEST) STRONGROOM_VM_DRIVER=$(DRIVER) tests/guests/vm.sh

xen: need-xen guests
	@$(GUEST) tests/guests/xen.sh

test: need-test
	$(BUILD) -p strongroom-tests --bins
	@$(LINK)
	$(CARGO) build --workspace --locked --bins
	$(CARGO) test --workspace --locked
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) --no-print-directory run-conformance SUITES="$(TEST_SUITES)" OPS=$(TEST_OPS); \
	else echo "make test: pjdfstest needs root and was left out; run it with: sudo make conformance"; fi
	@if reason=$$(tests/guests/vm.sh --can); then STRONGROOM_GUEST_BIN="$(BIN)" STRONGROOM_GUEST_CACHE="$(TARGET)/guests" tests/guests/vm.sh; \
	else echo "make test: the story with real guests was left out: $$reason"; fi

bench: need-bench
	$(BUILD) -p strongroom-tests -p strongroom-benches --bins
	@$(LINK)
	$(BIN)/bench $(PEERS) --json "$(TARGET)/bench/results.json" --html "$(TARGET)/bench/results.html" $(BENCH_ARGS)
	$(BIN)/revoke $(REVOKE_ARGS)
	@$(MAKE) --no-print-directory run-bench-recovery
	$(CARGO) bench --locked -p strongroom-benches --bench verify

bench-recovery: need-lab
	$(BUILD) -p strongroom-tests -p strongroom-benches --bins
	@$(LINK)
	@$(MAKE) --no-print-directory run-bench-recovery

.PHONY: bench-recovery run-bench-recovery
run-bench-recovery:
	$(BIN)/recovery $(RECOVERY_ARGS)
	$(BIN)/ransomware $(RANSOMWARE_ARGS)

scale: need-build
	$(CARGO) build --release --locked -p strongroom-benches -p strongroom-gateway --bins
	$(BIN)/scale --json "$(TARGET)/bench/scale.json" --html "$(TARGET)/bench/scale.html" $(SCALE_ARGS)

conformance: need-test
	$(BUILD) --bins
	@$(LINK)
	@$(MAKE) --no-print-directory run-conformance

.PHONY: run-conformance
run-conformance:
	PATH="$(TOOLS):$$PATH" tests/conformance/run.sh --suites "$(SUITES)" --ops $(OPS) --seeds "$(SEEDS)" $(CONFORMANCE_ARGS)

soak: need-test need-vm
	$(BUILD) -p strongroom-tests --bins
	@$(LINK)
	@$(MAKE) --no-print-directory run-conformance SEEDS="$(SOAK_SEEDS)" OPS=1000000 \
	  CONFORMANCE_ARGS="--seconds 300 --rounds 500 --files 20000"
	$(CARGO) test --locked -p strongroom-tests -- --include-ignored
	@if reason=$$(tests/guests/vm.sh --can); then $(MAKE) --no-print-directory vm; else echo "make soak: make vm was left out: $$reason"; fi
	$(CARGO) test --locked -p strongroom-gateway --test engine -- --ignored hundreds_of_kills power_is_lost

check: need-build
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --workspace --locked --exclude strongroom-tests --exclude strongroom-benches
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet
	@tools/setup.sh check
	PATH="$(TOOLS):$$PATH" cargo-deny --workspace check --hide-inclusion-graph bans licenses sources

# As root for the usual PREFIX; `sudo make install` must not build, for sudo's root has no toolchain of yours.
install:
	@for program in contract strongroom-gateway strongroom-recovery mount-strongroom; do \
	  test -x "$(BIN)/$$program" || { echo "make install: $(BIN)/$$program is missing; run \`make build\` first" >&2; exit 1; }; done
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)/sbin" "$(DESTDIR)/etc/systemd/system"
	install -m 755 "$(BIN)/contract" "$(BIN)/strongroom-gateway" "$(BIN)/strongroom-recovery" "$(DESTDIR)$(PREFIX)/bin"
	install -m 755 "$(BIN)/mount-strongroom" "$(DESTDIR)$(PREFIX)/bin/mount.strongroom"
	ln -sfn "$(PREFIX)/bin/mount.strongroom" "$(DESTDIR)/sbin/mount.strongroom"
	$(if $(UNITS),install -m 644 $(UNITS) "$(DESTDIR)/etc/systemd/system")

clean:
	$(CARGO) clean
