"""The commands as functions: `timm_neutreno.adapt`, `.evaluate` and `.probe` are these."""

from .calls import adapt, evaluate, probe
from .result import Result

__all__ = ["Result", "adapt", "evaluate", "probe"]
