"""A model's name becomes a diffusers pipeline that inpaints: from a folder, one file, or the hub. No code in it runs.

    a folder      in diffusers' layout: model_index.json, and unet, vae, text_encoder, tokenizer, scheduler beside it
    one file      .safetensors or .ckpt as Stable Diffusion was published; its configuration in a folder of the same
                  name beside it (diffusers' layout without weights), else as the hub knows it
    owner/name    on the hub: what is in its cache; else fetched once, safetensors only, unless HF_HUB_OFFLINE is set

Only classes of diffusers and transformers are made, whatever a model's files ask for. Pickles give tensors alone: a
.bin that asks for more is refused (torch's weights_only), in a .ckpt whatever else it holds stays inert. No safety
checker and no feature extractor is loaded: none is needed, and what is drawn is for its user to judge.
"""

from __future__ import annotations

import json
import pickle
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from facefix.errors import UsageError, WeightsInvalid, WeightsMissing, shown
from facefix.statefile import DAMAGED, read_network

PARTS = "model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/"
_CLASSES = {"sd": "StableDiffusionInpaintPipeline", "sdxl": "StableDiffusionXLInpaintPipeline"}
_TITLES = {"sd": "Stable Diffusion", "sdxl": "SDXL"}
_LIBRARIES = ("diffusers", "transformers")
_WITHOUT = {
    "sd": {"safety_checker": None, "feature_extractor": None, "image_encoder": None, "requires_safety_checker": False},
    "sdxl": {"feature_extractor": None, "image_encoder": None, "add_watermarker": False},
}
_SUFFIXES = (".safetensors", ".ckpt")
_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lcm": ("LCMScheduler", {}),
}
"""Samplers by name: the class in diffusers and its settings beside the model's own. `auto` is the first."""
_STALE = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "algorithm_type", "solver_type")


def load(model: str | Path, kind: str, dtype: torch.dtype) -> Any:
    """The inpainting pipeline of diffusers for that model, on the CPU, with its own scheduler.

    Args:
        model: a folder, a file, or a name on the hub.
        kind: sd or sdxl.
        dtype: the weights' arithmetic.

    Raises:
        UsageError: the name is empty, or the model is of the other kind.
        WeightsMissing: it is not here, and could not be fetched; or diffusers is not installed.
        WeightsInvalid: its files are damaged, hostile, or of another network.
    """
    diffusers = _diffusers(kind)
    if not str(model):
        raise UsageError(f"--model: expected a {_TITLES[kind]} model, got none; name a folder, a file or owner/name")
    path = Path(model).expanduser()
    maker = getattr(diffusers, _CLASSES[kind])
    settings = {**_WITHOUT[kind], "dtype": dtype, "local_files_only": True}
    if path.is_file():
        return _from_file(path, kind, maker, settings)
    if not path.is_dir():
        path = _from_hub(str(model), kind)
    return _from_folder(path, kind, maker, settings)


def set_scheduler(pipeline: Any, name: str) -> None:
    """Give the pipeline the sampler of that name, with the noise schedule of its model.

    Args:
        pipeline: as `load` gives it.
        name: one of SCHEDULERS; auto for the first of them, model for the pipeline's own.

    Raises:
        UsageError: an unknown name.
    """
    if name == "model":
        return
    if name != "auto" and name not in SCHEDULERS:
        known = ", ".join(["auto", "model", *SCHEDULERS])
        raise UsageError(f"--scheduler: expected one of {known}, got {name!r}")
    kind, settings = SCHEDULERS[next(iter(SCHEDULERS)) if name == "auto" else name]
    import diffusers

    given = {key: value for key, value in pipeline.scheduler.config.items() if key not in _STALE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.scheduler = getattr(diffusers, kind).from_config(given, **settings)


def _diffusers(kind: str) -> Any:
    """The package, with its progress bars and advice off."""
    if kind not in _CLASSES:
        raise UsageError(f"--engine: expected sd or sdxl, got {kind!r}")
    try:
        import diffusers
        import transformers
    except ImportError:
        raise WeightsMissing(
            f"engine {kind} needs diffusers and transformers; run `pip install 'facefix[diffusion]'`"
        ) from None
    for package in (diffusers, transformers):
        package.utils.logging.disable_progress_bar()
        package.utils.logging.set_verbosity_error()
    return diffusers


# --- a folder --------------------------------------------------------------------------------------------------------


def _from_folder(folder: Path, kind: str, maker: Any, settings: Mapping[str, Any]) -> Any:
    _check_folder(folder, kind)
    variant = "fp16" if not _weights(folder, "") and _weights(folder, ".fp16") else None
    with _one_line(folder):
        return maker.from_pretrained(folder, variant=variant, **settings)


def _weights(folder: Path, variant: str) -> bool:
    names = [f"diffusion_pytorch_model{variant}.{kind}" for kind in ("safetensors", "safetensors.index.json", "bin")]
    return any((folder / "unet" / name).exists() for name in names)


def _check_folder(folder: Path, kind: str) -> None:
    """Raise where the folder is no pipeline of that kind, or asks for classes from elsewhere."""
    if not (folder / "model_index.json").is_file():
        raise WeightsInvalid(folder, f"has no model_index.json; expected a folder in diffusers' layout: {PARTS}")
    index = _read_json(folder / "model_index.json")
    for name, value in index.items():
        if name in _WITHOUT[kind] or not isinstance(value, list) or value[:1] in ([], [None]):
            continue
        if value[0] not in _LIBRARIES:
            code = f"{str(value[0])[:60]!r} for its {name}"
            raise WeightsInvalid(folder, f"asks for code from {code}, which was not run; do not trust this model")
        words = ("vocab.json", "tokenizer.json") if name.startswith("tokenizer") else ("",)
        if not any((folder / name / word).exists() for word in words):
            raise WeightsInvalid(folder, f"has no {name}/{words[0]}; expected a folder in diffusers' layout: {PARTS}")
    if not str(index.get("_class_name", "")).startswith("StableDiffusion"):
        raise WeightsInvalid(folder, f"is a {index.get('_class_name')}; expected {_TITLES[kind]}")
    found = "sdxl" if index.get("text_encoder_2") else "sd"
    if found != kind:
        raise UsageError(f"{shown(folder)}: expected {_TITLES[kind]}, got {_TITLES[found]}; use --engine {found}")
    channels = _read_json(folder / "unet" / "config.json").get("in_channels")
    if channels not in (4, 9):
        raise WeightsInvalid(folder, f"has a UNet of {channels} channels; expected 4 (base models) or 9 (inpainting)")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsInvalid(path.parent, f"has no {path.name}; expected a folder in diffusers' layout") from None
    except (OSError, ValueError) as error:
        raise WeightsInvalid(path, f"cannot be read: {_line(error)}; get the model again") from None
    if not isinstance(found, dict):
        raise WeightsInvalid(path, f"holds a {type(found).__name__}; expected the settings of a model by name")
    return found


# --- one file --------------------------------------------------------------------------------------------------------


def _from_file(file: Path, kind: str, maker: Any, settings: Mapping[str, Any]) -> Any:
    if file.suffix.lower() not in _SUFFIXES:
        raise WeightsInvalid(file, f"ends in none of {', '.join(_SUFFIXES)}; expected a {_TITLES[kind]} checkpoint")
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    beside = file.with_suffix("")
    configured = beside.is_dir()
    if configured:
        _check_folder(beside, kind)
    try:
        with warnings.catch_warnings(), _as_safetensors(file) as readable:
            warnings.simplefilter("ignore")
            return maker.from_single_file(str(readable), config=str(beside) if configured else None, **settings)
    except (*_DAMAGE, SingleFileComponentError) as error:
        if configured or not isinstance(error, _NOT_THERE):
            raise _damaged(file, error) from None
        raise WeightsMissing(
            f"{shown(file)}: its configuration is not beside it, and the hub gave none ({_unreachable(error)}); put "
            f"{PARTS} of such a model, weights left out, into the folder {shown(beside)}"
        ) from None


@contextmanager
def _as_safetensors(file: Path) -> Iterator[Path]:
    """Inside, a file of the same tensors that holds nothing else: itself, or a copy of what a .ckpt holds.

    Published checkpoints carry their trainer's objects, which torch's weights_only refuses.
    """
    if file.suffix.lower() != ".ckpt":
        yield file
        return
    state = read_network(file, _FIRST, expected="expected a Stable Diffusion or SDXL checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, copy)
        del state
        yield copy


# --- the hub ---------------------------------------------------------------------------------------------------------


def _from_hub(name: str, kind: str) -> Path:
    """The folder in the hub's cache that holds the model of that name, downloaded where it must be."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).suffix in _SUFFIXES or name.startswith("."):
        raise WeightsMissing(f"{shown(Path(name))}: no such file or folder; put a {_TITLES[kind]} model there: {PARTS}")
    import diffusers
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        if (folder / "model_index.json").is_file():
            return folder
    except _NOT_THERE:
        pass  # not in the cache: it is fetched
    try:
        fetched = getattr(diffusers, _CLASSES[kind]).download(name, use_safetensors=True, **_WITHOUT[kind])
    except _DAMAGE as error:
        raise WeightsMissing(
            f"{name} is not in the hub's cache and cannot be fetched ({_unreachable(error)}); put a folder of "
            f"{PARTS} (their .safetensors files with them) on this machine and give its path as --model"
        ) from None
    return Path(fetched)


# --- errors ----------------------------------------------------------------------------------------------------------

# What the hub's client raises for what it cannot get: LocalEntryNotFoundError, OfflineModeIsEnabled, HTTP errors, …
_NOT_THERE = (OSError,)
_DAMAGE = (*DAMAGED, OSError, SafetensorError, ImportError, pickle.UnpicklingError)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Inside, what libraries raise on bad files becomes one line that names the path; their warnings stay quiet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _DAMAGE as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: BaseException) -> WeightsInvalid:
    if isinstance(error, pickle.UnpicklingError):
        return WeightsInvalid(
            path, "holds a pickle with more than tensors in it, which was not run; get the model as .safetensors"
        )
    return WeightsInvalid(path, f"cannot be read: {_line(error)}; get the model again")


def _unreachable(error: BaseException) -> str:
    """Why the hub gave nothing."""
    import huggingface_hub

    return "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else _line(error)


def _line(error: BaseException) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(error)) or type(error).__name__
    return " ".join(text.split())[:160].rstrip(".")
