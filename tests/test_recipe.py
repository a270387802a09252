from pathlib import Path

import pytest

from facefix.errors import UsageError
from facefix.recipe import Recipe


def test_defaults_are_valid_and_toml_gives_the_same_recipe_back(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(Recipe(strength=0.25, face='1,"3"\n', ai_label=False).to_toml(), encoding="utf-8")
    assert Recipe.from_toml(path) == Recipe(strength=0.25, face='1,"3"\n', ai_label=False)


def test_every_setting_has_help_that_ends_in_a_full_stop() -> None:
    for name, (_, setting) in Recipe.settings().items():
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
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(**values)  # type: ignore[arg-type]
    assert str(caught.value).startswith(says)


def test_a_mistyped_name_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no setting is called 'strenght'"):
        Recipe.from_mapping({"strenght": 1.0})
    for name, text in (("bad.toml", "strength = = 1"), ("unknown.toml", "colour_of_hair = 'red'")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=name):
            Recipe.from_toml(tmp_path / name)
    with pytest.raises(UsageError, match=r"missing\.toml"):
        Recipe.from_toml(tmp_path / "missing.toml")


def test_digest_tells_recipes_apart() -> None:
    assert Recipe().digest() == Recipe(strength=1.0).digest()
    assert len({Recipe().digest(), Recipe(strength=0.9).digest(), Recipe(seed=1).digest()}) == 3
