"""Controls made from the settings of `Recipe`, and the recipe made from their values.

Name, default, limits and help are the command line's. Only what is usable here is offered; what needs weights that
are not here is told below, with the command that gets them. A name may not be a path: a visitor chooses among what the
server offers, and never a file of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from facefix.errors import UsageError
from facefix.inpaint import KINDS
from facefix.recipe import Command, Recipe, Setting
from facefix.types import Weight
from facefix.web.house import House
from facefix.web.words import in_page, plainly, title_of

Choices = Mapping[str, Sequence[str]]

_PARSER = "parsing_"
_LONGEST_SLIDER = 100
_HELP = {
    "restorer": "Network that restores the faces: auto picks for each face among those that are here; identity "
    "changes nothing and pattern adds a test pattern (both check the geometry).",
    "upscaler": "How the rest of the photo is enlarged: lanczos, or a Real-ESRGAN that is here.",
    "model": "The engine's weights, of those that are here; with none it takes its own.",
}
"""What the page says of settings for which the command takes more than names: files, folders and the hub."""


def controls(
    house: House, command: Command, names: Sequence[str] | None = None, *, choices: Choices | None = None
) -> dict[str, Component]:
    """A control for each setting, by name, placed where this is called.

    Args:
        house: whose weights decide what is usable.
        command: whose settings.
        names: which, in this order; without it all, in the recipe's.
        choices: what to offer for a setting instead of what is found here.
    """
    known = Recipe.settings(command)
    offered = offers(house, command) | dict(choices or {})
    return {name: _control(command, name, *known[name], offered.get(name)) for name in names or known}


def recipe_of(house: House, command: Command, values: Mapping[str, Any], *, choices: Choices | None = None) -> Recipe:
    """The recipe of the controls' values.

    Raises:
        gr.Error: a value does not fit; it is the one line of UsageError.
    """
    known = Recipe.settings(command)
    offered = offers(house, command) | dict(choices or {})
    with plainly():
        for name, value in values.items():
            if name in offered and value not in offered[name]:
                raise UsageError(f"--{name.replace('_', '-')}: expected one of {', '.join(offered[name])}, got {value}")
        return Recipe.from_mapping({name: _typed(value, known[name][0]) for name, value in values.items()})


def by_name(act: Callable[..., Any], names: Sequence[str], *, asked: bool = False) -> Any:
    """The act, which takes any values, with a parameter for each name: so programs can give them by name.

    Args:
        act: takes the values in order.
        names: of the parameters.
        asked: whether it takes gradio's request and progress, too.
    """
    usual = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, usual) for name in names]
    if asked:
        parameters.append(inspect.Parameter("request", usual, annotation=gr.Request))
        parameters.append(inspect.Parameter("progress", usual, default=gr.Progress()))
        act.__annotations__ = {"request": gr.Request}
    act.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return act


def offers(house: House, command: Command) -> dict[str, list[str]]:
    """The values that can be chosen here, for each of the command's settings that is a choice among names."""
    store, known = house.store, Recipe.settings(command)
    here = {weight.name for weight, _ in store.present()}

    def usable(name: str, choice: str) -> bool:
        if name == "detector":
            return choice == "auto" or choice in here
        if name == "mask_from":
            return choice in ("landmarks", "crop") or _PARSER + choice in here
        if name == "engine":
            needed = KINDS[choice].weights if choice in KINDS else None
            return choice in ("auto", "cv2") or needed in here
        return True

    found = {
        name: [str(choice) for choice in setting.choices if usable(name, str(choice))]
        for name, (default, setting) in known.items()
        if setting.choices and isinstance(default, str)
    }
    if "restorer" in known:
        found["restorer"] = ["auto", *_names(house, "restorer"), "identity", "pattern"]
    if "upscaler" in known:
        found["upscaler"] = ["lanczos", *_names(house, "upscaler")]
    if "model" in known:
        found["model"] = ["", *_names(house, "inpainter"), *_names(house, "face-inpainter")]
    return found


def missing(house: House, kinds: Sequence[str]) -> str:
    """What could be had besides, as Markdown: a line for each file of these kinds that is not here; empty for none."""
    here = {weight.name for weight, _ in house.store.present()}
    lines = [
        _how_to_get(weight) for weight in house.store.catalogue if weight.kind in kinds and weight.name not in here
    ]
    return "\n".join(f"- {line}" for line in lines)


def _how_to_get(weight: Weight) -> str:
    size = weight.bytes or weight.tensor_bytes
    facts = [f"{size / 1e6:,.0f} MB"] if size and size > 5e5 else []
    facts += [f"licence: {weight.licence}"] if weight.licence else []
    consent = "" if weight.commercial else f"; asks once for consent, `facefix weights accept {weight.name}`"
    return f"**{weight.name}** — `facefix weights fetch {weight.name}` ({', '.join(facts)}{consent})"


def _names(house: House, kind: str) -> list[str]:
    return [weight.name for weight, _ in house.store.available(kind)]


def _typed(value: Any, default: Any) -> Any:
    """The value as a form gives it, in the setting's type: whole numbers may come as floats, and none as empty text."""
    if isinstance(default, int) and not isinstance(default, bool) and isinstance(value, float) and value.is_integer():
        return int(value)
    return "" if value is None and isinstance(default, str) else value


def _control(command: Command, name: str, default: Any, setting: Setting, offered: Sequence[str] | None) -> Component:
    """One setting's control."""
    common: dict[str, Any] = {
        "value": default,
        "label": title_of(name),
        "info": _HELP.get(name) or in_page(setting.help),
        "elem_id": f"{command}-{name}",
        "interactive": True,
    }
    if isinstance(default, bool):
        return gr.Checkbox(**common)
    if offered is not None or setting.choices:
        listed = [(str(choice) or "none", choice) for choice in offered or setting.choices]
        return gr.Dropdown(listed, **common)
    if isinstance(default, str):
        return gr.Textbox(**common, max_lines=1)
    whole = isinstance(default, int)
    low, high = setting.minimum, setting.maximum
    if low is not None and high is not None and high <= _LONGEST_SLIDER:
        return gr.Slider(low, high, step=1 if whole else 0.01, **common)
    return gr.Number(minimum=low, maximum=high, precision=0 if whole else None, **common)
