"""A model as a file for other programs, ONNX or torch.export's .pt2, in its place once it gave the same answers."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.models._input import get_model_input_config
from torch import Tensor, nn

from ..errors import CheckpointError, CliError, OutputError, UsageError, one_line
from ..runtime import files
from .checkpoint import build, resolve_checkpoint

BATCHES = (1, 2, 5)  # that are compared; the file takes any number
TOLERANCE = 1e-4
LARGEST = 65536  # images in a batch
PACKAGES = ("onnx", "onnxruntime", "onnxscript")

Answer = Callable[[Tensor], Tensor]


def export(
    name: str, onnx: Path | None, pt2: Path | None, overwrite: bool = False, **options: Any
) -> dict[str, Any]:  # fmt: skip
    """Write a model's files, each checked against the model on the CPU before it is put in its place.

    Args:
        name: A run's folder or a folder in it, or what adapt's --checkpoint takes.
        onnx: File to write, with a batch of any size; weights of 2 GB and more go beside it, into FILE.data.
        pt2: Likewise, of torch.export.
        overwrite: Replace files that are there.
        **options: arch, model_kwargs and weights, as of `resolve_checkpoint`.

    Returns:
        {"model", "input" (channels, height, width), then by kind: "onnx" and "pt2": {"file", "largest_difference"}}.

    Raises:
        UsageError: If there is nothing to write, or packages are missing.
        CheckpointError: If there is no model, or its file gives other answers.
        OutputError: If a file exists, or cannot be written.
    """
    wanted = {"onnx": (onnx, _to_onnx), "pt2": (pt2, _to_pt2)}
    given = {kind: (path, write) for kind, (path, write) in wanted.items() if path is not None}
    if not given:
        raise UsageError("nothing to export: pass --onnx FILE.onnx or --pt2 FILE.pt2, or both.")
    missing = [package for package in PACKAGES if onnx is not None and find_spec(package) is None]
    if missing:
        raise UsageError(f'--onnx needs the packages {", ".join(missing)}: pip install "timm-neutreno[onnx]"')
    for kind, (path, _) in given.items():
        if path.suffix != f".{kind}":
            raise UsageError(f"--{kind} {path}: the name must end in .{kind}.")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists: nothing is overwritten without --overwrite. Name another file.")
    model: Any = build(resolve_checkpoint(name, **options)).eval().requires_grad_(False)
    shape = tuple(get_model_input_config(model)["input_size"])
    document: dict[str, Any] = {"model": name, "input": list(shape)}
    for kind, (path, write) in given.items():
        document[kind] = {"file": str(path), "largest_difference": _export(name, model, shape, path, write)}
    return document


def _export(name: str, model: nn.Module, shape: tuple[int, ...], path: Path, write: Callable[..., Answer]) -> float:
    """Write one file beside its place, compare, move it; the largest difference of an output."""
    files.make_directory(path.parent)
    with files.writing(path), tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        beside = Path(folder) / path.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                difference = compare(model, write(model, torch.zeros(2, *shape), beside), shape, path)
            except (OSError, CliError):
                raise
            except Exception as error:  # what a converter cannot do ends in errors of many kinds
                raise CheckpointError(
                    f"{name} cannot be exported to {path.suffix[1:]}: {one_line(error)[:300]}"
                ) from error
        for part in sorted(Path(folder).iterdir(), reverse=True):  # weights beside the file first
            part.replace(path.parent / part.name)
    return difference


def compare(model: nn.Module, answer: Answer, shape: tuple[int, ...], path: Path) -> float:
    """The largest difference between the outputs of a model and of its file.

    Args:
        model: In eval mode, on the CPU.
        answer: From images (B, channels, height, width) to outputs.
        shape: (channels, height, width).
        path: The file, for the message.

    Raises:
        CheckpointError: If it is above `TOLERANCE`, absolute or relative to the largest output, in any batch.
    """
    largest = 0.0
    for batch in BATCHES:
        images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = model(images)
        gap = (answer(images) - expected).abs().max().item()
        if not gap <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise CheckpointError(
                f"{path} was not written: its outputs differ from the model's by {gap:.2g} for a batch of {batch}, "
                f"where {TOLERANCE:g} is allowed. Report the model's name."
            )
        largest = max(largest, gap)
    return largest


def _about(model: nn.Module) -> dict[str, str]:
    """What a program that reads the file must know of its images and classes."""
    config: Any = model.pretrained_cfg
    found = {key: value for key, value in resolve_model_data_config(model).items()}
    names = {"label_names": config["label_names"]} if config.get("label_names") else {}
    return {key: json.dumps(value) for key, value in {**found, **names}.items()}


def _program(model: nn.Module, images: Tensor) -> tuple[torch.export.ExportedProgram, Any]:
    """The graph, and which of its sizes are free."""
    free = ({0: torch.export.Dim("batch", min=1, max=LARGEST)},)
    return torch.export.export(model, (images,), dynamic_shapes=free), free


def _to_onnx(model: nn.Module, images: Tensor, path: Path) -> Answer:
    import onnxruntime

    graph, free = _program(model, images)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": free}
    program: Any = torch.onnx.export(graph, (), dynamo=True, verbose=False, **names)
    program.model.metadata_props.update(_about(model))
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _to_pt2(model: nn.Module, images: Tensor, path: Path) -> Answer:
    file = io.BytesIO()  # torch's own writer ends the process when the disk is full
    torch.export.save(_program(model, images)[0], file, extra_files={"about.json": json.dumps(_about(model))})
    path.write_bytes(file.getbuffer())
    return torch.export.load(path).module()
