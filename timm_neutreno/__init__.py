"""NeuTRENO attention for timm's Vision Transformers."""

__version__ = "0.1.0"
