"""Pictures of what a network has learned, and of convolution itself.

maps.py has filters, feature maps and occlusion; units.py what single units look for; sliding.py the kernel on its way
over an image, and the two backward passes. docs/visualize.md shows each of them.

Each function returns a matplotlib figure, which has `savefig` and shows itself in a notebook; `convolution` returns an
animation. matplotlib is imported when a picture is drawn; ImportError says how to install it where it is missing.
"""

from .figures import bare, new_figure, png
from .maps import draw_filters, feature_maps, filters, occlusion, occlusion_map
from .sliding import Sliding, convolution
from .units import Patch, deconvnet, deconvnet_maps, find_patches, maximise, maximised, top_patches

__all__ = [
    "Patch",
    "Sliding",
    "bare",
    "convolution",
    "deconvnet",
    "deconvnet_maps",
    "draw_filters",
    "feature_maps",
    "filters",
    "find_patches",
    "maximise",
    "maximised",
    "new_figure",
    "occlusion",
    "occlusion_map",
    "png",
    "top_patches",
]
