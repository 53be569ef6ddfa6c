"""Config sections for tests: one of every kind of field, and a small table."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from utils.schema import Misfits, OneOf, Section, TypedSection
from utils.units import Duration

FRUITS = {"apple": "tests.toy_sections:Apple", "pear": "tests.toy_sections:Pear"}


class Fruit(TypedSection):
    """A row of FRUITS."""

    weight: float = Field(default=1.0, gt=0)
    """Grams."""


class Apple(Fruit):
    """Has seeds."""

    type: str = "apple"
    """Row."""
    seeds: int = 5
    """How many."""


class Pear(Fruit):
    """Has a neck."""

    type: str = "pear"
    """Row."""
    neck: Literal["short", "long"] = "short"
    """How long."""
    core: "Core | None" = None
    """What is inside."""


class Core(Section):
    """A nested section."""

    size: int
    """Required."""


class Vegetable(TypedSection):
    """No fruit."""


class Basket(Section):
    """Every kind of field."""

    name: str = "basket"
    """Text."""
    owner: str | None = None
    """Text or nothing."""
    count: int = Field(default=1, ge=0)
    """A whole number."""
    share: float = 0.5
    """A number."""
    limit: int | float | str = 1
    """Several types."""
    is_full: bool = False
    """A switch."""
    pair: tuple[float, float] = (0.9, 0.95)
    """Two numbers."""
    names: tuple[str, ...] = ()
    """Any number of texts."""
    prices: dict[str, float] = {}
    """Numbers by name."""
    every: Duration | None = Duration(10, "steps")
    """A length."""
    color: Literal["red", "green"] = "red"
    """A choice."""
    core: Core = Core(size=1)
    """A nested section."""
    fruit: Annotated[Fruit, OneOf("tests.toy_sections:FRUITS", "fruit", "apple")]
    """A row with a default."""
    fruits: tuple[Annotated[Fruit, OneOf("tests.toy_sections:FRUITS", "fruit")], ...] = ()
    """Rows without one."""

    @model_validator(mode="after")
    def _fits(self) -> "Basket":
        if self.count < len(self.fruits):
            raise Misfits(("count", f"{self.count} is too few"), ("fruits", f"{len(self.fruits)} are too many"))
        if self.name == self.owner:
            raise ValueError(f"name and owner are both '{self.name}'")
        return self
