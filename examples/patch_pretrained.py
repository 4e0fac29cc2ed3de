"""Put a method into a pretrained timm model, and see that strength 0 changes nothing and 0.6 does.

python examples/patch_pretrained.py                        # an embedded model, no network
python examples/patch_pretrained.py deit_tiny_patch16_224  # any timm name with weights
"""

import sys

import timm
import torch

import timm_neutreno
from timm_neutreno import demo

name = sys.argv[1] if len(sys.argv) > 1 else f"local-dir:{demo.CHECKPOINT}"
model = timm.create_model(name, pretrained=True).eval()
images = torch.randn(2, *timm.data.resolve_model_data_config(model)["input_size"])

with torch.inference_mode():
    before = model(images)
    timm_neutreno.patch(model, fidelity=0.0)
    print("fidelity 0 equals the model as it came, to the last bit:", torch.equal(model(images), before))
    for fidelity in (0.1, 0.3, 0.6):
        timm_neutreno.set_fidelity(model, fidelity)
        print(f"fidelity {fidelity}: largest change of a logit {(model(images) - before).abs().max():.3f}")

timm_neutreno.unpatch(model)
timm_neutreno.patch(model, "neutreno+gfsa", fidelity=0.0, learnable_fidelity="layer")
learned = [key for key in model.state_dict() if key.endswith(("fidelity", "gfsa"))]
print(f"learned strengths, beside the pretrained weights: {len(learned)}, such as {learned[0]}")
