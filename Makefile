# Two commands: `make verify` and `make test`.  Both set up what they need.
#
# libnbd's Python binding exists only as Debian's package for Debian's python3, so the virtual
# environment is made with that python3 and sees its site packages.

PYTHON ?= /usr/bin/python3
VENV   := .venv
BIN    := $(VENV)/bin
DEBS   := qemu-system-x86 qemu-utils python3-libnbd python3-venv
# What only the tests need: NBD clients of other hands to try ours against, a relay and
# certificates for the shim, an archiver to read the guest's initramfs, a browser and prove for the
# reports, git to bisect with, and a backup client with all that it stands on.
TEST_DEBS := libnbd-bin nbdkit socat openssl cpio chromium perl git gcc libc6-dev \
	libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients virtnbdbackup
STAMP  := $(VENV)/.installed
JOBS   ?= $(shell nproc)
# Two more than there are processors: tests wait, for QEMU and for what must not come.
TESTERS ?= $(shell echo $$(($(JOBS) + 2)))

# What QEMU's own qtests need to be made, and its iotests to run.
UPSTREAM_DEBS := gcc make ninja-build pkg-config dpkg-dev libglib2.0-dev libpixman-1-dev \
	libfdt-dev zlib1g-dev bc jq

.PHONY: verify test full upstream mutation coverage lint bench clean findings golden

verify: $(STAMP)
	$(BIN)/qmpshim verify $(ARGS)

test: $(STAMP) lint
	@./.ci/need-debs $(TEST_DEBS)
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal $(ARGS)

full: $(STAMP) lint
	@./.ci/need-debs $(TEST_DEBS)
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal --full $(ARGS)

# QEMU's own tests, directly and through qmpshim-qemu: vmtests/upstream/README.md.
upstream: $(STAMP)
	@./.ci/need-debs $(UPSTREAM_DEBS)
	$(BIN)/python vmtests/upstream/upstream.py -j $(JOBS) $(ARGS)

# Faults in QEMU's own code, and whether they are found: vmtests/mutation/README.md.
mutation: $(STAMP)
	@./.ci/need-debs $(UPSTREAM_DEBS)
	$(BIN)/python vmtests/mutation/mutation.py -j $(JOBS) $(ARGS)

# Which lines of QEMU's block layer run under a command of ours: vmtests/mutation/README.md.
coverage: $(STAMP)
	@./.ci/need-debs $(UPSTREAM_DEBS)
	$(BIN)/python vmtests/mutation/block_coverage.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	@./.ci/need-debs $(TEST_DEBS) spin gcc
	@failed=0; for bench in $(basename $(notdir $(wildcard vmtests/bench/bench_*.py))); do \
		echo "== $$bench"; $(BIN)/python -m vmtests.bench.$$bench || failed=1; done; exit $$failed

$(STAMP): pyproject.toml Makefile
	@./.ci/need-debs $(DEBS)
	test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info qmpshim-bundles

# The catalogue of known defects, from the write-ups.
findings: $(STAMP)
	$(BIN)/python -c 'from vmtests.support import catalogue as c; c.CATALOGUE.write_text(c.catalogue())'

# What the commands answer today, kept: vmtests/golden/README.md.
golden: $(STAMP)
	$(BIN)/python vmtests/golden/golden.py compare $(ARGS)
