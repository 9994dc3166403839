"""`python -m conv_ext demo`: real images are learned by torch's convolution and by ours. Start reading at compare.run.

compare.py has the options and the first demo, transfer.py the second; look.py is `python -m conv_ext visualize`;
training.py is the loop of all, data.py the sets
of images, picture.py what is drawn.
"""

from .compare import add_arguments, run

__all__ = ["add_arguments", "run"]
