"""Semantic segmentation with a Segmenter: a ViT of timm as encoder, a mask transformer as decoder.

    import timm_neutreno
    model = timm_neutreno.patch(timm_neutreno.Segmenter("deit_tiny", 150, pretrained=True))   # NeuTRENO in both parts
    labels = model.segment(images)                                                            # (B, H, W)

Strudel, Garcia, Laptev, Schmid, "Segmenter: Transformer for Semantic Segmentation", ICCV 2021,
https://arxiv.org/abs/2105.05633. NeuTRENO in it: arXiv 2312.00751, Table 2.
"""

from .decoder import MaskTransformer
from .inference import MULTI_SCALE, logits, predict, slide
from .model import DecoderInPlace, Segmenter
from .official import from_official

__all__ = [
    "MULTI_SCALE",
    "DecoderInPlace",
    "MaskTransformer",
    "Segmenter",
    "from_official",
    "logits",
    "predict",
    "slide",
]
