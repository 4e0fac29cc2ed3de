"""The parts of `neutreno analyze` that are not measured per layer on all images: name -> numbers and report section."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import Section

if TYPE_CHECKING:
    from torch import Tensor, nn

Models = dict[str, "nn.Module"]  # name for legends -> model


def spectra_part(models: Models, first: dict[str, Tensor], plots: Path) -> tuple[Any, Section]:
    """Eigenvalues of W_V W_proj."""
    from timm_neutreno.smoothing import dominating_eigenvalues, plot_spectra, spectrum

    spectra = {label: spectrum(model) for label, model in models.items()}
    for suffix in (".png", ".svg"):
        plot_spectra(spectra, plots / f"spectra{suffix}")
    numbers = {
        label: [
            {
                "mean_real_part": float(layer.layer.real.mean()),
                "share_positive": float((layer.layer.real > 0).double().mean()),
                "largest_modulus": float(layer.layer.abs().max()),
                "negative_norm_gains": layer.negative_gains if layer.negative_gains >= 0 else None,
                "smoothing_heads": float(first_image.smooths.double().mean()),
            }
            for layer, first_image in zip(spectra[label], dominating_eigenvalues(model, first[label]), strict=True)
        ]
        for label, model in models.items()
    }
    header = (
        "model, layer",
        "mean real part",
        "share positive",
        "largest modulus",
        "negative norm gains",
        "smoothing heads",
    )
    table = [[*header]]
    for label, layers in numbers.items():
        for index, layer in enumerate(layers):
            cells = ["" if value is None else f"{value:.3g}" for value in layer.values()]
            table.append([f"{label}, {index + 1}", *cells])
    text = (
        "Eigenvalues of the weights that attention multiplies its mean of tokens with. Positive real parts make a "
        "repeated layer smooth its tokens, negative ones keep them apart (Dovonon et al., arXiv 2401.04301); a "
        "negative gain in the norm before the attention swaps the two. NeuTRENO's fidelity is not in these weights. "
        "Smoothing heads: the share of heads whose repeated update, with their attention map of the first image, would "
        "end in equal tokens."
    )
    return numbers, Section(
        "Spectrum of W_V W_proj", [text], [(plots / "spectra.svg", "Histogram of eigenvalues")], table
    )


def maps_part(models: Models, first: dict[str, Tensor], plots: Path) -> tuple[Any, Section]:
    """Attention maps of the first image."""
    from timm_neutreno.smoothing import attention_maps, plot_attention_maps

    pictures = []
    for index, (label, model) in enumerate(models.items()):
        path = plots / f"maps_{index + 1}.png"
        plot_attention_maps(attention_maps(model, first[label]), path, title=label)
        pictures.append((path, f"Attention maps of {label}"))
    text = "Attention maps of the first image: each row is a token, its bright columns the tokens that it attends to."
    return {"files": [path.name for path, _ in pictures]}, Section("Attention maps", [text], pictures)


def cost_part(models: Models, first: dict[str, Tensor], plots: Path) -> tuple[Any, Section]:
    """What the fidelity term costs on top of each model without it."""
    import copy

    from timm_neutreno import is_patched, unpatch
    from timm_neutreno.cost import efficiency

    numbers: dict[str, Any] = {}
    table = [["model", "operations", "peak memory", "time (quartiles)"]]
    for label, model in models.items():
        plain = copy.deepcopy(model)
        ratios = efficiency(unpatch(plain) if is_patched(plain) else plain, first[label])
        numbers[label] = ratios._asdict()
        low, high = ratios.seconds_quartiles
        time = f"{ratios.seconds:.3f} ({low:.3f} to {high:.3f})"
        table.append([label, f"{ratios.flops:.6f}", f"{ratios.peak_bytes:.4f}", time])
    text = (
        "NeuTRENO over the same model without it, one image: operations counted with elementwise ones, peak memory of "
        "the tensors that a forward pass makes, and time in pairs of runs. Where the quartiles lie on both sides of 1, "
        "the difference in time is within the noise."
    )
    return numbers, Section("What NeuTRENO costs", [text], (), table)


EXTRAS = {"spectra": spectra_part, "maps": maps_part, "cost": cost_part}
