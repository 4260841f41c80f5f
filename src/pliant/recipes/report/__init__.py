"""`pliant report`: what is known of an artifact as one HTML page that loads nothing."""

from pliant.recipes.report.facts import Report, make_report
from pliant.recipes.report.page import render_page

__all__ = ["Report", "make_report", "render_page"]
