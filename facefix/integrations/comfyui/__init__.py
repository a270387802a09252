"""The folder to drop into ComfyUI's `custom_nodes`, under any name; facefix itself is installed beside ComfyUI.

    path/to/ComfyUI/python -m pip install facefix
    cp -r <this folder> path/to/ComfyUI/custom_nodes/facefix

The copy holds no code of its own: it takes the nodes of the facefix that is installed, so it never grows old.
"""

from facefix.integrations.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
