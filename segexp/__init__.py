"""segexp: which activation functions should my segmentation network use?"""

__version__ = "0.1.0"
