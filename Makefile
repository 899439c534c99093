# Everything runs in an environment of its own; a fresh machine needs python3 (3.10 or later), venv and make,
# and `make test` and `make conformance` also node and npm.

PYTHON ?= python3
VENV ?= .venv
TEST_TIMEOUT ?= 15m
CONFORMANCE_TIMEOUT ?= 10m
BENCH_TIMEOUT ?= 60m
MINUTES ?= 5
BIN = $(VENV)/bin
E2E = tests/e2e
SDK = $(E2E)/typescript
SUITE = tests/conformance
PEERS_STAMPS = $(VENV)/bench/mcp-proxy/.stamp $(VENV)/bench/fastmcp/.stamp bench/peers/node_modules/.stamp

.PHONY: help demo run test test-klein test-fast conformance scenarios fuzz matrix bench bench-quick soak lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## show a client that survives the restart of its server
	$(BIN)/python -m mcp_proxy.demo

run: $(VENV)/.run  ## run the proxy alone, configured by .env
	$(BIN)/mcp-proxy

test: $(VENV)/.test $(VENV)/sdk2/.stamp $(SDK)/node_modules/.stamp  ## run all tests
	timeout --foreground --kill-after=30 $(TEST_TIMEOUT) $(BIN)/python -m twisted.trial tests

test-klein: $(VENV)/.test  ## the tests that know two ways of HTTP, by the other one
	HTTP_STACK=klein timeout --foreground --kill-after=30 $(TEST_TIMEOUT) $(BIN)/python -m twisted.trial tests.memory tests.integration

test-fast: $(VENV)/.test $(VENV)/sdk2/.stamp $(SDK)/node_modules/.stamp  ## the tests with sockets, on uvloop
	timeout --foreground --kill-after=30 $(TEST_TIMEOUT) $(BIN)/python -m twisted.trial --reactor=uvloop tests.integration
	REACTOR=uvloop timeout --foreground --kill-after=30 $(TEST_TIMEOUT) $(BIN)/python -m twisted.trial tests.e2e

conformance: LIMITED = timeout --foreground --kill-after=30 $(CONFORMANCE_TIMEOUT)
conformance: COMPARE = $(BIN)/python -m tests.conformance.run --server-python $(VENV)/conformance/bin/python
conformance: $(VENV)/.run $(VENV)/conformance/.stamp $(SUITE)/node_modules/.stamp  ## the MCP conformance suite, with and without the proxy
	$(LIMITED) $(COMPARE)
	$(LIMITED) $(COMPARE) --restart
	$(LIMITED) $(COMPARE) --legacy-on-modern
	$(LIMITED) $(COMPARE) --modern-on-legacy

scenarios: $(VENV)/.test $(VENV)/sdk2/.stamp $(SDK)/node_modules/.stamp  ## the end-to-end tests with all SDK versions, not only the first
	E2E_CLIENTS=all timeout --foreground --kill-after=30 $(TEST_TIMEOUT) $(BIN)/python -m twisted.trial \
	    tests.e2e.test_everyday tests.e2e.test_restart tests.e2e.test_outage tests.e2e.test_in_flight tests.e2e.test_many

# TIMES=1000 for longer.
fuzz: $(VENV)/.test  ## odd bytes and odd messages of clients and servers, many more of them than in the tests
	FUZZ=$(or $(TIMES),30) $(BIN)/python -m twisted.trial tests.memory.test_anything tests.memory.test_fuzz \
	    tests.unit.test_http1 tests.unit.test_jsonrpc tests.unit.test_sse tests.unit.test_sealed

matrix: $(VENV)/.test $(VENV)/sdk2/.stamp $(SDK)/node_modules/.stamp  ## every SDK client with every kind of server; writes docs/compatibility.md
	timeout --foreground --kill-after=30 15m $(BIN)/python -m tests.e2e.matrix

# QUICK=1 is bench-quick; PEERS=1 measures other MCP proxies as well; AGAINST=PATH another checkout.
bench: OPTIONS = $(if $(QUICK),--quick,--write) $(if $(PEERS),--peers) $(if $(AGAINST),--against $(AGAINST))
bench: $(VENV)/.fast $(if $(PEERS),$(PEERS_STAMPS))  ## measure the proxy beside nginx, and write docs/performance.md
	timeout --foreground --kill-after=30 $(BENCH_TIMEOUT) $(BIN)/python -m bench $(OPTIONS)

bench-quick:  ## a minute's part of it, written nowhere
	$(MAKE) bench QUICK=1

# MINUTES=60 for longer; SEED=N decides again as that run did; BACKENDS="dual sse" lets the backend change its transport.
soak: OPTIONS = --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(BACKENDS),--backends $(BACKENDS)) --write
soak: $(VENV)/.run  ## clients over hundreds of restarts for 5 minutes; writes docs/reliability.md
	$(BIN)/python -m soak $(OPTIONS)

lint: $(VENV)/.lint  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(SDK)/node_modules $(SUITE)/node_modules bench/peers/node_modules build dist *.egg-info _trial_temp* .hypothesis .mypy_cache .ruff_cache
	rm -f twisted/plugins/dropin.cache

$(VENV)/.venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mcp-proxy needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# One stamp for each set of extras; a change of the requirements makes them stale.
$(VENV)/.run: EXTRAS =
$(VENV)/.fast: EXTRAS = [fast]
$(VENV)/.demo: EXTRAS = [demo]
$(VENV)/.test: EXTRAS = [test]
$(VENV)/.lint: EXTRAS = [test,dev]
$(VENV)/.run $(VENV)/.fast $(VENV)/.demo $(VENV)/.test $(VENV)/.lint: $(VENV)/.venv setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(EXTRAS)'
	touch $@

# The server that the conformance suite talks to needs another version of the Python SDK than the tests.
$(VENV)/conformance/.stamp: $(VENV)/.venv $(SUITE)/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(SUITE)/requirements.txt
	touch $@

# The end-to-end tests need both versions of the Python SDK.
$(VENV)/sdk2/.stamp: $(VENV)/.venv $(E2E)/requirements-sdk2.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(E2E)/requirements-sdk2.txt
	touch $@

$(SDK)/node_modules/.stamp: $(SDK)/package.json $(SDK)/package-lock.json
	npm --prefix $(SDK) ci --no-audit --no-fund
	touch $@

$(SUITE)/node_modules/.stamp: $(SUITE)/package.json $(SUITE)/package-lock.json
	npm --prefix $(SUITE) ci --no-audit --no-fund
	touch $@

# The other proxies that the bench measures, each with an environment of its own.
$(VENV)/bench/%/.stamp: bench/peers/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

bench/peers/node_modules/.stamp: bench/peers/package.json bench/peers/package-lock.json
	npm --prefix bench/peers ci --no-audit --no-fund
	touch $@
