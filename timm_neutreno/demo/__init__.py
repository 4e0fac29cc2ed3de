"""The embedded default: real handwritten digits and a small ViT pretrained on them; a first run needs no network."""

from pathlib import Path

# what timm calls a local dir: timm.create_model(f"local-dir:{CHECKPOINT}", pretrained=True)
CHECKPOINT = Path(__file__).parent


def demo_data_directory() -> Path:
    """The digits as train/<class>/ and val/<class>/, written to the cache on first use.

    Raises:
        ModuleNotFoundError: If scikit-learn is missing; the message says how to get it.
    """
    from .digits import write_digits

    return write_digits()


def demo_segmentation_directory() -> Path:
    """Lines of digits with masks, as images/ and annotations/ with train/ and val/, written to the cache on first use.

    Raises:
        ModuleNotFoundError: If scikit-learn is missing; the message says how to get it.
    """
    from .lines import write_lines

    return write_lines()
