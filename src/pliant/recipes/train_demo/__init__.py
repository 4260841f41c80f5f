"""The recipe of the demo model `tale`: its corpus, tokenizer, training and export."""

from pliant.recipes.train_demo.config import DemoConfig, DemoShape, Stage
from pliant.recipes.train_demo.story import train_demo

__all__ = ["DemoConfig", "DemoShape", "Stage", "train_demo"]
