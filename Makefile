# What a person or CI does here. Each target works as the very first command on a fresh clone.
SHELL := /bin/bash
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/marketdata
INFLUXD_BUILT := $(CACHE)/influxd-2.9.1/influxd
PYTHON_BIN := .venv/bin

# Servers fetched for the demo and the tests are found like any other program.
export PATH := $(PATH):$(CACHE)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test venv lint bench soak influxd clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

demo: .venv/installed ## simulator, service and live table, offline; Ctrl-C stops it
	@scripts/get-redis.sh $(CACHE)/bin
	@$(PYTHON_BIN)/ingest launch --demo

test: .venv/installed ## all tests, on a real Redis and a real InfluxDB where they can be had
	@scripts/get-redis.sh $(CACHE)/bin
	@scripts/get-influxd.sh $(INFLUXD_BUILT)
	$(PYTHON_BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadgroup $(PYTEST)

venv: .venv/installed ## .venv with everything: service, readers, tools

lint: .venv/installed ## ruff (style, format) and mypy
	$(PYTHON_BIN)/ruff check .
	$(PYTHON_BIN)/ruff format --check marketdata ingest readers tests
	$(PYTHON_BIN)/mypy

bench: .venv/installed ## the figures of the README, as ratios to a bare limit
	@scripts/get-redis.sh $(CACHE)/bin
	@scripts/get-influxd.sh $(INFLUXD_BUILT)
	$(PYTHON_BIN)/python -m tests.bench

soak: .venv/installed ## hours of faults, kills and market time; as root also a full disk
	@scripts/get-redis.sh $(CACHE)/bin
	@scripts/get-influxd.sh $(INFLUXD_BUILT)
	$(PYTHON_BIN)/python -m tests.soak
	$(PYTHON_BIN)/python -m tests.soak.kill --rounds 20 --store influxdb
	$(PYTHON_BIN)/python -m tests.soak.chaos --seconds 600 --speed 2
	$(PYTHON_BIN)/python -m tests.soak.day --hours 24 --speed 60

influxd: $(INFLUXD_BUILT) ## build InfluxDB 2.9.1 into the cache folder (needs Go, Rust, gcc, pkg-config)

clean: ## remove .venv, caches and the demo's data (var/demo)
	rm -rf .venv var/demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INFLUXD_BUILT):
	deploy/influxd/build.sh $@

# The stamp is written last, so an installation that broke off is done again.
.venv/installed: setup.cfg pyproject.toml
	@python=$$(scripts/find-python.sh) && \
	if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
		echo "creating .venv with $$python" && rm -rf .venv && "$$python" -m venv .venv; fi
	@echo "installing into .venv (a few minutes the first time)"
	@$(PYTHON_BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	@PYTHONWARNINGS=ignore $(PYTHON_BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
