"""The model card: metadata, and sections between marks that a later push renews; all other text is a person's."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from importlib.metadata import distribution
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..methods import METHODS, STRENGTHS, split

BIBTEX = """@inproceedings{nguyen2023mitigating,
  title={Mitigating Over-smoothing in Transformers via Regularized Nonlocal Functionals},
  author={Nguyen, Tam and Nguyen, Tan M. and Baraniuk, Richard G.},
  booktitle={Advances in Neural Information Processing Systems},
  year={2023}
}"""
TAGS = ["timm", "image-classification", "neutreno"]  # not "transformers": on the Hub it would run without the plugin
# names that the Hub knows; others go to license_name
HUB_LICENSES = (
    "apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gemma", "apple-ascl",
    "apple-amlr",
)  # fmt: skip
RECIPE = (  # of args.yaml: what one must know to do it again
    "recipe", "epochs", "batch_size", "lr", "min_lr", "weight_decay", "warmup_epochs", "layer_decay", "drop_path",
    "label_smoothing", "mixup", "cutmix", "random_erasing", "auto_augment", "color_jitter", "hflip", "crop_scale",
    "clip_grad", "repeated_aug", "ema_decay", "trainable", "lora_rank", "lora_targets", "fidelity_warmup", "seed",
    "device", "amp", "limit_batches",
)  # fmt: skip
OF_CLASSES = ("mixup", "cutmix", "random_erasing", "auto_augment", "crop_scale", "repeated_aug")
OF_MASKS = (
    "img_size", "opt", "sched", "scale_min", "scale_max", "decoder_depth", "decoder_dropout", "window_stride",
    "ignore_label", "reduce_zero_label",
)  # fmt: skip
FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)
Describe = Callable[[str, dict[str, Any], dict[str, Any] | None, str | None], tuple[dict[str, Any], dict[str, str]]]
LOCAL = re.compile(r"(?!(hf-hub:|hf_hub:|torch/|hfds/|hfids/|wds/|tfds/)).*[/\\]", re.IGNORECASE)


def render(
    repo_id: str,
    config: dict[str, Any],
    results: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
    license: str | None = None,
    old: str | None = None,
    describe: Describe | None = None,
) -> str:
    """The text of README.md.

    Args:
        repo_id: OWNER/NAME.
        config: The model's config.json.
        results: A run's results.json; without it the card has no figures.
        arguments: A run's args.yaml; without it the card has no recipe.
        license: The base model's, as timm calls it.
        old: The README.md that is there. Its text outside our marks, and metadata that we do not write, stay.
        describe: Of (repo_id, config, results, license): metadata, and sections by key; None for a classifier's.

    Raises:
        ValueError: If the metadata in `old` is not YAML.
    """
    metadata, body = _split(old or "")
    new, sections = (describe or classifier)(repo_id, config, results, license)
    metadata = _merged(metadata, new)
    name = repo_id.rpartition("/")[2]
    if arguments:
        sections["recipe"] = _recipe(arguments, results)
    sections["citation"] = f"## Citation\n\n```bibtex\n{BIBTEX}\n```"
    if not body.strip():
        body = f"# {name}\n"
    for key, text in sections.items():
        body = _put(body, key, text)
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n{body.lstrip()}"


def classifier(
    repo_id: str, config: dict[str, Any], results: dict[str, Any] | None, license: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Metadata and sections of a classification model's card."""
    sections = {"usage": _usage(repo_id), "model": _model(config, results, license)}
    if results:
        sections["results"] = result_section(results, "Accuracy in percent.")
    return _metadata(repo_id, config, results, license), sections


def _marks(key: str) -> tuple[str, str]:
    return f"<!-- timm_neutreno: {key}, renewed by every push -->", f"<!-- timm_neutreno: end of {key} -->"


def _put(body: str, key: str, text: str) -> str:
    """Replace the section, or add it at the end. A mark without its end is a person's text by now, and stays."""
    begin, end = _marks(key)
    section = f"{begin}\n\n{text}\n\n{end}"
    found = re.compile(f"{re.escape(begin)}(?:(?!<!-- timm_neutreno: ).)*{re.escape(end)}", re.DOTALL)
    if found.search(body):
        return found.sub(lambda _: section, body, count=1)
    return f"{body.rstrip()}\n\n{section}\n"


def _split(text: str) -> tuple[dict[str, Any], str]:
    match = FRONT.match(text)
    if not match:
        return {}, text
    try:
        metadata = yaml.safe_load(match[1]) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            "The metadata between the --- lines of README.md is not YAML: repair it, then push."
        ) from error
    if not isinstance(metadata, dict):
        raise ValueError("The metadata between the --- lines of README.md is not a mapping: repair it, then push.")
    return metadata, text[match.end() :]


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = {**new, **{key: value for key, value in old.items() if key not in new}}
    for key in ("tags", "datasets"):
        theirs = old.get(key) or []
        both = [*new.get(key, []), *([theirs] if isinstance(theirs, str) else theirs)]
        if both:
            merged[key] = list(dict.fromkeys(both))
    return merged


def _metadata(
    repo_id: str, config: dict[str, Any], results: dict[str, Any] | None, license: str | None
) -> dict[str, Any]:
    data: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-classification", "tags": TAGS}
    metrics = {"top1": ("accuracy", "top-1 accuracy, percent"), "top5": ("accuracy", "top-5 accuracy, percent")}
    return metadata_of(data, repo_id, results, license, metrics)


def metadata_of(
    data: dict[str, Any], repo_id: str, results: dict[str, Any] | None, license: str | None,
    metrics: dict[str, tuple[str, str]],
) -> dict[str, Any]:  # fmt: skip
    """The metadata of a card: `data` with licence, base model, data set and figures.

    Args:
        data: Library, pipeline_tag and tags.
        repo_id: OWNER/NAME.
        results: A run's results.json.
        license: The base model's.
        metrics: Key of a row in results.json -> the Hub's type of metric, and its name.
    """
    data = dict(data)
    if license:
        known = license.lower() in HUB_LICENSES
        data |= {"license": license.lower()} if known else {"license": "other", "license_name": license.lower()}
    if not results:
        return ModelCardData(**data).to_dict()
    if results.get("base_model"):
        data |= {"base_model": results["base_model"], "base_model_relation": "finetune"}
    if dataset := _hub_dataset(results["data"]):
        data["datasets"] = [dataset]
    adapted = results["models"][results["main"]]
    evaluated = [
        EvalResult(
            task_type=data["pipeline_tag"], dataset_type=dataset or _slug(shown(results["data"])),
            dataset_name=shown(results["data"]), dataset_split="val", metric_type=kind, metric_name=name,
            metric_value=adapted[key],
        )
        for key, (kind, name) in metrics.items() if key in adapted
    ]  # fmt: skip
    index = eval_results_to_model_index(repo_id.rpartition("/")[2], evaluated)
    kinds = list(dict.fromkeys(kind for kind, _ in metrics.values()))
    return {**ModelCardData(**data, metrics=kinds).to_dict(), "model-index": index}


def _hub_dataset(label: str) -> str | None:
    match = re.match(r"hfi?ds/([\w.-]+(?:/[\w.-]+)?)", label)
    return match[1] if match else None


def shown(label: str) -> str:
    """What a checkpoint or data set is called in public: of a local path only the last part."""
    return LOCAL.sub("", label.rstrip("/\\"), count=1) if LOCAL.match(label) else label


def escaped(text: str) -> str:
    """A name as Markdown shows it letter by letter, in one line: no table cell, tag or link begins in it."""
    return re.sub(r"([|<>`*\[\]\\])", r"\\\1", " ".join(text.split()))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "images"


def _usage(repo_id: str) -> str:
    return f"""## How to load it

{install()}

```python
import timm_neutreno  # first: it registers the neutreno_* models in timm
import timm

model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
```

or with transformers, whose TimmWrapper builds the same model:

```python
import timm_neutreno
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("{repo_id}").eval()
processor = AutoImageProcessor.from_pretrained("{repo_id}")
```

`Unknown model (neutreno_...)` from timm, or `not supported in your version of timm` from transformers, means that
`import timm_neutreno` is missing. `@REVISION` after the name pins one in timm, `revision=` in transformers."""


def install() -> str:
    """How to install this package from where it came from: no release of it is in a package registry.

    The address is that of the installation, if pip made it from a git repository (PEP 610), else the project's own.
    """
    package = distribution("timm-neutreno")
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    urls = dict(url.split(", ", 1) for url in package.metadata.get_all("Project-URL") or [])
    if "vcs_info" in origin:
        address = f"{origin['url']}@{origin['vcs_info']['commit_id']}"
    elif not (address := urls.get("Repository", "")):
        return f"Install timm_neutreno {package.version} first: `pip install .` in its source folder."
    return f"```bash\npip install git+{address}\n```"


def _model(config: dict[str, Any], results: dict[str, Any] | None, license: str | None) -> str:
    lines = [
        "## Model",
        "",
        "A Vision Transformer with other attention than softmax alone. With Y = A v, A = softmax(q k^T / sqrt(d)):",
        "",
        *method_lines(config.get("model_args", {})),
        f"- Architecture: `{config['architecture']}`",
        f"- Input: {' x '.join(map(str, config['pretrained_cfg'].get('input_size', ())))}",
        f"- Classes: {config['num_classes']}",
        *origin_lines(results, license),
    ]
    return "\n".join(lines)


def method_lines(arguments: dict[str, Any]) -> list[str]:
    """What arguments of `patch` do to a model."""
    names = split(arguments.get("method", "neutreno"))
    return [
        *(f"- `{name}`: {str(METHODS[name].apply.__doc__).splitlines()[0]}" for name in names),
        *(f"- {strength}: {_strength(arguments, strength)}" for name in names for strength in METHODS[name].strengths),
        *([f"- Acting in blocks: {arguments['layers']}"] if arguments.get("layers") else []),
    ]


def origin_lines(results: dict[str, Any] | None, license: str | None) -> list[str]:
    """What it was adapted from, and the licence."""
    lines = []
    if results:
        base = results.get("base_model")
        link = f"[{base}](https://huggingface.co/{base})"
        lines.append(f"- Adapted from: {link if base else escaped(shown(results['checkpoint']))}")
    lines.append(
        f"- Licence: {escaped(license)}, the base model's" if license else "- Licence: the base model's, not known here"
    )
    return lines


def _strength(arguments: dict[str, Any], name: str) -> str:
    learnable = arguments.get(f"learnable_{name}")
    if learnable:
        return f"learned per {learnable}, started at {arguments[name]}; the values are in the weights"
    return f"{arguments.get(name, METHODS[STRENGTHS[name]].strengths[name])}"


def result_section(results: dict[str, Any], units: str) -> str:
    """The table and the sentences of a run."""
    header, *rows = results["table"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    number = results["models"][results["main"]]["images"]
    images = f"{number:,} val image{'' if number == 1 else 's'}"
    return "\n".join(
        [
            "## Results",
            "",
            f"Data: {escaped(shown(results['data']))}, {images}, the same for every row. {units} "
            "Similarity is the mean cosine similarity between the tokens of an image after the last block.",
            "",
            *lines,
            "",
            *(f"- {sentence}" for sentence in results["verdict"]),
            "",
            "![Token similarity by layer](similarity.png)",
        ]
    )


def _recipe(arguments: dict[str, Any], results: dict[str, Any] | None) -> str:
    keys: tuple[str, ...] = RECIPE
    if arguments.get("task") == "segmentation":
        keys = (*(key for key in RECIPE if key not in OF_CLASSES), *OF_MASKS)
    recipe = ", ".join(
        f"{key} {escaped(str(arguments[key]))}" for key in keys if arguments.get(key) not in (None, "", [])
    )
    versions = ", ".join(f"{key} {escaped(str(value))}" for key, value in arguments.get("versions", {}).items())
    again = ""
    if results and results.get("command"):
        words = [shown(word) for word in shlex.split(results["command"])]
        again = f"To make it again:\n\n```bash\n{shlex.join(words)}\n```\n\n"
    return f"## Recipe\n\n{again}All settings: {recipe}.\n\nVersions: {versions}."
