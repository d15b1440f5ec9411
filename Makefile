# The three commands of the README, and what a developer needs beside them.

.PHONY: bench bugs demo deny fuzz soak test misuse sqlx

# Shows all of it on sample events, in a PostgreSQL that ends with it; `make demo ARGS=--keep` stays up.
demo:
	@$(call postgres,DATABASE_URL)
	cargo run --package dancefinder-projections -- demo $(ARGS)

# Everything that must hold: form, lints, documentation, and all tests on a real PostgreSQL and a real RabbitMQ, the
# page in a real browser, the metrics and alerts by Prometheus' own tool, the messages by clients of Python and Node.
test: export RUSTDOCFLAGS = -D warnings
test:
	@$(call postgres,TEST_DATABASE_URL)
	@$(rabbitmq)
	@$(pgbouncer)
	@$(chromium)
	@$(promtool)
	@$(python)
	@$(node)
	@python3 tests/interop/install.py >/dev/null
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo doc --workspace --no-deps
	cargo test --workspace
	# What only the fuzz targets call.
	cargo rustc --package projection-runtime --lib -- --cfg fuzzing --emit=metadata
	# Small and once, so that they keep working.
	cargo test --package tests --benches

# How fast it is beside a bare loop and the database's own limit, in a quarter of an hour: writes docs/benchmarks.md and its
# chart. `make bench ARGS=--quick` takes three minutes and writes nothing. Each benchmark of one file adds a table.
bench: BENCHES = $(basename $(notdir $(wildcard tests/benches/*.rs)))
bench:
	@$(call postgres,TEST_DATABASE_URL)
	@$(rabbitmq)
	rm -rf target/bench && mkdir -p target/bench
	cargo bench --package tests --no-run
	for bench in $(BENCHES); do \
		$(if $(findstring --quick,$(ARGS)),APPENDS=100 ROUNDS=1) cargo bench --quiet --package tests --bench $$bench -- --json \
			>target/bench/$$bench.jsonl || exit 1; \
	done
	cargo bench --quiet --package tests --bench speed -- --with $(CURDIR)/target/bench --docs $(CURDIR)/docs $(ARGS)

# Faults for ten minutes, or for `MINUTES`, over as many events as come in that time. `SEED` repeats a run.
soak: export MINUTES ?= 10
soak:
	@$(call postgres,TEST_DATABASE_URL)
	@$(rabbitmq)
	cargo test --release --package tests --test soak -- --nocapture

# Checks that the fault test finds the bugs that it exists for. Each bug of tests/bugs, or of `BUGS`, is put into a copy of
# the sources. One of at most `RUNS` runs of 15 s must then fail with a broken promise, not with an error of the test
# itself. Each run is random; most bugs are found in the first or second one.
bugs: export CARGO_TARGET_DIR := $(CURDIR)/target/bugs/target
bugs: export MINUTES ?= 0.25
bugs: export EVENTS ?= 30000
bugs: BUGS ?= $(wildcard tests/bugs/*.patch)
bugs: RUNS ?= 6
bugs: PROMISES = the rows of|the position of|rows that differ|rows expected|lost and doubled|events in the store|nothing moves|has not ended|events_tstamp_key
bugs:
	@$(call postgres,TEST_DATABASE_URL)
	@$(rabbitmq)
	@for bug in $(BUGS); do \
		copy=target/bugs/$$(basename $$bug .patch); log=$$PWD/$$copy.log; broken=; \
		rm -rf $$copy && mkdir -p $$copy && git ls-files -z | tar -cf - --null -T - | tar -xf - -C $$copy || exit 1; \
		patch --quiet -d $$copy -p1 <$$bug || exit 1; \
		(cd $$copy && cargo test --quiet --package tests --test soak --no-run) || exit 1; \
		for run in $$(seq $(RUNS)); do \
			if ! (cd $$copy && cargo test --quiet --package tests --test soak -- --nocapture >$$log 2>&1); then \
				broken=$$(grep -A1 panicked $$log | grep -E '$(PROMISES)' | head -n 1); \
				[ -n "$$broken" ] || { echo "$$bug: a run failed, but broke no promise, see $$log"; exit 1; }; \
				echo "$$bug: found in run $$run: $$broken"; break; \
			fi; \
		done; \
		[ -n "$$broken" ] || { echo "$$bug: NOT found, see $$log"; exit 1; }; \
	done

# What comes from outside, made up by libFuzzer, which needs a C++ compiler: each target for ten minutes, or for `MINUTES`,
# or the one of `TARGET`. What is found lies in fuzz/artifacts; `fuzz/target/TRIPLE/release/TARGET FILE` repeats it.
# Exported, or GNU make 4.3 would take MINUTES of the environment from all the others as well.
fuzz: export MINUTES ?= 10
fuzz: TARGET ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
fuzz: TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p')
fuzz: export RUSTFLAGS = --cfg fuzzing -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-, \
	level=4 inline-8bit-counters pc-table trace-compares)
fuzz:
	cd fuzz && cargo build --locked --release --target $(TRIPLE)
	@for target in $(TARGET); do \
		mkdir -p fuzz/corpus/$$target fuzz/artifacts/$$target; \
		echo "$$target: $(MINUTES) minutes; fuzz/corpus/$$target.log tells how it goes"; \
		fuzz/target/$(TRIPLE)/release/$$target fuzz/corpus/$$target fuzz/seeds/$$target \
			-max_total_time=$$(($(MINUTES) * 60)) -timeout=10 -max_len=4096 -dict=fuzz/dict/$$target.dict \
			-artifact_prefix=fuzz/artifacts/$$target/ >fuzz/corpus/$$target.log 2>&1 || \
			{ tail -n 40 fuzz/corpus/$$target.log; exit 1; }; \
		grep -a 'DONE\|^Done' fuzz/corpus/$$target.log; \
	done

# Lists what can be written wrongly, and the tests of what is then said.
misuse:
	@cargo test --quiet --package tests --test ui every_row_of_the_catalogue -- --nocapture | grep -v '^running\|^test result\|^\.*$$'

# Licences, advisories, duplicates and sources of the dependencies, by deny.toml. Not in `make test`: the tool and the
# advisories come over the network, and a new advisory must not make an old commit fail.
deny:
	@command -v cargo-deny >/dev/null || { \
		echo "error: no cargo-deny was found. Install it: cargo install --locked cargo-deny" >&2; exit 1; }
	cargo deny --workspace check

# Writes `.sqlx` anew, after a change of a query or a migration: `make sqlx DATABASE_URL=..` of a migrated database.
sqlx:
	rm -rf .sqlx && mkdir .sqlx
	touch dancefinder-projections/src/lib.rs
	SQLX_OFFLINE=false SQLX_OFFLINE_DIR=$(CURDIR)/.sqlx cargo check --package dancefinder-projections

# Sees to a PostgreSQL: the server that the variable names, binaries on this machine, Docker, or else Debian's package
# where this user may install it. The package's own server is not made: only the binaries are wanted.
define postgres
if [ -n "$$$(1)$$PG_BIN_DIR" ] || command -v initdb >/dev/null || command -v pg_config >/dev/null; then exit 0; fi; \
for initdb in /usr/lib/postgresql/*/bin/initdb /opt/homebrew/opt/postgresql*/bin/initdb /usr/local/opt/postgresql*/bin/initdb; \
	do if [ -x "$$initdb" ]; then exit 0; fi; done; \
if docker info >/dev/null 2>&1; then exit 0; fi; \
no_main=/etc/postgresql-common/createcluster.d/no-main.conf; \
prepare='mkdir -p /etc/postgresql-common/createcluster.d; echo "create_main_cluster = false" >'"$$no_main"; \
$(call install,PostgreSQL,postgresql,$$prepare,rm -f $$no_main); \
echo "error: no PostgreSQL was found. Install it (apt-get install postgresql, brew install postgresql), or start" >&2; \
echo "Docker, or set $(1) to a server that runs, like postgres://postgres@localhost/postgres" >&2; \
exit 1
endef

# The same for the RabbitMQ of the tests.
define rabbitmq
if [ -n "$$TEST_AMQP_URL$$RABBITMQ_BIN_DIR" ]; then exit 0; fi; \
for server in /usr/lib/rabbitmq/bin /opt/homebrew/opt/rabbitmq/sbin /usr/local/opt/rabbitmq/sbin; \
	do if [ -x "$$server/rabbitmq-server" ]; then exit 0; fi; done; \
if docker info >/dev/null 2>&1; then exit 0; fi; \
$(call install,RabbitMQ,rabbitmq-server,true,systemctl disable -q rabbitmq-server); \
echo "error: no RabbitMQ was found. Install it (apt-get install rabbitmq-server, brew install rabbitmq), or start" >&2; \
echo "Docker, or set TEST_AMQP_URL to a broker that runs, like amqp://guest:guest@localhost/%2f" >&2; \
exit 1
endef

# The pooler that the tests connect through.
define pgbouncer
if [ -n "$$PGBOUNCER" ] || [ -x /usr/sbin/pgbouncer ] || command -v pgbouncer >/dev/null; then exit 0; fi; \
$(call install,PgBouncer,pgbouncer,true,systemctl disable -q pgbouncer); \
echo "error: no PgBouncer was found. Install it (apt-get install pgbouncer, brew install pgbouncer), or set PGBOUNCER" >&2; \
exit 1
endef

# The browser that looks at the status page.
define chromium
if [ -n "$$CHROMIUM" ] || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	command -v google-chrome >/dev/null || [ -d "/Applications/Google Chrome.app" ]; then exit 0; fi; \
$(call install,Chromium,chromium,true,true); \
echo "error: no Chromium was found. Install it (apt-get install chromium), or set CHROMIUM to its binary" >&2; \
exit 1
endef

# Prometheus' own tool, that checks metrics and alert rules.
define promtool
if [ -n "$$PROMTOOL" ] || command -v promtool >/dev/null; then exit 0; fi; \
$(call install,promtool,prometheus,true,systemctl disable -q prometheus); \
echo "error: no promtool was found. Install it (apt-get install prometheus, brew install prometheus), or set PROMTOOL" >&2; \
exit 1
endef

# What runs the clients of other languages; tests/interop/install.py installs the clients.
define python
if python3 -c 'import ensurepip, venv' 2>/dev/null; then exit 0; fi; \
$(call install,Python with venv,python3-venv,true,true); \
echo "error: no Python with venv was found. Install it (apt-get install python3-venv, brew install python)" >&2; \
exit 1
endef

define node
if command -v node >/dev/null && command -v npm >/dev/null; then exit 0; fi; \
$(call install,Node,nodejs npm,true,true); \
echo "error: no Node was found. Install it (apt-get install nodejs npm, brew install node)" >&2; \
exit 1
endef

# Installs a package of Debian, on Debian, where this user may, and ends the script then; goes on where it is not Debian or
# the user may not. A package may start its server, now and with the machine: a policy, there for as long as the installation
# takes and only where there is none, forbids the one; the last argument is for the other.
define install
as=; [ "$$(id -u)" = 0 ] || as="sudo -n"; \
if [ -f /etc/debian_version ] && $$as true 2>/dev/null; then \
	echo "$(1) is not on this machine: installing it with apt-get install $(2)"; \
	policy=/usr/sbin/policy-rc.d; ours=; \
	if [ ! -e $$policy ]; then \
		ours=yes; printf '#!/bin/sh\nexit 101\n' | $$as tee $$policy >/dev/null; $$as chmod 755 $$policy; \
	fi; \
	installed=1; \
	trap '[ -z "$$ours" ] || $$as rm -f $$policy; $$as sh -c "$(4)" >/dev/null 2>&1; exit $$installed' EXIT INT TERM HUP; \
	$$as sh -c "$(3)"; \
	wait="-o DPkg::Lock::Timeout=600"; \
	until $$as apt-get update -q || [ "$$((tries = $${tries:-0} + 1))" -ge 30 ]; do sleep 10; done; \
	$$as env DEBIAN_FRONTEND=noninteractive apt-get install $$wait -q -y --no-install-recommends $(2); \
	installed=$$?; \
	exit $$installed; \
fi
endef
