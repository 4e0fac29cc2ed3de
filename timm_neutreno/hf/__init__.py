"""The same methods in models of transformers, through its attention interface. Needs the extra `transformers`.

    from timm_neutreno import hf
    model = hf.patch(AutoModelForCausalLM.from_pretrained("gpt2"), fidelity=0.4)
    model.save_pretrained("folder")
    model = hf.load("folder")  # transformers' own from_pretrained refuses this folder

`timm_neutreno.strengths`, `set_strengths`, `set_fidelity` and `is_patched` work on these models too.
"""

try:
    import transformers  # noqa: F401 - the modules below take what they need
except ImportError as error:
    raise ImportError(
        "timm_neutreno.hf needs transformers, which is not installed: pip install 'timm-neutreno[transformers]'."
    ) from error

from .loading import load
from .surgery import patch, unpatch

__all__ = ["load", "patch", "unpatch"]
