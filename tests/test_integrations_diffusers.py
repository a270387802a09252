"""What pipelines of diffusers return goes in, and comes back in the same form with its faces restored."""

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
import diffusers
import tiny_diffusion as tiny
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

import facefix.integrations.diffusers as door
from facefix import FaceFix, Recipe
from facefix.errors import UsageError
from facefix.integrations.diffusers import restore_block, restore_images

PATTERN = Recipe(restorer="pattern")


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """(240, 220, 3) uint8 with one face in its middle."""
    from skimage.data import astronaut

    return astronaut()[0:240, 110:330].copy()


@pytest.fixture(scope="module")
def wanted(faces: np.ndarray) -> np.ndarray:
    restored = FaceFix.load(PATTERN)(faces)
    assert [note.outcome for note in restored.report.faces] == ["restored"]
    assert (restored.photo.raster != faces).mean() > 0.05
    return restored.photo.raster


def around(height: int, width: int, *, side: int) -> np.ndarray:
    """A mask that is white over the left or the right half."""
    mask = np.zeros((height, width), np.float32)
    mask[:, : width // 2] = 1 - side
    mask[:, width // 2 :] = side
    return mask


# --- forms -----------------------------------------------------------------------------------------------------------


def test_pillow_images_come_back_as_pillow_images(faces: np.ndarray, wanted: np.ndarray) -> None:
    gray = Image.fromarray(faces).convert("L")
    both = restore_images([Image.fromarray(faces), gray], recipe=PATTERN)
    assert isinstance(both, list)
    assert [image.mode for image in both] == ["RGB", "L"]
    np.testing.assert_array_equal(np.asarray(both[0]), wanted)
    assert (np.asarray(both[1]) != np.asarray(gray)).any()
    alone = restore_images(Image.fromarray(faces), recipe=PATTERN)
    np.testing.assert_array_equal(np.asarray(alone), wanted)


def test_arrays_come_back_as_arrays(faces: np.ndarray, wanted: np.ndarray) -> None:
    floats = np.stack([faces, faces[:, ::-1]]).astype(np.float32) / 255
    restored = restore_images(floats, recipe=PATTERN)
    assert (restored.shape, restored.dtype) == (floats.shape, np.float32)
    fine = FaceFix.load(PATTERN)(faces.astype(np.uint16) * 257).photo.raster
    assert np.abs(restored[0] * 65535 - fine).max() < 0.01
    same = fine == faces.astype(np.uint16) * 257
    assert 0.2 < same.mean() < 1
    assert np.array_equal(restored[0][same], floats[0][same])
    assert not np.array_equal(restored[1], floats[1])
    np.testing.assert_array_equal(restore_images(faces, recipe=PATTERN), wanted)
    np.testing.assert_array_equal(restore_images([faces], recipe=PATTERN)[0], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_come_back_as_tensors(faces: np.ndarray, wanted: np.ndarray, dtype: torch.dtype) -> None:
    batch = torch.from_numpy(faces).permute(2, 0, 1)[None].to(dtype) / 255
    restored = restore_images(batch, around(240, 220, side=1), PATTERN)
    assert (restored.shape, restored.dtype) == (batch.shape, dtype)
    assert torch.equal(restored[..., :110], batch[..., :110])
    off = (restored[0].float() * 255).permute(1, 2, 0).numpy() - wanted
    assert np.abs(off)[:, 110:].mean() < 0.5
    assert (restored != batch).float().mean() > 0.02
    (single,) = restore_images([batch[0]], around(240, 220, side=1), PATTERN)
    assert torch.equal(single, restored[0])


def test_alpha_comes_back(faces: np.ndarray, wanted: np.ndarray) -> None:
    clear = np.dstack([faces, np.full(faces.shape[:2], 200, np.uint8)])
    restored = restore_images(clear, recipe=PATTERN)
    np.testing.assert_array_equal(restored, np.dstack([wanted, clear[..., 3]]))


def test_a_larger_recipe_gives_larger_images(faces: np.ndarray) -> None:
    larger = restore_images(faces[None] / np.float32(255), recipe=Recipe(restorer="identity", scale=2))
    assert larger.shape == (1, 480, 440, 3)


def test_what_is_no_picture_is_refused(faces: np.ndarray) -> None:
    for latent in (torch.randn(1, 4, 8, 8), np.full((1, 8, 8, 3), np.nan), np.full((8, 8, 3), 7.0)):
        with pytest.raises(UsageError, match=r"floats in 0\.\.1, got other numbers; decode latents first"):
            restore_images(latent, recipe=PATTERN)
    for odd in (faces[..., 0], torch.zeros(3), "photo.png", [None], np.zeros((2, 2, 2, 2, 2))):
        with pytest.raises(UsageError, match="images: expected Pillow images"):
            restore_images(odd, recipe=PATTERN)
    assert restore_images([], recipe=PATTERN) == []


# --- masks -----------------------------------------------------------------------------------------------------------


def test_nothing_changes_outside_of_a_mask(faces: np.ndarray, wanted: np.ndarray) -> None:
    mask = around(240, 220, side=1)
    restored = restore_images(faces, mask, PATTERN)
    np.testing.assert_array_equal(restored[:, :110], faces[:, :110])
    np.testing.assert_array_equal(restored[:, 110:], wanted[:, 110:])
    assert (restored != faces).any()
    corner = np.zeros((240, 220), np.float32)
    corner[:9, :9] = 1
    np.testing.assert_array_equal(restore_images(faces, corner, PATTERN), faces)


def test_masks_in_every_form_for_all_and_for_each(faces: np.ndarray) -> None:
    left, right = around(24, 22, side=0), around(24, 22, side=1)
    drawn = [Image.fromarray((mask * 255).astype(np.uint8)) for mask in (left, right)]
    stacked = np.stack([left, right])
    for masks in (
        drawn, [left, right], (left > 0, right > 0), stacked, stacked[..., None], torch.from_numpy(stacked)[:, None],
        torch.from_numpy(stacked).to(torch.bfloat16), (torch.from_numpy(stacked) * 255).to(torch.uint8),
    ):  # fmt: skip
        for mask, wanted in zip(door._masks(masks, 2), (left, right), strict=True):
            np.testing.assert_array_equal(door._fitted(mask, 22, 24), wanted)
    for masks in (left, left[None], left[..., None], drawn[0], [drawn[0]], torch.from_numpy(left)[None, None]):
        for mask in door._masks(masks, 3):
            np.testing.assert_array_equal(door._fitted(mask, 22, 24), left)
    for scale, kind in ((65535, np.uint16), (1, np.float32), (1, np.int32)):
        np.testing.assert_array_equal(door._fitted(Image.fromarray((left * scale).astype(kind)), 22, 24), left)
    faint = Image.fromarray(np.full((24, 22), 300, np.uint16))
    np.testing.assert_allclose(door._fitted(faint, 22, 24), 300 / 65535)
    sides = [restore_images(faces, around(240, 220, side=side), PATTERN) for side in (0, 1)]
    masks = [Image.fromarray((around(240, 220, side=side) * 255).astype(np.uint8)) for side in (0, 1)]
    for found, wanted in zip(restore_images([faces, faces], masks, PATTERN), sides, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_mask_of_another_size_is_brought_to_the_image(faces: np.ndarray) -> None:
    """A pipeline may return another size than that of the picture and mask that it was given."""
    mask = around(512, 512, side=1)
    restored = restore_images(faces, mask, PATTERN)
    np.testing.assert_array_equal(restored[:, :108], faces[:, :108])
    assert (restored[:, 112:] != faces[:, 112:]).any()


def test_masks_that_do_not_fit_are_refused(faces: np.ndarray) -> None:
    with pytest.raises(UsageError, match="masks: expected one, or 1 as there are images, got 2"):
        restore_images([faces], [around(9, 9, side=1)] * 2, PATTERN)
    deep = Image.fromarray(np.full((9, 9), 255, np.int32))
    wrongs = (np.full((9, 9), 7.0), np.full((9, 9), np.nan), np.zeros(4), np.zeros((2, 9, 9, 3)), "hole.png", deep)
    for wrong in wrongs:
        with pytest.raises(UsageError, match="masks: expected"):
            restore_images([faces] * 2, wrong, PATTERN)


# --- pipelines -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "sd-inpainting", 9)


def hole_over_the_chin() -> Image.Image:
    hole = Image.new("L", (220, 240))
    hole.paste(255, (110, 140, 140, 155))
    return hole


@pytest.mark.parametrize(("form", "crop"), [("pil", None), ("np", None), ("pt", None), ("pil", 32)])
def test_after_a_classic_pipeline(model: Path, faces: np.ndarray, form: str, crop: int | None) -> None:
    """With padding_mask_crop what comes out has the scene's size, without it the pipeline's."""
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(model, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    scene, hole = Image.fromarray(faces), hole_over_the_chin()
    size = {} if crop else {"height": 240, "width": 216}
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline(
        "a face", image=scene, mask_image=hole, padding_mask_crop=crop, num_inference_steps=2, output_type=form,
        generator=generator, **size,
    ).images  # fmt: skip
    restored = restore_images(drawn, hole, PATTERN)
    assert type(restored) is type(drawn)
    assert len(restored) == 1
    first, second = (np.asarray(images[0]) for images in (drawn, restored))
    assert first.shape == second.shape
    if form == "pil" and crop:
        assert restored[0].size == scene.size
        outside = np.asarray(hole) == 0
        np.testing.assert_array_equal(second[outside], first[outside])
        assert (first != second).any()


def test_the_example_runs_as_it_stands(
    model: Path, faces: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ten lines at the top of the module, in a folder where the model, the scene and the hole lie."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sd-inpainting").symlink_to(model)
    Image.fromarray(faces).save("scene.png")
    hole_over_the_chin().save("hole.png")
    example = textwrap.dedent(re.search(r"\n\n((?: {4}.*\n|\n)+)", door.__doc__ or "")[1])  # type: ignore[index]
    assert 8 <= len(example.strip().splitlines()) <= 10
    names: dict[str, Any] = {}
    exec(compile(example, "example", "exec"), names)
    with Image.open("restored.png") as image:
        outside = np.asarray(hole_over_the_chin()) == 0
        np.testing.assert_array_equal(np.asarray(image)[outside], np.asarray(names["drawn"][0])[outside])
    readme = (Path(door.__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert "integrations.diffusers" not in readme or example.strip() in textwrap.dedent(readme)


class Draw(diffusers.ModularPipelineBlocks):  # type: ignore[misc]
    """A block that gives the images it was made with."""

    def __init__(self, drawn: Any) -> None:
        super().__init__()
        self.drawn = drawn

    @property
    def inputs(self) -> list[Any]:
        return [InputParam("mask_image")]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam("images")]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block = self.get_block_state(state)
        block.images = self.drawn
        self.set_block_state(state, block)
        return components, state


def test_a_modular_pipeline_of_two_blocks(faces: np.ndarray, wanted: np.ndarray) -> None:
    drawn = Draw([Image.fromarray(faces)])
    blocks = SequentialPipelineBlocks.from_blocks_dict({"draw": drawn, "restore_faces": restore_block(PATTERN)})
    pipeline = blocks.init_pipeline()
    (restored,) = pipeline(output="images")
    np.testing.assert_array_equal(np.asarray(restored), wanted)
    mask = Image.fromarray((around(240, 220, side=1) * 255).astype(np.uint8))
    (half,) = pipeline(mask_image=mask, output="images")
    np.testing.assert_array_equal(np.asarray(half)[:, :110], faces[:, :110])
    np.testing.assert_array_equal(np.asarray(half)[:, 110:], wanted[:, 110:])
    assert "Restores the faces" in restore_block().doc


def test_at_the_end_of_diffusers_own_modular_sdxl(tmp_path: Path) -> None:
    """The published blocks with ours after them, over a tiny SDXL: what they draw goes through ours."""
    tiny.save(tmp_path / "xl", 4, xl=True)
    blocks = diffusers.StableDiffusionXLAutoBlocks()
    blocks.sub_blocks.insert(
        "restore_faces", restore_block(Recipe(restorer="identity", scale=2)), len(blocks.sub_blocks)
    )
    pipeline = blocks.init_pipeline(str(tmp_path / "xl"))
    pipeline.load_components(local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"prompt": "a cat", "num_inference_steps": 2, "height": 64, "width": 72}
    [larger] = pipeline(**settings, generator=torch.Generator().manual_seed(0), output="images")
    assert larger.size == (144, 128)
