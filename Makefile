# Each target makes its own .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SOURCES := modeling_tamiseg processing spaces_demo experiments examples tests train_hf.py setup.py

.PHONY: quickstart reproduce test faults fuzz style quality clean

quickstart: $(READY)  ## both stages on the built-in synthetic sample, then a mask of one of its pictures
	$(BIN)/python train_hf.py --stage pretrain --config experiments/quickstart.yaml --output_dir runs/quickstart/pretrain
	$(BIN)/python train_hf.py --stage finetune --config experiments/quickstart.yaml --output_dir runs/quickstart/finetune --vision_model runs/quickstart/pretrain/best
	$(BIN)/python -m processing.builtin_sample --output runs/quickstart/sample
	$(BIN)/tamiseg predict runs/quickstart/sample/test/images/builtin-test-0-006.png --text "bright round lesions on the left" \
	    --model runs/quickstart/finetune/best --output runs/quickstart/mask.png --overlay runs/quickstart/overlay.png \
	    --overwrite

reproduce: $(READY)  ## the shipped model's scores anew: make reproduce DATA=data/qata_cov19
	$(BIN)/python -m experiments.reproduce --dataset $(DATA)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

KILLS ?= 100

faults: $(READY)  ## breaks small training runs KILLS times, and in other ways; prints how they ended
	$(BIN)/python -m tests.faults --kills $(KILLS)

CASES ?= 20000

fuzz: $(READY)  ## gives CASES damaged files to everything that reads files; prints how that ended
	$(BIN)/python -m tests.fuzz --cases $(CASES)

style: $(READY)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

quality: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

clean:  ## what the targets above made; your own runs/ stay
	rm -rf .venv runs/quickstart build *.egg-info

# torch first and by itself, in the one version that constraints.txt names: whatever build pip finds of it, the rest
# then accepts. For a CPU-only build, set PIP_EXTRA_INDEX_URL to torch's CPU index before the first make.
$(READY): setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(READY)
