"""How alike a model's tokens are, block by block, as it is and with NeuTRENO, as numbers and as a plot.

python examples/see_smoothing.py similarity.png      # embedded model and digits (pip install -e ".[demo]")
python examples/see_smoothing.py similarity.png deit_tiny_patch16_224 path/to/class_folders
"""

import sys

import timm
from torch.utils.data import DataLoader, Subset

import timm_neutreno
from timm_neutreno import demo
from timm_neutreno.smoothing import plot_similarity, token_similarity

plot, name, folder = (sys.argv[1:] + ["similarity.png", None, None][len(sys.argv) - 1 :])[:3]
model = timm.create_model(name or f"local-dir:{demo.CHECKPOINT}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
dataset = timm.data.create_dataset("", root=folder or str(demo.demo_data_directory() / "val"), transform=transform)
some = Subset(dataset, range(0, len(dataset), max(1, len(dataset) // 64)))
loader = DataLoader(some, batch_size=16)

curves = {"as it is": token_similarity(model, loader)}
timm_neutreno.patch(model, fidelity=0.6)
curves["fidelity 0.6, not adapted"] = token_similarity(model, loader)

for block, values in enumerate(zip(*curves.values(), strict=True)):
    print(f"block {block:2d}", *(f"{value:8.3f}" for value in values))
plot_similarity(curves, plot)
print(f"{len(some)} images; columns: {', '.join(curves)}; plot: {plot}")
