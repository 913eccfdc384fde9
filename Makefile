# Everything a contributor types. Needs Python 3.11 or newer and make; all else goes into .venv and the user's cache.

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
FIND_PYTHON = for name in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$name"; break; }; done

.PHONY: help setup demo test test-ray check fmt bench bench-duel bench-peers results simulated elastic docs lock clean
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(VENV)/.installed ## install everything: pinned packages, the engine, a small model
	@$(BIN)/python -m tightrope.app.embedded

demo: setup ## two tenants' workflows on real models and unequal replicas
	@$(BIN)/tightrope demo $(ARGS)

test: setup ## all tests, in two processes
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --ignore tests/ray $(ARGS)

test-ray: $(VENV)/.ray ## install Ray and run what needs it: three nodes on this machine (minutes)
	@$(BIN)/python -m pytest $(or $(ARGS),tests/ray)

$(VENV)/.ray: requirements/ray.txt $(VENV)/.installed
	@echo "tightrope: installing Ray into $(VENV) (half a gigabyte)" >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes --requirement requirements/ray.txt
	@touch $@

check: $(VENV)/.installed ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.installed ## put all files into the one format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: setup ## the kept benchmarks: ARGS="mixed --capacity" or another scenario; decision, kernel and live if not given
	@if [ -n "$(ARGS)" ]; then $(BIN)/tightrope bench $(ARGS); else \
	for name in decision kernel live; do $(BIN)/tightrope bench $$name || exit 1; done; fi

bench-peers: setup ## install the gateways that `tightrope bench overhead` compares with, into the user's cache
	@$(BIN)/python -m tightrope.app.overhead_systems

results: setup ## measure engines, decisions and policies anew (half an hour, on an idle machine), and write docs/results.md
	mkdir -p docs/results
	@printf '%s, %s cores, Python %s\n' "$$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$$(nproc)" \
	"$$($(BIN)/python -c 'import platform; print(platform.python_version())')" > docs/results/machine.txt
	for pair in small-fast big-fast small-slow big-slow; do \
	$(BIN)/tightrope --config examples/demo/tightrope.yaml --json profile $${pair%-*} --on $${pair#*-} --quick --verify --fresh \
	> docs/results/profile-$$pair.json || exit 1; done
	for name in decision kernel; do $(BIN)/tightrope bench $$name --out docs/results/$$name.json || exit 1; done
	$(BIN)/tightrope bench live --policies foresight,fmware-greedy,fmware-target,power-of-two,round-robin \
	--out docs/results/live.json
	$(BIN)/python docs/make_results.py

CLUSTERS = mixed paper-two-node uniform mild strong
WRONG = wrong-fast-card-flattered wrong-fast-card-slighted wrong-all-flattered wrong-all-slighted
LATE = late-100ms late-500ms late-2s
THREE = --policies foresight,power-of-two,shortest-queue
TEN = --policies fmware-greedy,fmware-target,random,round-robin,least-tokens,prefix-aware,hexgen-flow,slo-headroom-least,slo-headroom-most,just-enough
SIM = bench-results
KEPT = docs/results/simulated
simulated: setup ## simulate everything in docs/results.md anew (hours; goes on where it was interrupted) and write it
	$(BIN)/tightrope bench credibility --out docs/results/credibility.json
	$(BIN)/tightrope bench mixed $(THREE) --rates 20%,30%,40%,70%,77.5%,85%,92.5%,100%,125%
	$(BIN)/tightrope bench uniform $(THREE) --rates 60%,80%,90%,100%,120%
	$(BIN)/tightrope bench paper-two-node $(THREE) --rates 20%,40%,70%,80%,90%,100%
	for name in mild strong; do $(BIN)/tightrope bench $$name $(THREE) --rates 40%,70%,80%,90%,100%,120% || exit 1; done
	for name in $(WRONG); do $(BIN)/tightrope bench $$name --policies foresight,power-of-two --rates 80% || exit 1; done
	for name in $(LATE); do $(BIN)/tightrope bench $$name $(THREE) --rates 60%,70%,80% --seeds 100-104 || exit 1; done
	for name in $(CLUSTERS); do $(BIN)/tightrope bench $$name --rates 90% --out $(SIM)/field/$$name || exit 1; done
	$(BIN)/tightrope bench mixed $(TEN) --rates 20%,70%,125% --out $(SIM)/field-rates/mixed
	$(BIN)/tightrope bench paper-two-node $(TEN) --rates 20%,70%,100% --out $(SIM)/field-rates/paper-two-node
	for name in mild strong; do $(BIN)/tightrope bench $$name $(TEN) --rates 40%,120% --out $(SIM)/field-rates/$$name || exit 1; done
	$(BIN)/tightrope bench uniform $(TEN) --rates 60%,120% --out $(SIM)/field-rates/uniform
	$(BIN)/tightrope bench ablation --seeds 100-101
	$(BIN)/tightrope bench limit --rates 90% --seeds 100-101 --steps 30 --out $(SIM)/limit
	$(BIN)/tightrope bench paper
	for name in $(CLUSTERS) $(WRONG) $(LATE) $(CLUSTERS:%=field/%) $(CLUSTERS:%=field-rates/%) ablation/mixed ablation/uniform limit; do \
	mkdir -p $(KEPT)/$$name && cp $(SIM)/$$name/report.* $(KEPT)/$$name/ || exit 1; \
	for plot in $(SIM)/$$name/*.svg; do [ ! -f $$plot ] || cp $$plot $(KEPT)/$$name/; done; done
	cp $(SIM)/paper/report.json $(KEPT)/paper.json
	$(BIN)/python docs/make_results.py
	$(BIN)/python docs/make_paper.py

elastic: setup ## simulate elastic fleets anew (an hour or two) and write docs/results.md
	$(BIN)/tightrope bench provision
	$(BIN)/tightrope bench disturbed
	for name in provision disturbed; do mkdir -p $(KEPT)/$$name && cp $(SIM)/$$name/report.* $(KEPT)/$$name/ || exit 1; done
	$(BIN)/python docs/make_results.py

DUELS = mixed paper-two-node
bench-duel: setup ## play Tightrope against a real Ray Serve, live (hours, on an idle machine; goes on where it was interrupted)
	for name in $(DUELS); do $(BIN)/tightrope bench duel $$name $(ARGS) || exit 1; done

docs: $(VENV)/.installed ## write the configuration's JSON Schema and check every document
	$(BIN)/tightrope check --schema > schema/tightrope.schema.json
	$(BIN)/python -m pytest tests/architecture/test_documents.py tests/docs $(ARGS)

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then echo "Tightrope needs Python 3.11 or newer, and none is on the PATH; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV) || { rm -rf $(VENV); \
	echo "$$python cannot make a virtual environment; install its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "tightrope: installing the pinned packages into $(VENV)" >&2
	@for pause in 5 20 0; do \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes --requirement requirements/dev.txt && break; \
	[ $$pause -gt 0 ] || exit 1; echo "tightrope: that failed; trying again in $$pause s" >&2; sleep $$pause; done
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# The lock is made with uv, from any environment that has it: make lock UV=/path/to/uv
UV ?= uv
PIN = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header
PARTS = src/tightrope/app/embedded_parts

lock: ## pin every package anew, with hashes
	$(PIN) pyproject.toml --output-file requirements/run.txt
	$(PIN) pyproject.toml requirements/build.in --extra limit --extra plot --extra dev --output-file requirements/dev.txt
	$(PIN) baselines/ray_serve/requirements.in --output-file baselines/ray_serve/requirements.txt
	$(PIN) pyproject.toml --extra ray --constraint requirements/dev.txt --output-file requirements/ray.txt
	for list in $(PARTS)/*.in; do $(PIN) --no-deps --emit-build-options "$$list" --output-file "$${list%.in}.txt" || exit 1; done

clean: ## remove what was built and installed here; the user's cache stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
