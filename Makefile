# make demo | test | peers | chaos | lab | soak | fuzz | check | constraints | audit | clean
# All that is installed goes into .venv; the stamps in it make a second call quick.

VENV := .venv
BIN := $(VENV)/bin
PEER := $(VENV)/medimagetools
PYTHON ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
CHECKED := config workers daemon tests $(wildcard benchmarks)

.PHONY: demo test peers chaos lab soak fuzz check constraints audit clean help
.PHONY: check-format check-lint check-types check-layers check-spelling

help:
	@echo "make demo         set up, then send a phantom study through everything"
	@echo "make test         run the tests, two files at once; ARGS='-k words' chooses, '-n0' takes one"
	@echo "make peers        make the environment of a peer that a test compares us with"
	@echo "make chaos        kill the system at work and judge what is left; ARGS='--seeds 1-10'"
	@echo "make lab          cut, kill and restart hosts that share an index; as root; ARGS='--studies 20'"
	@echo "make soak         send for long and watch what grows; ARGS='--instances 200000'"
	@echo "make fuzz         read hostile input of every kind; ARGS='--seconds 60 header archives'"
	@echo "make check        formatting, lint, types, layers, spelling"
	@echo "make constraints  pin what is installed now"
	@echo "make audit        ask which pinned versions have known vulnerabilities; needs the network"
	@echo "make clean        remove .venv, caches and the demo's output"

demo: $(VENV)/.run
	$(BIN)/petct-ingest demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(ARGS)

peers: $(PEER)/.made

# make -k check goes on after the first that fails
check: check-format check-lint check-types check-layers check-spelling

chaos: $(VENV)/.dev
	$(BIN)/python tests/chaos_run.py $(ARGS)

lab: $(VENV)/.dev
	$(BIN)/python tests/lab_run.py $(ARGS)

soak: $(VENV)/.dev
	$(BIN)/python tests/soak_run.py $(ARGS)

fuzz: $(VENV)/.fuzz
	$(BIN)/python tests/fuzzing/run.py $(ARGS)

check-format: $(VENV)/.dev
	$(BIN)/ruff format --check $(CHECKED)

check-lint: $(VENV)/.dev
	$(BIN)/ruff check $(CHECKED)

check-types: $(VENV)/.dev
	$(BIN)/mypy

check-layers: $(VENV)/.dev
	$(BIN)/lint-imports

check-spelling: $(VENV)/.dev
	$(BIN)/codespell

constraints: $(VENV)/.dev
	@{ echo "# The tested set, made by: make constraints"; \
	$(PIP) freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' | LC_ALL=C sort -f; } > constraints.new
	@mv constraints.new constraints.txt

# in an environment of its own: it is no part of what it looks at
$(VENV)/audit: $(VENV)/.made
	$(BIN)/python -m venv $@
	$@/bin/python -m pip --disable-pip-version-check install --quiet "pip-audit>=2.10"

audit: $(VENV)/audit
	@.ci/audit $(VENV)/audit/bin/pip-audit constraints.txt

# in an environment of its own: it pins what it depends on
$(PEER)/.made: $(VENV)/.made
	$(BIN)/python -m venv --without-pip $(PEER)
	$(PIP) --python $(PEER)/bin/python install --quiet --no-compile "med-imagetools==2.16.0"
	@touch $@

# the first Python that is new enough and can make environments, unless PYTHON names one
$(VENV)/.made:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14); do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then echo "$$python -m venv $(VENV)"; exec $$python -m venv $(VENV); fi; \
	done; \
	echo "Python 3.11 or newer with venv is needed: install python3 and python3-venv," \
	"or say make PYTHON=/path/to/python3"; exit 1
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

# older versions of pip know no dependency groups
$(VENV)/.dev: $(VENV)/.run
	@$(BIN)/python -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['dev'], sep='\n')" \
	> $(VENV)/dev.txt
	$(PIP) install --quiet --constraint constraints.txt --requirement $(VENV)/dev.txt
	@touch $@

# a Python for which there is none fuzzes without coverage
$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) install --quiet --only-binary :all: --constraint constraints.txt \
	"$$($(BIN)/python -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['fuzz'])")" \
	|| echo "no atheris for this Python"
	@touch $@

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
