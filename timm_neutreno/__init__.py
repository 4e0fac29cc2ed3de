"""NeuTRENO attention and its relatives for timm's Vision Transformers. The import registers the `neutreno_*` models.

    import timm, timm_neutreno
    model = timm.create_model("neutreno_deit_tiny", pretrained=True)

Paper: Nguyen, Nguyen, Baraniuk, NeurIPS 2023, https://arxiv.org/abs/2312.00751
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

from .methods import METHODS, fidelity_term
from .neutreno_vit import supported_models
from .support import LayerSupport, UnsupportedModelError, check_support
from .surgery import is_patched, patch, set_fidelity, set_strengths, strengths, unpatch

if TYPE_CHECKING:
    from . import hub, probing, smoothing

__all__ = [
    "METHODS",
    "LayerSupport",
    "UnsupportedModelError",
    "check_support",
    "fidelity_term",
    "hub",
    "is_patched",
    "patch",
    "probing",
    "set_fidelity",
    "set_strengths",
    "smoothing",
    "strengths",
    "supported_models",
    "unpatch",
]


def __getattr__(name: str):
    """`hub`, `probing` and `smoothing` come when they are used first: they would double the time of the import."""
    if name in ("hub", "probing", "smoothing"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
