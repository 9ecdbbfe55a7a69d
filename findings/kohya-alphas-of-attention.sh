#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: of a LoRA file with kohya's keys, in which layers have different
# alphas, the alphas of attention layers are forgotten, without a message.
#
# Expected: each layer of the adapter is scaled by its own alpha over its rank, as the file says.
# Seen: layers of feed-forward blocks are; all of to_q and to_k have the scale of the most common
# alpha, so that a layer that should be scaled by 0.5 is scaled by 2.
# The project writes files with one alpha and multiplies the rest into the weights.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy diffusers==0.42.1 peft==0.21.2 transformers==5.24.0
cat > "$work/scales.py" <<'PY'
import sys
import tempfile

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors.torch import save_file

RANK = 4
torch.manual_seed(0)
net = UNet2DConditionModel(
    sample_size=8, block_out_channels=(32,), layers_per_block=1, norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    cross_attention_dim=16, attention_head_dim=8,
)
ends = ("to_q", "to_k", "ff.net.0.proj", "ff.net.2")
layers = [(name, one) for name, one in net.named_modules() if name.endswith(ends)]
file, wanted = {}, {}
for i, (name, layer) in enumerate(layers):
    key = "lora_unet_" + name.replace(".", "_")
    alpha = 8.0 if i % 2 else 2.0
    file[f"{key}.lora_down.weight"] = torch.randn(RANK, layer.in_features)
    file[f"{key}.lora_up.weight"] = torch.randn(layer.out_features, RANK)
    file[f"{key}.alpha"] = torch.tensor(alpha)
    wanted[name] = alpha / RANK
folder = tempfile.mkdtemp()
save_file(file, f"{folder}/pytorch_lora_weights.safetensors")
state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(folder)
StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, alphas, net, adapter_name="a")
seen = {name: net.get_submodule(name).scaling["a"] for name in wanted}
wrong = [name for name in wanted if seen[name] != wanted[name]]
attention = [name for name in wanted if name.endswith(("to_q", "to_k"))]
print(f"{len(wrong)} of {len(wanted)} layers have another scale than the file says, such as")
print(f"  {wrong[0]}: the file says {wanted[wrong[0]]}, loaded is {seen[wrong[0]]}")
print(f"scales of the {len(attention)} attention layers: {sorted({seen[n] for n in attention})}")
only = all(name in attention for name in wrong)
sys.exit(0 if wrong and only and len({seen[n] for n in attention}) == 1 else 3)
PY
"$work/venv/bin/python" "$work/scales.py" 2>/dev/null
echo "as described"
