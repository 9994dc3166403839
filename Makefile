# make demo: LeNet-5 learns real digits.   make demo DEVICE=cuda: on a GPU.   make test: the whole suite.
# Both first make .venv with the pinned torch, and compile what has changed.
#
#   make demo VENV=            build in place against the torch of the active Python; nothing is downloaded
#   make test TORCH=torch==2.11.0 TORCH_INDEX=https://...   another build of torch, from a pip index of your choice
#   make demo ARGS="--epochs 5"  make test ARGS="-k adjoint"
#   make build, make clean

TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV ?= .venv
PYTHON ?= python3
ARGS ?=
DEVICE ?= cpu

ifeq ($(VENV),)
RUN := $(PYTHON)
DEPENDENCIES :=
STAMP := build/.built
else
RUN := $(VENV)/bin/python
# Named after the torch that was asked for: another TORCH is installed and built against anew.
DEPENDENCIES := $(VENV)/.dependencies-$(subst =,-,$(TORCH))
STAMP := $(VENV)/.built-$(subst =,-,$(TORCH))
endif

SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: demo test build clean

demo: build
	$(RUN) -m conv_ext demo --device $(DEVICE) $(ARGS)

test: build
	$(RUN) -m pytest tests $(ARGS)

build: $(STAMP)

$(VENV)/.dependencies-%: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	$(RUN) -m pip install --quiet setuptools wheel ninja pybind11 numpy \
	    pytest hypothesis expecttest tqdm matplotlib scikit-learn
	touch $@

$(STAMP): $(DEPENDENCIES) $(SOURCES)
ifeq ($(VENV),)
	$(RUN) setup.py --quiet build_ext --inplace
	mkdir -p build
else
	$(RUN) -m pip install --quiet --no-build-isolation --no-deps -e .
endif
	touch $@

clean:
	rm -rf $(STAMP) build dist conv_ext.egg-info conv_ext/lib conv_ext/_build.json conv_ext/_C.*.so
