"""What the card of a Segmenter says where a classifier's says something else."""

from __future__ import annotations

from typing import Any

from . import card

TAGS = ["image-segmentation", "timm", "neutreno"]
METRICS = {
    "miou": ("mean_iou", "mIoU over the data set, single scale, percent"),
    "miou_multi_scale": ("mean_iou", "mIoU over the data set, multi scale and mirrored, percent"),
    "pixel_accuracy": ("accuracy", "pixel accuracy, percent"),
}


def segmenter(
    repo_id: str, config: dict[str, Any], results: dict[str, Any] | None, license: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Metadata and sections of a Segmenter's card, as `card.render` takes them."""
    data = {"library_name": "timm_neutreno", "pipeline_tag": "image-segmentation", "tags": TAGS}
    sections = {"usage": _usage(repo_id, config), "model": _model(config, results, license)}
    if results:
        text = card.result_section(results, "mIoU over the data set and pixel accuracy in percent.")
        pictures = "![Val images: truth and predictions](examples.png)"
        sections["results"] = "\n\n".join([text, _classes(config, results), pictures])
    return card.metadata_of(data, repo_id, results, license, METRICS), sections


def _usage(repo_id: str, config: dict[str, Any]) -> str:
    return f"""## How to load it

```bash
pip install timm-neutreno
```

```python
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from timm_neutreno import Segmenter

model = Segmenter.from_pretrained("{repo_id}")
image = F.to_dtype(F.pil_to_tensor(Image.open("photo.jpg").convert("RGB")), torch.float32, scale=True)
image = F.resize(F.normalize(image, list(model.mean), list(model.std)), min(model.window))
labels = model.segment(image[None])[0]  # class of every pixel; model.class_names has their names
```

Images larger than {" x ".join(map(str, config["window"]))} pixels are cut into windows of that size."""


def _model(config: dict[str, Any], results: dict[str, Any] | None, license: str | None) -> str:
    lines = ["## Model", "", "A Segmenter: a Vision Transformer as encoder, a mask transformer as decoder."]
    for part, arguments in config["methods"].items():
        with_y = "With Y = A v, A = softmax(q k^T / sqrt(d)):"
        lines += ["", f"Attention of the {part}. {with_y}", "", *card.method_lines(arguments)]
    arguments = ", ".join(f"{key} {value}" for key, value in config["encoder_args"].items())
    lines += [
        "",
        f"- Encoder: `{config['encoder']}`{f' with {arguments}' if arguments else ''}",
        f"- Decoder: {config['decoder_depth']} blocks",
        f"- Classes: {config['num_classes']}",
        *card.origin_lines(results, license),
    ]
    return "\n".join(lines)


def _classes(config: dict[str, Any], results: dict[str, Any]) -> str:
    """IoU of every class."""
    values = results["models"][results["main"]]["iou"]
    names = config["class_names"] or [str(index) for index in range(len(values))]
    cells = [
        f"| {name} | {'-' if value is None else f'{value:.2f}'} |" for name, value in zip(names, values, strict=True)
    ]
    return "\n".join(["| class | IoU, percent ('-': neither there nor predicted) |", "|---|---|", *cells])
