# Everything a user runs. `make setup` needs Python 3.11-3.13 and a package registry, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements

.PHONY: help setup demo tools test lint audit fuzz real clean

help:  ## Lists the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Makes .venv with the pinned packages

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}; name one: make setup PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)  # half of one is no use
# The pip that comes with Python 3.11 takes twice as long. Each works on one core alone, so two of them share the packages.
# What Python 3.11 has installed already is replaced before: one would warn that the other is half done with it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip==26.3 $$(grep '^setuptools==' requirements.lock)
	@awk '{ print > "$(VENV)/.part-" NR % 6 }' requirements.lock
	ls $(VENV)/.part-* | xargs -P 2 -n 1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on --no-compile --no-deps -r
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib >/dev/null || true  # templates among them are no Python
	@touch $@

demo: setup  ## The main job on synthetic tiles, from data to defects found by a server, in demo/
	$(BIN)/python -m scripts.demo

tools:  ## Installs what some tests need beside Python, on Debian or Ubuntu as root: Chromium, buildah, promtool, nginx
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium buildah prometheus nginx

lint: setup  ## Checks style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## Runs all tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

audit:  ## Looks for known vulnerabilities of the pinned packages; needs internet
	@test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1; }
	@$(VENV)-audit/bin/python scripts/audit.py $(AUDIT)

fuzz: setup  ## Sends 14,000 wrong requests and images to the exported model; some 10 minutes
	$(BIN)/python -m scripts.fuzz

# Training refuses to emulate it.
BFLOAT16 := $(shell grep -qswE 'avx512_bf16|amx_bf16|bf16' /proc/cpuinfo && echo true || echo false)
# Each recipe names all that the other one changes: what -S sets stays in params.yaml.
NETWORK = efficientnet_lite0
efficientnet_lite0 = -S 'train.image_size=[320,512]' -S train.epochs=13 -S train.mixed_precision=false \
	-S train.backbone_weights=imagenet -S pretrain.weights=none -S pretrain.steps=250 -S pretrain.learning_rate=0.001
slim18 = -S 'train.image_size=[256,416]' -S train.epochs=22 -S train.mixed_precision=$(BFLOAT16) \
	-S train.backbone_weights=none -S pretrain.weights=pretrained/slim18.weights.h5 -S pretrain.steps=300 -S pretrain.learning_rate=0.0005
real: setup  ## The pipeline on the real archive, without internet: make real DATA=<zip or folder> [NETWORK=slim18]
	@test -n "$(DATA)" || { echo 'name the archive: make real DATA=<zip or folder>' >&2; exit 2; }
	@test -n "$($(NETWORK))" || { echo 'NETWORK is efficientnet_lite0 or slim18' >&2; exit 2; }
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc exp run -S "data_load.source=$(abspath $(DATA))" \
		-S train.backbone=$(NETWORK) -S "train.decoder_filters=[128,64,32,16,16]" $($(NETWORK))

clean:  ## Removes .venv
	rm -rf $(VENV) $(VENV)-audit
