"""The one error a recipe ends with."""

from __future__ import annotations


class RecipeError(Exception):
    """A recipe cannot go on; the message says what is wrong and what mends it."""
