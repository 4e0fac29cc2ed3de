"""The snippets of docs/transformers.md, in one process, with small models in folders of the names that they load."""

import re
from pathlib import Path

from hf_models import build, inputs

import timm_neutreno

DOCS = Path(__file__).parents[2] / "docs/transformers.md"


def test_the_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build("gpt2").save_pretrained("gpt2")
    build("dinov2").save_pretrained("facebook/dinov2-small")
    snippets = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    names = {"images": inputs("dinov2"), "ids": inputs("gpt2")}
    for snippet in snippets:
        exec(snippet, names)
    printed = capsys.readouterr().out.splitlines()
    assert [line.count(",") + 1 for line in printed[-3:]] == [4, 4, 4]
    assert {"transformer.h.2.attn.fidelity", "transformer.h.3.attn.gfsa"} < set(timm_neutreno.strengths(names["model"]))
