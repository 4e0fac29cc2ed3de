"""The way of v0 from the first block to the later ones, within one forward pass.

Blocks are called one after another by timm's own loops, so v0 cannot be an argument of their call. It waits in a
thread-local between two blocks, outside every checkpoint region; inside one it is an explicit input or output
(surgery.py). Two threads on one model, or DataParallel's replicas, therefore never see each other's values.
"""

from __future__ import annotations

import threading
from typing import Protocol

import torch
from torch import Tensor


class Block(Protocol):
    index: int  # in the order of the forward pass


Values = tuple[Tensor, ...]  # one per attention of a block; more than one only where a block has parallel branches

State = tuple[Values | None, tuple[int, bool] | None]  # values, and the last block's index and the gradient mode


class FirstValuesStore:
    """Shared by the blocks of one model. Copies and pickles as an empty one.

    Attributes:
        checkpoint: Whether the blocks recompute their activations in the backward pass.
    """

    def __init__(self, checkpoint: bool = False):
        self.checkpoint = checkpoint
        self._local = threading.local()
        # set here so that torch.compile finds the same attributes on its first call as on its second
        self._local.values = None
        self._local.index = 0
        self._local.grad_mode = True

    def __reduce__(self):
        return FirstValuesStore, (self.checkpoint,)

    def begin(self) -> State:
        """Start a forward pass; returns where the pass around it, if any, stands, to be given to `end`."""
        values = getattr(self._local, "values", None)
        self._local.values = None
        if torch.compiler.is_compiling():  # a guard on the place would compile the model anew
            return values, None
        return values, (getattr(self._local, "index", 0), getattr(self._local, "grad_mode", True))

    def end(self, outer: State) -> None:
        """Go on with the pass around this one: a hook may run the model inside its own forward."""
        self._local.values, place = outer
        if place is not None:
            self._local.index, self._local.grad_mode = place

    def forget(self) -> None:
        self._local.values = None

    def write(self, values: Values) -> None:
        self._local.values = values
        self._local.index = 0
        self._local.grad_mode = torch.is_grad_enabled()

    def read(self, block: Block) -> Values:
        """The first block's values, for a later block.

        Raises:
            RuntimeError: If no first block ran before in this pass and thread, or this block or a later one did.
        """
        values = getattr(self._local, "values", None)
        if values is None:
            raise RuntimeError(
                f"NeuTRENO block {block.index} was called without the first block before it in this forward pass, "
                "so there are no first-layer values. Call the model, or all its blocks in order. If this came up in a "
                "backward pass, an outside checkpoint wrapper recomputes the block alone: use "
                "model.set_grad_checkpointing() instead of it."
            )
        if not torch.compiler.is_compiling():  # a guard on the index would compile every block anew
            self._check_order(block.index)
        return values

    def _check_order(self, index: int) -> None:
        last = getattr(self._local, "index", 0)
        if index <= last:
            self._local.values = None
            raise RuntimeError(
                f"NeuTRENO block {index} was called after block {last} without the first block in between, so the "
                "stored first-layer values belong to another input. Call all blocks in order, from the first."
            )
        if torch.is_grad_enabled() and not getattr(self._local, "grad_mode", True):
            self._local.values = None
            raise RuntimeError(
                "NeuTRENO's first block ran without gradients and a later one runs with them, so the gradient of the "
                "first-layer values would be lost. An outside reentrant checkpoint wrapper does this: use "
                "model.set_grad_checkpointing() instead of it. To freeze the first block, use requires_grad_(False)."
            )
        self._local.index = index
