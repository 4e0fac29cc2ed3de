"""Check that a wheel has what users need, and nothing else: python .ci/check_wheel.py FILE, from the root."""

import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

NEEDED = (
    "timm_neutreno/py.typed",
    "timm_neutreno_cli/py.typed",
    "timm_neutreno/demo/config.json",
    "timm_neutreno/demo/model.safetensors",
    *(str(path) for path in Path("timm_neutreno").rglob("*.py")),
    *(str(Path("timm_neutreno_cli", *path.parts[1:])) for path in Path("cli").rglob("*.py")),
)
REQUIRED = ("torch", "timm", "safetensors", "huggingface_hub", "typer", "rich", "pyyaml", "matplotlib")
SCRIPTS = ("neutreno = timm_neutreno_cli.start:main", "neutreno-adapt = timm_neutreno_cli.start:adapt_main")

with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = wheel.namelist()
    info = next(name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
    scripts = wheel.read(f"{info}/entry_points.txt").decode()

requirements = [line.lower() for line in metadata.get_all("Requires-Dist", [])]
problems = [f"missing file: {name}" for name in NEEDED if name not in names]
problems += [f"not required: {name}" for name in REQUIRED if not any(line.startswith(name) for line in requirements)]
problems += [f"missing script: {script}" for script in SCRIPTS if script not in scripts]
tops = {name.split("/")[0] for name in names} - {info}
problems += [f"unexpected top level: {top}" for top in tops - {"timm_neutreno", "timm_neutreno_cli"}]
problems += [f"no extra: {extra}" for extra in ("demo", "test") if extra not in metadata.get_all("Provides-Extra", [])]
if metadata["License-Expression"] != "Apache-2.0" or not metadata["Version"]:
    problems.append("licence or version missing")
print("\n".join(problems) or f"{sys.argv[1].rsplit('/', 1)[-1]}: {len(names)} files, metadata complete")
sys.exit(bool(problems))
