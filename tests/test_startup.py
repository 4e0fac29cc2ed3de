"""What `import timm_neutreno` must not load or do, so that it stays cheap. Times are in benchmarks/speed.py."""

import subprocess
import sys

import pytest
import timm

import timm_neutreno

LAZY = ("hf", "hub", "smoothing", "probing", "eigen", "cost")  # of the library


def run(code: str) -> str:
    """Standard output of `code` in a new process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_import_loads_no_module_that_only_some_users_need():
    code = (
        "import sys, timm; before = set(sys.modules); import timm_neutreno; print(*sorted({*sys.modules} - before))\n"
        "from timm_neutreno import cost, eigen, hf, hub, probing, smoothing; hf, hub, probing, smoothing\n"
        "print(*sorted({*sys.modules} - before))"
    )
    at_import, later = (set(line.split()) for line in run(code).splitlines())
    assert "timm_neutreno.surgery" in at_import
    assert not [name for name in at_import if name.startswith("timm_neutreno_cli")]
    assert not at_import & {"matplotlib", "transformers", *(f"timm_neutreno.{name}" for name in LAZY)}
    assert {
        "transformers",
        *(f"timm_neutreno.{name}" for name in LAZY),
    } <= later  # else the names above would be out of date


def test_registering_the_twins_copies_no_pretrained_cfg():
    code = (
        "import timm, timm.models._registry as registry\n"
        "def refuse(*args): raise AssertionError('deepcopy of a pretrained cfg')\n"
        "registry.deepcopy = refuse\n"
        "import timm_neutreno; print(len(timm.list_models('neutreno_*')))"
    )
    assert int(run(code)) > 300


@pytest.mark.parametrize("name", ["hf", "hub", "probing", "smoothing"])
def test_lazy_modules_are_attributes_all_the_same(name):
    code = f"import timm_neutreno; assert '{name}' in dir(timm_neutreno); print(timm_neutreno.{name}.__name__)"
    assert run(code).strip() == f"timm_neutreno.{name}"


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'hubb'"):
        timm_neutreno.hubb  # noqa: B018 - the access itself has to raise


def test_the_shared_cfgs_of_timm_stay_as_they_were():
    """A twin's cfgs share objects with the base's; its own name must not get into them."""
    for base in timm_neutreno.supported_models():
        for key, cfg in timm.models.get_arch_pretrained_cfgs(base).items():
            assert cfg.architecture == base, key
            assert cfg.hf_hub_id is None or not cfg.hf_hub_id.startswith("timm/neutreno"), key
