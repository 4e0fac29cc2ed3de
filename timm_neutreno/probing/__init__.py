"""What frozen features are worth: linear and k-NN probes of a model as it is and under training-free settings.

    from timm_neutreno.probing import grid, probe
    result = probe(model, train, test, num_classes=11, settings=grid("neutreno", {"fidelity": [0.02, 0.05, 0.1]}))
    print(*(verdict.sentence for verdict in result.verdicts), sep="\\n")

Settings are chosen on val and reported on test with a paired bootstrap interval against the model as it is.
"""

from .bootstrap import Difference, paired_differences
from .compare import compare
from .errors import DataError, FeatureError
from .features import check_image_size
from .folders import Folder, open_folder
from .images import loaders, sample_photos
from .measure import Measured, Options, Splits, measure
from .pca import pictures
from .plots import methods, plot_blocks, plot_pca, plot_strengths
from .probe import probe
from .protocol import describe
from .result import ProbeResult, Row, Score, Verdict
from .settings import REFERENCE, Setting, check_settings, grid, strength_names

__all__ = [
    "REFERENCE",
    "DataError",
    "Difference",
    "FeatureError",
    "Folder",
    "Measured",
    "Options",
    "ProbeResult",
    "Row",
    "Score",
    "Setting",
    "Splits",
    "Verdict",
    "check_image_size",
    "check_settings",
    "compare",
    "describe",
    "grid",
    "loaders",
    "measure",
    "methods",
    "open_folder",
    "paired_differences",
    "pictures",
    "plot_blocks",
    "plot_pca",
    "plot_strengths",
    "probe",
    "sample_photos",
    "strength_names",
]
