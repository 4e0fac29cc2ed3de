"""NeuTRENO attention for timm's Vision Transformers. Importing this package registers the `neutreno_*` models.

    import timm, timm_neutreno
    model = timm.create_model("neutreno_deit_tiny", pretrained=True)

Paper: Nguyen, Nguyen, Baraniuk, NeurIPS 2023, https://arxiv.org/abs/2312.00751
"""

__version__ = "0.1.0"

from . import hub, smoothing
from .fidelity import fidelity_term
from .neutreno_vit import supported_models
from .support import LayerSupport, UnsupportedModelError, check_support
from .surgery import is_patched, patch, set_fidelity, unpatch

__all__ = [
    "LayerSupport",
    "UnsupportedModelError",
    "check_support",
    "fidelity_term",
    "hub",
    "is_patched",
    "patch",
    "set_fidelity",
    "smoothing",
    "supported_models",
    "unpatch",
]
