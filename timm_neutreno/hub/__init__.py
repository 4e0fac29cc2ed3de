"""The Hugging Face Hub: models that `timm.create_model("local-dir:...")` and `"hf-hub:..."` give back, with a card."""

from .errors import PushError
from .push import push_folder, push_to_hub
from .save import save_pretrained

__all__ = ["PushError", "push_folder", "push_to_hub", "save_pretrained"]
