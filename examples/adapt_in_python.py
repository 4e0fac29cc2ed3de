"""Adapt a checkpoint from Python, beside a control, and use what came out.

python examples/adapt_in_python.py                            # embedded model and digits (pip install -e ".[demo]")
python examples/adapt_in_python.py deit_tiny path/to/images   # any checkpoint, and a folder with train/ and val/
"""

import sys

import torch

import timm_neutreno

checkpoint, data = (sys.argv[1:] + ["demo", "demo"][len(sys.argv) - 1 :])[:2]
result = timm_neutreno.adapt(
    checkpoint=checkpoint,
    data=data,
    method=["neutreno", "neutreno+featscale"],  # two methods against one control
    fidelity=0.3,
    epochs=1,  # one epoch of a few batches: a look, and no result
    limit_batches=6,
    workers=0,
)

print(result)  # the table, and what it shows and does not show
difference = result.rows["neutreno"]["top1"] - result.rows["control"]["top1"]
print(f"neutreno against the control: {difference:+.2f} points of top-1")
print("report to open:", result.paths["report.html"])

model = result.model("neutreno")  # also "control", "checkpoint", ...; without a name the first method's
with torch.inference_mode():
    size = model.pretrained_cfg["input_size"]
    print("logits:", tuple(model(torch.randn(2, *size)).shape))
print("layers with the term:", len(timm_neutreno.strengths(model)))
