"""How it was probed, in words: what a figure needs beside it to mean something."""

from __future__ import annotations

from .bootstrap import RESAMPLES
from .measure import Options


def describe(task: str, options: Options, size: tuple[int, int], data: str) -> dict[str, str]:
    """The protocol in words, for `ProbeResult.protocol`."""
    segmentation = task == "segmentation"
    features = "patch tokens" if segmentation else {"class": "class token", "mean": "mean patch token"}[options.pool]
    return {
        "data": data,
        "features": f"{features} of {'each block' if options.blocks else 'the last block'} under the model's final "
        f"norm, frozen; images at {size[0]} x {size[1]} pixels",
        "linear": "ridge regression in closed form on "
        + ("each patch's share of every class (void left out)" if segmentation else "one-hot targets")
        + ", with intercept, features standardised by train statistics; ridge strength per row from "
        + ", ".join(f"{value:g}" for value in options.ridge),
        "knn": f"cosine similarity, mean target of k neighbours, k from {', '.join(map(str, options.neighbors))}; "
        + (f"at most {options.patches} train patches drawn at random" if segmentation else "all train images"),
        "scoring": (
            "mIoU over the data set at the masks' own resolution; scores of patches upsampled bilinearly; void "
            "ignored; classes that occur in mask or prediction"
            if segmentation
            else "top-1 accuracy"
        ),
        "choice": "ridge strength, k and the method's strengths by the val score; the test images were only scored",
        "interval": f"percentiles of {RESAMPLES} paired bootstrap draws over test images (seed {options.seed}); "
        "images are taken as independent, and frames of one video are not",
    }
