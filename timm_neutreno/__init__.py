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
    from timm_neutreno_cli.api import adapt, evaluate, probe

    from . import hf, hub, probing, smoothing
    from .causal_lm import CausalLM
    from .eigen import fold, reparametrize
    from .segmenter import Segmenter

LAZY_MODULES = ("hf", "hub", "probing", "smoothing")
LAZY_NAMES = {"reparametrize": ".eigen", "fold": ".eigen", "CausalLM": ".causal_lm", "Segmenter": ".segmenter"}
# the commands as functions: the only door from here to the command line, opened when one of them is used
LAZY_NAMES |= dict.fromkeys(("adapt", "evaluate", "probe"), "timm_neutreno_cli.api")

__all__ = [
    "METHODS",
    "CausalLM",
    "LayerSupport",
    "Segmenter",
    "UnsupportedModelError",
    "adapt",
    "check_support",
    "evaluate",
    "fidelity_term",
    "fold",
    "hf",
    "hub",
    "is_patched",
    "patch",
    "probe",
    "probing",
    "reparametrize",
    "set_fidelity",
    "set_strengths",
    "smoothing",
    "strengths",
    "supported_models",
    "unpatch",
]


def __getattr__(name: str):
    """What only some users need comes when it is used first: together it doubles the time of the import."""
    if name in LAZY_MODULES:
        return import_module(f".{name}", __name__)
    if name in LAZY_NAMES:
        return getattr(import_module(LAZY_NAMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
