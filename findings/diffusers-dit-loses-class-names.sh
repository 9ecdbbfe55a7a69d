#!/usr/bin/env bash
# diffusers 0.42.1: a DiTPipeline that is saved and loaded again has lost its class names.
#
# Expected: save_pretrained writes id2label into model_index.json, where from_pretrained reads it.
# Seen: it is not written, and get_label_ids of the loaded pipeline knows no class. Nothing is said
# on saving; the pipeline still samples by class numbers.
# The project reads the names where model_index.json has them, and else needs --class-names.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy diffusers==0.42.1 transformers==5.24.0
cat > "$work/names.py" <<'PY'
import json
import sys
import tempfile
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

transformer = DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
    norm_num_groups=4, sample_size=8, patch_size=2, num_embeds_ada_norm=2,
)
vae = AutoencoderKL(
    block_out_channels=(8,), norm_num_groups=4, latent_channels=4,
    down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
)
names = {0: "tench, Tinca tinca", 1: "goldfish"}
pipeline = DiTPipeline(transformer, vae, DDIMScheduler(), id2label=names)
before = pipeline.get_label_ids(["goldfish", "tench"])
folder = tempfile.mkdtemp()
pipeline.save_pretrained(folder)
written = json.loads((Path(folder) / "model_index.json").read_text()).get("id2label")
again = DiTPipeline.from_pretrained(folder)
print(f"before: {before}; written: {written}; names of the loaded pipeline: {again.labels}")
sys.exit(0 if before == [1, 0] and not written and not again.labels else 3)
PY
"$work/venv/bin/python" "$work/names.py" 2>/dev/null
echo "as described"
