"""Made tests/old_repository with timm_neutreno 0.1.0: `python tests/make_old_repository.py`. Not to be run again.

The stored files stand for repositories that users have; a newer version must load them as they are. Run it with a later
version, into another folder, to store that one's too. Prints the logits that test_push.py expects.
"""

import sys
from pathlib import Path

import timm
import torch
from hosts import randomize

from timm_neutreno.hub import save_pretrained

SHAPE = dict(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=2)

folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "old_repository")
model = timm.create_model("neutreno_vit_tiny_patch16_224", fidelity=0.45, learnable_fidelity="head", **SHAPE).eval()
save_pretrained(randomize(model), folder, label_names=["cat", "dog"], tag="neutreno")
print(model(torch.linspace(-2, 2, 3 * 16 * 16).reshape(1, 3, 16, 16))[0].tolist())
