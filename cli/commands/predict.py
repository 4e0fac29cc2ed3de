"""`neutreno predict`: what a classifier sees in pictures of yours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import Config
from ..errors import CheckpointError, DataError
from .options import takes_config


@takes_config("arch", "weights", "model_kwargs", "device")
def predict(
    config: Config,
    model: Annotated[str, typer.Argument(help="A run's folder, or anything that adapt --checkpoint takes.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print for each image.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Print the most probable classes of each image, which is prepared as the model was trained.

    Exit codes are those of adapt.

    # A photo and a folder of photos, by a run's model
      neutreno predict runs/mine cat.jpg photos/
    """
    rows = list(predictions(model, images, top, config))
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(row["image"])
        for found in row["classes"]:
            print(f"  {100 * found['probability']:6.2f} %  {found['name']}")


def predictions(name: str, images: Sequence[Path], top: int, config: Config) -> Iterator[dict[str, Any]]:
    """Yield {"image", "classes": [{"index", "name", "probability"}, ...]} per image, the most probable first.

    Raises:
        CheckpointError: If there is no such model, or it has no head.
        DataError: If an image is missing or cannot be read.
    """
    import torch

    from ..data.photos import find_photos, photo_batches
    from ..engine import checkpoint, setup
    from ..runtime.processes import World

    if missing := [path for path in images if not path.exists()]:
        raise DataError(f"there is no image {missing[0]}.")
    photos = [photo for path in images for photo in (find_photos(path) if path.is_dir() else [path])]
    device = setup.set_up_device(config, World())
    source = checkpoint.resolve_checkpoint(name, config.arch, config.model_kwargs, config.weights)
    if not source.num_classes:
        raise CheckpointError(f"{name} has no head, so it knows no classes. Adapt it to some first.")
    model: Any = checkpoint.build(source).to(device).eval()
    names = class_names(source.label_names, model)
    for start, batch in enumerate(photo_batches(photos, model, batch_size=1)):
        with torch.inference_mode():
            probabilities = model(batch.to(device))[0].float().softmax(0)
        found = probabilities.topk(min(top, len(probabilities)))
        classes = [
            {"index": index, "name": names.get(index, f"class {index}"), "probability": value}
            for value, index in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]
        yield {"image": str(photos[start]), "classes": classes}


def class_names(recorded: Sequence[str] | None, model: Any) -> dict[int, str]:
    """Index -> name: as the checkpoint records them, or timm's own for ImageNet's class sets; empty if unknown."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if recorded:
        return dict(enumerate(recorded))
    subset = infer_imagenet_subset(model)
    if not subset:
        return {}
    info = ImageNetInfo(subset)
    return {index: info.index_to_description(index) for index in range(info.num_classes())}
