"""What can be wrong with what is probed: the data or the model. Both are ValueErrors with one sentence."""


class DataError(ValueError):
    """Images, masks or labels that cannot be probed."""


class FeatureError(ValueError):
    """A model whose features cannot be probed."""
