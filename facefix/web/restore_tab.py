"""The tab for one photo."""

from __future__ import annotations

import gradio as gr

from facefix.web.house import House
from facefix.web.settings import controls


def build(house: House) -> None:
    """Place the tab's parts where this is called."""
    gr.File()
    controls(house, "restore")
