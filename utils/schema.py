"""The base of every config section: a frozen pydantic model that forbids unknown keys.

Each section class lives beside the code it configures and has a docstring under every field. A polymorphic field
(one that carries `type:`) is written `field: Annotated[BaseConfig, OneOf("package:TABLE", "kind", "default")]`;
the loader in `core/config.py` looks the type up in the table.
"""

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class OneOf(NamedTuple):
    """Marks a field whose class is chosen by its `type:` key."""

    table: str
    """`package.module:TABLE`, the literal table of names."""
    kind: str
    """What an error calls it: "optimizer"."""
    default: str | None = None
    """The type when the section names none; None makes `type:` required."""


class Section(BaseModel):
    """One section of a config. Never written to: change it with `section.model_copy(update={...})`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class TypedSection(Section):
    """A section that is one row of a table."""

    type: str
    """The row of the table, or `module:Class` for a class of one's own."""
