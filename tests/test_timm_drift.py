"""Contract 8: the source of every timm forward that ours stands in for, by hash, so that a new timm names what changed.

python tests/test_timm_drift.py        prints the table for the installed timm
"""

import ast
import hashlib
import importlib
import inspect
import io
import textwrap
import tokenize

import pytest
import timm

from timm_neutreno.blocks import BLOCKS, BRANCHES, SINGLE, WINDOWED
from timm_neutreno.projections import ATTENTIONS

# timm class -> hash of its forward in timm 1.0.31
HASHES = {
    "timm.layers.attention.Attention": "d5f7767e01e0",
    "timm.layers.attention.AttentionRope": "eb8a1cae35f3",
    "timm.models.eva.EvaAttention": "4f7e980ab172",
    "timm.models.beit.Attention": "36c640eca1f8",
    "timm.models.vision_transformer_relpos.RelPosAttention": "64f6c0b13291",
    "timm.models.cait.TalkingHeadAttn": "f7fa56a1aba3",
    "timm.models.gemma4_vit.Gemma4Attention": "0af14860be3c",
    "timm.layers.diff_attention.DiffAttention": "67113aadb0f7",
    "timm.models.vision_transformer_sam.Attention": "f33beedc75dc",
    "timm.models.vision_transformer.ParallelScalingBlock": "37eb9448babe",
    "timm.models.vision_transformer.DiffParallelScalingBlock": "b77c39fcc7a2",
    "timm.models.vision_transformer.ParallelThingsBlock": "0eb38d290f9e",
    "timm.models.vision_transformer_sam.Block": "0eb4b4df8b92",
}  # fmt: skip


def digest(source: str) -> str:
    """A hash of the code without comments, docstring and layout; the same under every Python."""
    source = textwrap.dedent(source)
    parts, before = [], None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or token.type == tokenize.NL:
            continue
        is_docstring = token.type == tokenize.STRING and before == tokenize.INDENT
        mark = {tokenize.INDENT: "{", tokenize.DEDENT: "}", tokenize.NEWLINE: ";"}.get(token.type)
        if not is_docstring:
            parts.append(mark or "".join(token.string.split()))
        before = token.type
    return hashlib.sha256("".join(parts).replace("{;", "{").encode()).hexdigest()[:12]


def path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def stands_in() -> dict[str, str]:
    """timm class -> what of ours follows its forward line by line."""
    ours = {path_of(cls): f"row {cls.__name__} of ATTENTIONS in timm_neutreno/projections.py" for cls in ATTENTIONS}
    for cls, kind in BLOCKS.items():
        if kind is BRANCHES:
            ours[path_of(cls)] = "run_branches in timm_neutreno/blocks.py"
        if kind is WINDOWED:
            ours[path_of(cls)] = "WindowMix and run_windowed in timm_neutreno/blocks.py"
    return ours


def find(path: str) -> type:
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def test_the_table_has_every_class_that_we_stand_in_for():
    assert set(HASHES) == set(stands_in())


@pytest.mark.parametrize("path", sorted(stands_in()))
def test_forward_is_the_one_that_ours_follows(path):
    got = digest(inspect.getsource(find(path).forward))
    assert got == HASHES.get(path), (
        f"{path}.forward changed in timm {timm.__version__}. Compare it with {stands_in()[path]}, which repeats it "
        f"operation by operation, and bring that up to date. When test_parity.py and test_all_architectures.py pass, "
        f"put {got!r} into HASHES: `python tests/test_timm_drift.py` prints the table."
    )


@pytest.mark.parametrize("cls", [c for c, kind in BLOCKS.items() if kind in (SINGLE, WINDOWED)], ids=path_of)
def test_block_forward_reaches_attention_only_by_calling_self_attn(cls):
    """BlockView runs timm's own forward, whatever it is, if that calls `self.attn(...)` and keeps `self` to itself."""
    assert "forward" in vars(cls), "an inherited forward has a row of its own"
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls.forward)))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    calls = 0
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Name) and node.id == "self"):
            continue
        attribute = parents[node]
        assert isinstance(attribute, ast.Attribute), "passes `self` on: the mix would not follow"
        assert isinstance(attribute.ctx, ast.Load), f"sets self.{attribute.attr}: the view would keep it"
        if attribute.attr == "attn":
            user = parents[attribute]
            assert isinstance(user, ast.Call)
            assert user.func is attribute, "uses self.attn without calling it: BlockView.attn is a function"
            calls += 1
        elif inspect.isfunction(getattr(cls, attribute.attr, None)):
            pytest.fail(f"calls its own method {attribute.attr}: it would run on the block, not on the view")
    assert calls >= 1, "does not call self.attn: BlockView could not pass the mix"


PLAIN = """
def forward(self, x):
    if x:
        x = x + 1
    return x
"""
SAME = """
    def forward(self,  x):
        'Text.'
        # why

        if x:
            x = x+1  # one
        return x
"""


def test_digest_sees_code_and_nothing_else():
    assert digest(SAME) == digest(PLAIN)
    for other in (
        PLAIN.replace("+ 1", "- 1"),
        PLAIN.replace("    return", "        return"),
        PLAIN.replace("x:", "y:"),
    ):
        assert digest(other) != digest(PLAIN)


if __name__ == "__main__":
    for name in stands_in():
        print(f'    "{name}": "{digest(inspect.getsource(find(name).forward))}",')
