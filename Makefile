# `make help` lists the targets. `make test` and `make book` set up what they need on first use.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN ?= $(VENV)/bin
STAMP := $(VENV)/.installed
# An environment that is given as BIN=folder is used as it is.
OWN := $(if $(filter file,$(origin BIN)),$(STAMP))
SITE := _build/html
CHAPTERS ?= chapters
PORT ?= 8000
REPORT ?= _build/reports/notebooks.xml
JOBS ?= auto
FAULTS ?= 50
INPUTS ?= 100000
SAMPLE ?= 500
CHROMIUM ?= chromium
COLAB ?= $(CURDIR)/.colab
COLAB_PYTHON ?= 3.13
# The landing page, the heaviest notebook page, and a page of the reference stand for the others.
PAGES ?= book/index.html chapters/02_lora/why_low_rank.html book/api/lora.html
SLOWDOWN ?= 4
LIGHTHOUSE = CHROME_PATH=$$(command -v $(CHROMIUM)) npx --yes @lhci/cli@0.15.1 autorun \
    $(foreach page,$(filter-out all,$(PAGES)),--collect.url=http://localhost/$(page))

# The same digits on every x86-64 machine with AVX2: one thread, fixed hashes, and the same kernels on all of them, in
# torch itself, in oneDNN, in MKL (whose other settings mean something else on AMD than on Intel) and in numpy's and
# scipy's OpenBLAS; a hundred training steps carry a last digit far. MKL's are slow: the tests take its quick ones
# first. KERNELS=own lets this processor choose, KERNELS=given takes the environment's.
export OMP_NUM_THREADS := 1
KERNELS ?= portable
ifeq ($(KERNELS),portable)
export ATEN_CPU_CAPABILITY := avx2
export ONEDNN_MAX_CPU_ISA := AVX2
export MKL_CBWR := COMPATIBLE
export OPENBLAS_CORETYPE := Haswell
else ifeq ($(KERNELS),own)
unexport ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA MKL_CBWR OPENBLAS_CORETYPE
endif
export PYTHONHASHSEED := 0
# No network, and no settings of the user.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export IPYTHONDIR := $(VENV)/ipython
export JUPYTER_CONFIG_DIR := $(VENV)/jupyter/config
export JUPYTER_DATA_DIR := $(VENV)/jupyter/data
export JUPYTER_PLATFORM_DIRS := 1
export JUPYTER_PREFER_ENV_PATH := 1
unexport MPLBACKEND
export CHAPTERS

.PHONY: help setup assignments grade test-assignments test test-library faults fuzz sweep gate gate-pages gate-outputs \
    portable colab gpu book check-site publish release serve run bench lint \
    address check-address ebook links audit screenshot lock vulnerabilities sbom reproducible coverage mutants clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | column -t -s '|'

setup: $(STAMP)  ## create .venv with the pinned dependencies

# With LOCKED=1 (Linux, x86-64, Python 3.11) only files with the hashes of requirements.lock are installed.
ifdef LOCKED
PACKAGES := --require-hashes -r requirements.lock && \
    $(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
else
PACKAGES := -c constraints.txt -e '.[dev]'
endif

$(STAMP): pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and "Python 3.11.5 or newer is needed")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PACKAGES)
	$(VENV)/bin/python -W ignore -m pedagogic_peft.course.released || \
	    echo "No real models: the pages that use them will try to fetch them."
	touch $@

assignments: $(OWN)  ## build student versions and autograder packages (ASSIGNMENT=lora for one)
	$(BIN)/python assignments/build.py --assignment '$(ASSIGNMENT)' --url '$(ASSIGNMENTS_URL)'

grade: $(OWN)  ## grade a folder: SUBMISSIONS=... [ASSIGNMENT=lora GRADES=folder LIMIT=900 JOBS=1 ROSTER=csv]
	@test -n '$(SUBMISSIONS)' || { echo "which folder? make grade SUBMISSIONS=folder"; exit 1; }
	@ls _build/assignments/*/assignment.json > /dev/null 2>&1 || $(MAKE) --no-print-directory assignments
	$(BIN)/python assignments/grade.py '$(SUBMISSIONS)' --assignment '$(ASSIGNMENT)' \
	    $(if $(GRADES),--out "$(GRADES)") $(if $(LIMIT),--seconds $(LIMIT)) $(if $(filter-out auto,$(JOBS)),--jobs $(JOBS)) \
	    $(if $(ISOLATION),--isolation $(ISOLATION)) $(if $(ROSTER),--roster "$(ROSTER)") $(if $(MANUAL),--manual "$(MANUAL)") \
	    $(if $(AGAIN),--again)

test-assignments: $(OWN)  ## build and grade as course staff do, with hostile submissions too
	$(BIN)/python -m pytest tests/grading

# Every stage runs, also after one that failed; then the names of those that failed, and the exit code.
stages = @failed=; for stage in $(1); do $(MAKE) --no-print-directory $$stage || failed="$$failed $$stage"; done; \
    if [ -n "$$failed" ]; then echo "failed:$$failed (of $(1))"; exit 1; else echo "passed: $(1)"; fi

test: $(STAMP)  ## run the library's tests, then every notebook (nbval, strict), on all cores (JOBS=1)
	$(call stages,test-library gate)

# What these tests compare holds with any kernels, so they take MKL's quick ones.
ifeq ($(KERNELS),portable)
test-library: export MKL_CBWR := AVX2
endif
test-library: $(STAMP)  ## run the library's tests alone
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup tests --ignore=tests/site \
	    --ignore=tests/grading --ignore=tests/book/test_notebooks.py --ignore=tests/book/test_claims.py \
	    --ignore=tests/book/test_edges.py

faults: $(STAMP)  ## kill training, saving, sweeps and the site's build at 50 random moments each (FAULTS=50)
	FAULTS=$(FAULTS) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/faults

fuzz: $(STAMP)  ## load hostile checkpoints (INPUTS=100000), counted as they pass
	$(BIN)/python -W ignore tests/fuzz/__main__.py --inputs $(INPUTS)

sweep: $(STAMP)  ## try every method on small random models of every text architecture (MODELS="llama mamba")
	$(BIN)/python -W ignore tests/sweep/__main__.py $(if $(TASK),--task "$(TASK)") $(if $(MODELS),--models $(MODELS)) \
	    $(if $(METHODS),--methods $(METHODS)) $(if $(AGAIN),--again)

# The gate every notebook passes before it is published. CHAPTERS=FOLDER judges another folder.
gate:  ## judge the notebooks alone: what they must be, and their outputs
	$(call stages,gate-pages gate-outputs)

gate-pages:
	$(BIN)/python -m pytest -q --noconftest tests/book/test_notebooks.py tests/book/test_claims.py \
	    tests/book/test_edges.py

gate-outputs:
	$(BIN)/python tests/book/gate_outputs.py --jobs $(JOBS) --report $(REPORT) \
	    $(if $(filter portable,$(KERNELS)),--quick-first) $(CHAPTERS)

portable: $(STAMP)  ## the gate as on other processors, imitated (PROCESSOR=name for one), with a report
	$(BIN)/python tests/book/portable.py $(PROCESSOR)

# Another environment, with the versions of Colab's image. The pages' own first cells install the library, from what
# is committed here. COLAB_PYTHON is a version, which uv finds or fetches, or a path.
$(COLAB)/.installed: tests/elsewhere/colab.txt | $(STAMP)
	$(BIN)/uv python find -q $(COLAB_PYTHON) > /dev/null || $(BIN)/uv python install $(COLAB_PYTHON)
	$(BIN)/uv venv -q --seed --clear --python $(COLAB_PYTHON) $(COLAB)
	$(COLAB)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

colab: $(COLAB)/.installed  ## run every page with Colab's versions, and report what differs (PAGES_OF=lora for some)
	$(BIN)/python tests/elsewhere colab --python $(COLAB)/bin/python --install $(PAGES_OF)

gpu: $(STAMP)  ## run every page on the GPU here, with a report (EMULATED=1: on an emulated one; JOBS=4, MINUTES=10)
	$(BIN)/python tests/elsewhere $(if $(EMULATED),gpu-emulated --emulate-gpu,gpu --gpu) \
	    --jobs $(patsubst auto,1,$(JOBS)) $(if $(MINUTES),--minutes $(MINUTES)) $(PAGES_OF)

book: $(STAMP)  ## build the site into _build/html (any warning is an error)
	$(BIN)/python book/tools/build.py

check-site: $(STAMP)  ## check the built site: links, alt texts, nothing from outside, in a browser
	@test -f $(SITE)/index.html || { echo "no site in $(SITE): run make book first"; exit 1; }
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup tests/site

check-address: $(STAMP)
	@$(BIN)/python book/tools/address.py check

publish: check-address  ## test, build, check the site; stop at the first that fails
	$(MAKE) test
	$(MAKE) book
	$(MAKE) check-site
	@echo "$(SITE) is ready to publish."

release: check-address  ## build wheel and source archive, try them on Python 3.11 and 3.13 (PYTHONS=3.11), say what to upload
	$(BIN)/python book/tools/release.py $(PYTHONS)

serve: $(STAMP)  ## show the built site at http://localhost:8000 (PORT=8000)
	$(BIN)/python book/tools/serve.py $(PORT)

run: $(STAMP)  ## re-execute the notebooks (CHAPTERS=...) and store their outputs
	$(BIN)/jupyter nbconvert --inplace --config book/tools/nbconvert_config.py \
	    $$(find $(CHAPTERS) -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' | sort)

bench: $(STAMP)  ## measure the library beside Hugging Face PEFT (CASE="mixed rows" for one, AGAIN=1 anew)
	env -u ATEN_CPU_CAPABILITY -u ONEDNN_MAX_CPU_ISA -u MKL_CBWR -u OPENBLAS_CORETYPE $(BIN)/python -W ignore -m benchmarks $(if $(AGAIN),--again) \
	    $(if $(CASE),"$(CASE)")

lint: $(STAMP)  ## check style, format (notebooks too), types and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet .github

address: $(STAMP)  ## move the book: REPOSITORY=https://... SITE_ADDRESS=https://...; or INSTALL=pypi, INSTALL=git
	$(BIN)/python book/tools/address.py $(or $(INSTALL),$(REPOSITORY) $(SITE_ADDRESS))

ebook: $(STAMP)  ## make a PDF and an EPUB of the built site, linked from its landing page
	$(BIN)/python book/tools/ebook.py

links: $(STAMP)  ## ask every link of the book whether it still leads somewhere
	$(BIN)/jupyter-book build . --toc book/_toc.yml --path-output _build/links --builder linkcheck

# Lighthouse slows the processor fourfold to play a phone. That is right for a fast machine: SLOWDOWN=2, say,
# is for a slow one.
audit:  ## measure some built pages with Lighthouse, PAGES=all for all (needs node and Chromium)
	@test -f $(SITE)/index.html || { echo "no site in $(SITE): run make book first"; exit 1; }
	@command -v npx > /dev/null || { echo "no npx on this machine: install node (nodejs.org)"; exit 1; }
	$(LIGHTHOUSE) --collect.settings.throttling.cpuSlowdownMultiplier=$(SLOWDOWN)
	$(LIGHTHOUSE) --collect.settings.preset=desktop

lock:  ## pin everything that pyproject.toml asks for, with hashes, in requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra dev -c constraints.txt --generate-hashes --no-header \
	    --python-version 3.11.9 --python-platform x86_64-manylinux_2_28 --upgrade -q -o requirements.lock

vulnerabilities: $(STAMP)  ## ask PyPI for known vulnerabilities of what requirements.lock names
	$(BIN)/pip-audit --strict -r requirements.lock --disable-pip --no-deps --progress-spinner off

sbom: $(STAMP)  ## write a bill of materials (CycloneDX) of requirements.lock
	@mkdir -p _build
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible \
	    --of JSON -o _build/sbom.cdx.json

reproducible: $(STAMP)  ## build the site twice, in two folders and time zones, and compare every byte
	book/tools/reproducible $(VENV) $(BIN)

mutants: $(STAMP)  ## change the library's code at SAMPLE=500 places: do the tests notice?
	JOBS=$(JOBS) $(BIN)/python tests/mutants.py $(SAMPLE)

coverage: $(STAMP)  ## branch coverage of the library by its own tests; fails below 95 %
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup -k "not compile" --cov --cov-fail-under=95 \
	    --cov-report=term-missing:skip-covered tests --ignore=tests/site --ignore=tests/grading --ignore=tests/book/test_notebooks.py --ignore=tests/book/test_claims.py --ignore=tests/book/test_edges.py

screenshot:  ## take the README's picture of a page from the built site (needs Chromium)
	$(CHROMIUM) --headless=new --no-sandbox --hide-scrollbars --window-size=1280,800 --virtual-time-budget=3000 \
	    --screenshot=book/_static/page.png file://$(CURDIR)/$(SITE)/chapters/02_lora/lora_from_scratch.html

clean:  ## remove what was built
	rm -rf _build

distclean: clean  ## remove the virtual environment as well
	rm -rf $(VENV) $(COLAB) *.egg-info
