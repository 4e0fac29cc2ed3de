"""36 pickles that run code when they are loaded: 6 ways to run it, in 6 kinds of files."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch


class Payload:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


def payloads(marker: Path) -> dict[str, Payload]:
    """Each would make the file `marker`."""
    import builtins
    import os
    import subprocess

    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Payload(os.system, f"touch '{marker}'"),
        "exec": Payload(builtins.exec, code),
        "eval": Payload(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "subprocess": Payload(subprocess.call, ["touch", str(marker)]),
        "open": Payload(builtins.open, str(marker), "w"),
        "Path.touch": Payload(Path.touch, marker),
    }


def files(content: Any, folder: Path) -> list[Path]:
    """The content in every kind of file that torch.load reads, or a user may give."""
    for protocol in (0, 2, 5):
        (folder / f"protocol{protocol}.pth").write_bytes(pickle.dumps(content, protocol))
    torch.save(content, folder / "zip.pth.tar")
    torch.save(content, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    packed = pickle.dumps(content)
    with tarfile.open(folder / "tar.tar", "w") as file:
        info = tarfile.TarInfo("pickle")
        info.size = len(packed)
        file.addfile(info, io.BytesIO(packed))
    with zipfile.ZipFile(folder / "zip.pth.tar") as file:
        assert file.testzip() is None
    return sorted(folder.iterdir())
