import dataclasses
from pathlib import Path

import pytest

from facefix.errors import UsageError
from facefix.recipe import Recipe


def test_defaults_are_valid_and_toml_gives_the_same_recipe_back(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    recipe = Recipe(strength=0.25, face='1,"3"\n', ai_label=False, engine="cv2", outpaint="0,0,8,0", refine=True)
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(path) == recipe
    worded = Recipe(prompt='été 😀 \\ud83d "\n\x7f')
    path.write_text(worded.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(path) == worded


def test_every_setting_has_help_that_ends_in_a_full_stop() -> None:
    for name, (_, setting) in (Recipe.settings("restore") | Recipe.settings("inpaint")).items():
        assert setting.help.endswith("."), name


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"strength": 1.5}, "--strength: expected 0 to 1, got 1.5"),
        ({"strength": float("nan")}, "--strength: expected 0 to 1, got nan"),
        ({"strength": "much"}, "--strength: expected float, got 'much'"),
        ({"scale": 3}, "--scale: expected one of 1, 2, 4, got 3"),
        ({"scale": True}, "--scale: expected int, got True"),
        ({"detector": "dlib"}, "--detector: expected one of auto, centerface"),
        ({"min_face": -1}, "--min-face: expected 0 to inf, got -1"),
        ({"seed": 2**63}, "--seed: expected 0 to 9.22337e+18, got 9223372036854775808"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(**values)  # type: ignore[arg-type]
    assert str(caught.value).startswith(says)


def test_a_mistyped_name_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no setting is called 'strenght'"):
        Recipe.from_mapping({"strenght": 1.0})
    wrong = {"bad.toml": "strength = = 1", "unknown.toml": "colour_of_hair = 'red'", "limit.toml": "strength = 2"}
    wrong |= {"long.toml": "seed = " + "9" * 5000, "deep.toml": "seed = " + "[" * 9000}
    for name, text in wrong.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=name):
            Recipe.from_toml(tmp_path / name)
    with pytest.raises(
        UsageError, match=r"missing\.toml: expected a recipe in TOML, got: No such file or directory; give"
    ):
        Recipe.from_toml(tmp_path / "missing.toml")


def test_digest_tells_recipes_apart() -> None:
    assert Recipe().digest() == Recipe(strength=1.0).digest()
    assert len({Recipe().digest(), Recipe(strength=0.9).digest(), Recipe(seed=1).digest()}) == 3


def test_each_command_has_its_own_settings_and_every_setting_has_a_command() -> None:
    restore, inpaint = set(Recipe.settings("restore")), set(Recipe.settings("inpaint"))
    colorize = set(Recipe.settings("colorize"))
    assert Recipe.settings() == Recipe.settings("restore")
    assert restore | inpaint | colorize == {field.name for field in dataclasses.fields(Recipe)}
    assert restore - inpaint == {"scale", "sharp_faces"}
    assert colorize - restore == {"chroma"}
    assert {"engine", "prompt", "feather_px", "faces"} <= inpaint - restore
    assert list(Recipe(seed=3).values()) == list(Recipe.settings())


def test_what_inpaints_does_not_change_the_digest_of_a_restoration() -> None:
    # as it was before there was any inpainting: finished photos must still be found
    assert Recipe().digest() == "3a76c90f13db8fc26b38aced638492b3922670093206c1a2f3b46062d5947959"
    assert Recipe(engine="sd", prompt="a wall").digest() == Recipe().digest()
    assert Recipe(engine="sd", prompt="a wall").digest("inpaint") != Recipe(engine="sd").digest("inpaint")
    assert Recipe(scale=2).digest("inpaint") == Recipe().digest("inpaint")
