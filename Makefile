# The commands of the README. `make demo` and `make test` set up .venv by themselves; a second call installs nothing.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO_DIR ?= output/demo
# Two processes of one thread each: most tests start programs or small networks, which more threads do not speed up.
# The longest files first, or one process would end with them while the other has nothing left. (`tests/tools tests`
# would not do: pytest drops a folder that another one holds.)
TESTS = OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
  tests/tools $(filter-out tests/tools/ tests/__pycache__/,$(sort $(wildcard tests/*/))) $(wildcard tests/test_*.py)

.PHONY: demo test test-all check parity bench docs lock clean gpu gpu-wheels

demo: $(STAMP)
	$(PY) -m res2net_dense.cli demo --output $(DEMO_DIR)

test: $(STAMP)
	$(TESTS)

# The slow ones too, which take minutes each: before a release.
test-all: $(STAMP)
	$(TESTS) -m "not gpu and not network"

check: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(TESTS)

# Against every implementation that can be had: timm's whole family, and the libraries of requirements/parity.txt.
parity: $(STAMP)
	$(PY) -m pip install --disable-pip-version-check --progress-bar off --no-deps --upgrade --target build/parity \
	  -r requirements/parity.txt
	PYTHONPATH=build/parity $(PY) -m pytest -m "slow or not slow" tests/backbones tests/convert

bench: $(STAMP)
	$(PY) -m res2net_dense.cli benchmark --model res2net50_26w_4s res2net50_14w_8s res2net101_26w_4s --batch 1 8 --dtypes fp32 bf16 \
	  --formats eager optimized --against timm resnet50 --repeats 7 --warmup 1 --json output/benchmark.json
	$(PY) -m res2net_dense.cli benchmark --model res2net50_26w_4s --batch 1 8 --formats optimized --against timm timm-compiled \
	  --repeats 7 --warmup 1 --json output/benchmark_compiled.json

# Everything that needs a CUDA GPU, in six minutes and without network; on a bare image with its own Python:
# `make gpu-wheels` where pip finds packages, then there `make gpu PY=python3 STAMP=`.
GPU_WHEELS ?= build/gpu-wheels
gpu: $(STAMP)
	$(PY) benchmarks/gpu.py $(if $(wildcard $(GPU_WHEELS)/*.whl),--wheels $(GPU_WHEELS)) $(GPU_ARGS)

gpu-wheels: $(STAMP)
	$(PY) benchmarks/gpu_wheels.py --output $(GPU_WHEELS)

docs: $(STAMP)
	$(PY) docs/make_model_zoo.py
	$(PY) docs/make_reference.py

$(STAMP): requirements/lock.txt requirements/detectron2.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, \
	  $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(PY) -m pip install --disable-pip-version-check --progress-bar off --require-hashes -r requirements/lock.txt
	@# --target does not look at what is installed and drops a package named `tools` that would shadow ours
	$(PY) -c 'import detectron2' 2>/dev/null || { \
	  site=$$($(PY) -c 'import site; print(site.getsitepackages()[0])') && \
	  $(PY) -m pip install --disable-pip-version-check --progress-bar off --no-deps --only-binary=:all: \
	    --python-version 3.10 --target "$$site" --require-hashes -r requirements/detectron2.txt && \
	  rm -rf "$$site/tools"; }
	$(PY) -m pip install --disable-pip-version-check --no-deps -e .
	touch $(STAMP)

# Needs uv (`pip install uv`); resolves for Python 3.10 to 3.13 at once.
lock:
	uv pip compile pyproject.toml --universal --python-version 3.10 --upgrade --generate-hashes --no-header --no-annotate \
	  --extra detection --extra segmentation --extra onnx --extra openvino --extra dev --constraint requirements/pins.txt --output-file requirements/lock.txt

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache datasets/toy
