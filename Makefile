# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-real faults mutations bench check format lock docs clean install uninstall wheelhouse

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install the project and its pinned tools into .venv

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## Run the main job end to end on this machine (KEEP=1: stay up; uses real Iggy when it is on PATH)
	@$(BIN)/python -m tests.demo $(if $(KEEP),--keep)

# What boots a system, starts an engine, measures, or is many at once by itself runs alone; the rest on two workers.
test: $(STAMP) ## Run the tests, with branch coverage of agent/
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not real and not xdist_group" -n 2 $(PYTEST_ARGS)
	$(BIN)/coverage run -m pytest -m "not real and xdist_group" $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=95

test-real: $(STAMP) ## Run against real binaries: IGGY_SERVER=PATH IGGY_CONNECTORS=PATH, else from PATH
	$(BIN)/python -m pytest -m real --run-real $(PYTEST_ARGS)

faults: $(STAMP) ## Run the fault campaign (FAULTS_MINUTES=40 FAULTS_ONLY="kill network.drop" FAULTS_SEED=N)
	@ls build/wheelhouse/*.whl >/dev/null 2>&1 || $(MAKE) --no-print-directory wheelhouse
	@$(BIN)/python -m tests.faults --minutes $(or $(FAULTS_MINUTES),40) $(foreach key,$(FAULTS_ONLY),--only $(key)) $(if $(FAULTS_SEED),--seed $(FAULTS_SEED))

mutations: $(STAMP) ## Switch each protection off in turn, and see that the campaign notices (MUTATIONS="lock pid")
	@$(BIN)/python -m tests.faults.mutations $(MUTATIONS)

bench: $(STAMP) ## Measure the budgets; each script says what it cannot have here
	@code=0; for what in restart_systemd restart_docker; do $(BIN)/python -m tests.bench.$$what || code=$$?; done; exit $$code

check: $(STAMP) ## Lint, format, types, layers, docs drift
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tests.docs --check

format: $(STAMP) ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## Generate the generated pages anew
	$(BIN)/python -m tests.docs

# What the service gets: see systemd/install, which says what these variables mean.
INSTALL = DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" PYTHON="$(PYTHON)" WHEELHOUSE="$(WHEELHOUSE)" WHEEL="$(WHEEL)" \
	BUILD_PYTHON="$(wildcard $(BIN)/python)" PURGE="$(PURGE)" systemd/install
PREFIX ?= /usr/local
SERVICE_PYTHON ?= $(or $(wildcard /usr/bin/python3),$(PYTHON))

install: ## Install the agent as a systemd service (DESTDIR=DIR PREFIX=/usr/local WHEELHOUSE=DIR)
	@$(INSTALL) install

uninstall: ## Take the service away; its state stays (PURGE=1: that too)
	@$(INSTALL) uninstall

wheelhouse: $(STAMP) ## Gather what `make install WHEELHOUSE=build/wheelhouse` and `docker build` need without a network
	@rm -rf build/wheelhouse
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r requirements.lock -r requirements-build.lock -d build/wheelhouse \
		--python-version "$$($(SERVICE_PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')"

lock: ## Resolve the dependencies anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" --group build -c requirements-dev.lock -o requirements-build.lock

clean: ## Remove what the other targets made
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
