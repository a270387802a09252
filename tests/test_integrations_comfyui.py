"""The nodes, loaded and called as ComfyUI does it: a folder in custom_nodes, and inputs as INPUT_TYPES declares."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import facefix.integrations.comfyui as folder
from facefix import FaceFix, Inpainter, Recipe
from facefix.errors import UsageError

Run = Callable[..., tuple[Any, ...]]


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The folder, copied into custom_nodes under another name and loaded by its path."""
    place = tmp_path_factory.mktemp("custom_nodes") / "restoring faces"
    shutil.copytree(Path(folder.__file__).parent, place, ignore=shutil.ignore_patterns("__pycache__"))
    name = str(place).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, place / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(dropped: ModuleType) -> Run:
    """What ComfyUI's executor does: an instance, the declared inputs checked and filled in, the named function."""

    def execute(node: str, **given: Any) -> tuple[Any, ...]:
        kind = dropped.NODE_CLASS_MAPPINGS[node]
        declared = kind.INPUT_TYPES()["required"]
        assert set(given) <= set(declared)
        values = {name: spec[1]["default"] for name, spec in declared.items() if len(spec) > 1} | given
        for name, spec in declared.items():
            what = spec[0]
            if isinstance(what, list):
                assert values[name] in what
            elif what in ("INT", "FLOAT"):
                assert spec[1]["min"] <= values[name] <= spec[1]["max"]
        with torch.inference_mode():  # networks are loaded in it, too
            made: tuple[Any, ...] = getattr(kind(), kind.FUNCTION)(**values)
        assert len(made) == len(kind.RETURN_TYPES)
        return made

    return execute


@pytest.fixture
def image(portrait: np.ndarray) -> torch.Tensor:
    """(1, 512, 512, 3) with the portrait, a little off the levels that integers have."""
    noise = np.random.default_rng(0).uniform(-1e-4, 1e-4, portrait.shape)
    return torch.from_numpy(np.clip(portrait / 255 + noise, 0, 1).astype(np.float32))[None]


def stroke() -> torch.Tensor:
    """(1, 512, 512) across the face."""
    mask = torch.zeros(1, 512, 512)
    mask[:, 60:170, 220:223] = 1
    return mask


def test_the_mappings_are_what_comfyui_reads(dropped: ModuleType) -> None:
    assert set(dropped.NODE_CLASS_MAPPINGS) == set(dropped.NODE_DISPLAY_NAME_MAPPINGS)
    for kind in dropped.NODE_CLASS_MAPPINGS.values():
        assert kind.RETURN_TYPES == ("IMAGE", "STRING")
        assert len(kind.RETURN_NAMES) == 2
        assert callable(getattr(kind, kind.FUNCTION))
        assert kind.CATEGORY.startswith("image/")
        assert next(iter(kind.INPUT_TYPES()["required"].values())) == ("IMAGE",)


@pytest.mark.parametrize(("node", "command"), [("FacefixRestore", "restore"), ("FacefixInpaint", "inpaint")])
def test_the_widgets_are_the_recipes_settings(dropped: ModuleType, node: str, command: str) -> None:
    declared = dropped.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"]
    settings = Recipe.settings(command)  # type: ignore[arg-type]
    assert set(settings) - set(declared) <= {"ai_label", "candidates"}
    assert set(declared) - set(settings) == {"image"} | ({"mask"} if command == "inpaint" else set())
    for name, (default, setting) in settings.items():
        if name in declared:
            what, options = declared[name]
            assert options["default"] == default
            assert options["tooltip"] == setting.help
            if setting.choices:
                assert what == list(setting.choices)
            else:
                assert what == {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}[type(default)]
    json.dumps(declared)  # ComfyUI sends it to the browser


def test_faces_are_restored_as_by_python_and_all_else_is_the_same_floats(
    run: Run, image: torch.Tensor, portrait: np.ndarray
) -> None:
    made, report = run("FacefixRestore", image=image)
    assert made.shape == image.shape
    assert made.dtype == torch.float32
    [told] = json.loads(report)
    [face] = told["faces"]
    assert face["outcome"] == "restored"
    changed = (made != image).any(dim=3)[0].numpy()
    x0, y0, x1, y1 = (round(v) for v in face["box_xyxy"])
    assert changed[y0:y1, x0:x1].mean() > 0.5
    assert not changed[400:].any()
    # red is red: the same photo by Python gives the same colours
    expected = FaceFix.load(Recipe())(portrait).photo.raster / 255
    assert np.abs(made[0].numpy() - expected).max() < 0.02
    assert abs(float(image[0, :, :, 0].mean() - image[0, :, :, 2].mean())) > 0.02


def test_a_batch_is_its_images(run: Run, image: torch.Tensor) -> None:
    batch = torch.cat([image, image.flip(2), image[:, :, :, [2, 1, 0]]])
    together, reports = run("FacefixRestore", image=batch, restorer="pattern")
    assert len(json.loads(reports)) == 3
    for number in range(3):
        alone, _ = run("FacefixRestore", image=batch[number : number + 1], restorer="pattern")
        assert torch.equal(together[number], alone[0])


def test_a_mask_limits_the_restoring(run: Run, image: torch.Tensor) -> None:
    mask = torch.zeros(512, 512)
    mask[:, :225] = 1
    made, report = run("FacefixRestoreMasked", image=image, mask=mask)
    changed = (made != image).any(dim=3)[0]
    assert changed[:, :225].any()
    assert not changed[:, 225:].any()
    empty, report = run("FacefixRestoreMasked", image=image, mask=torch.zeros(1, 64, 64))
    assert torch.equal(empty, image)
    assert json.loads(report)[0]["faces"][0]["reason"] == "outside of the mask that was given"


def test_holes_are_filled_and_pixels_outside_are_the_same_floats(run: Run, image: torch.Tensor) -> None:
    mask = stroke()
    scene = torch.where(mask[..., None] > 0, torch.tensor([1.0, 0.0, 0.0]), image)
    scene[0, 500, 500] = torch.tensor([1.5, -0.25, 0.5])  # beyond the range, as samplers give it
    made, report = run("FacefixInpaint", image=scene, mask=mask, engine="cv2")
    [told] = json.loads(report)
    assert (told["fill"]["engine"], told["fill"]["hole_px"]) == ("cv2", 330)
    assert told["faces"][0]["outcome"] == "restored"
    changed = (made != scene).any(dim=3)[0]
    assert changed[60:170, 220:223].all()
    assert not changed[:, :217].any()
    assert not changed[:, 226:].any()
    assert torch.equal(made[0, 500, 500], scene[0, 500, 500])
    # the red stroke is gone, and the skin that took its place is redder than blue
    inside = made[0, 60:170, 220:223].mean((0, 1))
    assert inside[0] < 0.95
    assert inside[0] > inside[2]
    assert (inside - image[0, 60:170, 220:223].mean((0, 1))).abs().max() < 0.08
    by_python = Inpainter.load(Recipe(engine="cv2"))(
        (scene[0].clamp(0, 1) * 65535).round().numpy().astype(np.uint16), mask[0].numpy()
    )
    np.testing.assert_allclose(made[0].clamp(0, 1).numpy(), by_python.photo.raster / 65535, atol=1e-5)


def test_one_mask_serves_a_batch_and_an_empty_one_fills_nothing(run: Run, image: torch.Tensor) -> None:
    batch = torch.cat([image, image])
    made, _ = run("FacefixInpaint", image=batch, mask=stroke(), engine="cv2", faces=False)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], image[0])
    masks = torch.cat([stroke(), torch.zeros(1, 512, 512)])
    made, reports = run("FacefixInpaint", image=batch, mask=masks, engine="cv2", faces=False)
    assert torch.equal(made[1], image[0])
    assert not torch.equal(made[0], image[0])
    assert json.loads(reports)[1]["warnings"] == ["the mask is empty"]


def test_the_frame_grows_around_the_same_floats(run: Run, image: torch.Tensor) -> None:
    small = image[:, :64, :80]
    made, _ = run(
        "FacefixInpaint", image=small, mask=torch.zeros(1, 64, 64), engine="cv2", outpaint="9,0,0,7", faces=False
    )
    assert made.shape == (1, 71, 89, 3)
    assert torch.equal(made[:, :60, 13:], small[:, :60, 4:])


def test_enlarging_and_alpha_go_through(run: Run, image: torch.Tensor) -> None:
    made, _ = run("FacefixRestore", image=image[:, :64, :80], restorer="identity", scale=2)
    assert made.shape == (1, 128, 160, 3)
    assert (made[:, ::2, ::2] - image[:, :64, :80]).abs().mean() < 0.03
    both = torch.cat([image, torch.rand(1, 512, 512, 1)], dim=3)
    made, _ = run("FacefixRestore", image=both, restorer="identity")
    assert torch.equal(made, both)


def test_what_does_not_fit_is_one_line(run: Run, image: torch.Tensor) -> None:
    for wrong in ({"mask": torch.ones(1, 20, 10)}, {"mask": torch.ones(3, 512, 512)}):
        with pytest.raises(UsageError, match="mask: expected"):
            run("FacefixInpaint", image=image, engine="cv2", **wrong)
    for picture in (image[0], image[:0]):
        with pytest.raises(UsageError, match="image: expected"):
            run("FacefixRestore", image=picture)
    with pytest.raises(UsageError, match="--prompt: --engine cv2, which does not use it"):
        run("FacefixInpaint", image=image, mask=stroke(), engine="cv2", prompt="a wall")


def test_networks_stay_loaded_while_only_the_seed_changes(run: Run, image: torch.Tensor) -> None:
    nodes = sys.modules["facefix.integrations.comfyui.nodes"]
    nodes._loaded_painter.cache_clear()
    rough = image + 0.03 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    first, second, third = (
        run("FacefixInpaint", image=rough, mask=stroke(), engine="cv2", faces=False, seed=seed)[0] for seed in (1, 2, 1)
    )
    assert nodes._loaded_painter.cache_info().misses == 1
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
