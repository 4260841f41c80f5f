"""Artifacts on the Hugging Face hub: pulled plane by plane, and pushed."""

from pliant.recipes.hub.pull import PullPlan, plan_pull, pull
from pliant.recipes.hub.push import PushPlan, plan_push, push

__all__ = ["PullPlan", "PushPlan", "plan_pull", "plan_push", "pull", "push"]
