"""The page of `facefix web`, made with Gradio: one tab for a photo, one for a hole, one for an archive.

`house` is what all tabs share, `settings` makes controls from the settings of `Recipe`, `words` says facefix's lines
as the page does, `page` puts the tabs side by side, and `server` decides who may ask for what.
"""
