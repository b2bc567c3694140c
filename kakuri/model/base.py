"""The ground all objects stand on: frozen, strict about types, and closed against unknown fields.

One rule: what a person wrote is either understood whole or refused; nothing is coerced ("512" is no number) and
nothing is dropped.
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A frozen value. Two with equal fields are equal."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    def with_(self, **changes: Any) -> Self:
        """A copy with these fields changed. The values are trusted: they come from our own code."""
        return self.model_copy(update=changes)

    def to_json(self) -> dict[str, Any]:
        """The object as JSON-ready values, without fields that are None."""
        return self.model_dump(mode="json", exclude_none=True)
