"""The page: its tabs, and how it looks."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from facefix.web import archive_tab, inpaint_tab, restore_tab
from facefix.web.house import MEGABYTE, House

TITLE = "facefix"
_ONCE = """() => document.addEventListener("click", event => {
  if (event.detail > 1 && event.target.closest("[id$=-start], [id$=-apply], [id$=-undo]")) event.stopPropagation();
}, true)"""
"""A double click begins a thing once: Gradio would begin it again while it still gathers what the first one needs."""


def page(house: House) -> gr.Blocks:
    """The page of a house; nothing of it is asked from anywhere but the server."""
    blocks = gr.Blocks(title=TITLE, analytics_enabled=False)
    with blocks:
        gr.HTML(
            "<header id='facefix-head'><h1>facefix</h1><p>Find, align and restore the faces of photos. "
            "A restored face is an interpretation, not a record: keep the original.</p></header>"
        )
        with gr.Tabs():
            with gr.Tab("Restore", id="restore"):
                restore_tab.build(house)
            with gr.Tab("Inpaint", id="inpaint"):
                inpaint_tab.build(house)
            with gr.Tab("Archive", id="archive"):
                archive_tab.build(house)
        gr.HTML(f"<footer id='facefix-foot'>{_promise(house)}</footer>")
    blocks.queue(max_size=32, default_concurrency_limit=2, api_open=False)
    # Gradio looks a thousand times a second for what to do, with a twentieth of a core while nobody is there; on
    # Windows it looks this often
    blocks._queue.sleep_when_free, blocks._queue.progress_update_sleep_when_free = 0.05, 0.1
    return blocks


def look() -> dict[str, object]:
    """Theme, style sheet and script, as Gradio's server takes them; fonts are those of the visitor's system."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=system,
        font_mono=["ui-monospace", "Consolas", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        # Gradio's own greys and teals are too pale to be read by everybody
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        color_accent="*primary_700",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
    )
    return {"theme": theme, "css_paths": [Path(__file__).with_name("page.css")], "js": _ONCE}


def _promise(house: House) -> str:
    minutes = max(1, round(house.keep_seconds / 60))
    kept = f"{minutes} minute{'s' if minutes > 1 else ''}"
    return (
        f"Photos stay on the server that runs this page. Uploads and results are removed {kept} after you last used "
        f"them, and when the server stops. Up to {house.max_bytes / MEGABYTE:,.0f} MB and "
        f"{house.max_pixels / 1e6:,.0f} megapixels a photo."
    )
