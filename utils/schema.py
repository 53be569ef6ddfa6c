"""The base of every config section: a frozen pydantic model that forbids unknown keys.

Each section class lives beside the code it configures and has a docstring under every field. A polymorphic field
(one that carries `type:`) is written `field: Annotated[BaseConfig, OneOf("package:TABLE", "kind", "default")]`;
`utils/coercion.py` looks the type up in the table and fills the fields, `core/config.py` reads the files. The JSON
schema for editors is made here from the same classes and tables.
"""

from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from utils.registry import import_object

OWN_CLASS = {
    "type": "object",
    "properties": {"type": {"type": "string", "pattern": ":", "description": "`module:Class`, a class of one's own."}},
    "required": ["type"],
}


class Misfits(ValueError):
    """Raised by a validator to say which keys do not fit: pairs of dotted path (from the section) and reason."""

    def __init__(self, *misfits: tuple[str, str]) -> None:
        super().__init__("; ".join(f"{path}: {reason}" for path, reason in misfits))
        self.misfits = misfits


class OneOf(NamedTuple):
    """Marks a field whose class is chosen by its `type:` key."""

    table: str
    """`package.module:TABLE`, the literal table of names."""
    kind: str
    """What an error calls it: "optimizer"."""
    default: str | None = None
    """The type when the section names none; None makes `type:` required."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> JsonSchemaValue:
        rows = [self._row_schema(name, path, handler) for name, path in import_object(self.table).items()]
        return {"anyOf": [{"oneOf": rows}, OWN_CLASS]}

    def _row_schema(self, name: str, path: str, handler: Any) -> JsonSchemaValue:
        row = dict(handler.resolve_ref_schema(handler(import_object(path).__pydantic_core_schema__)))
        row["properties"] = row.get("properties", {}) | {"type": {"const": name}}
        required = [key for key in row.get("required", []) if key != "type"]
        return row | {"required": required if name == self.default else ["type", *required]}


class Section(BaseModel):
    """One section of a config. Never written to: change it with `section.model_copy(update={...})`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


def fields_by_key(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by the key a person writes: an alias, such as `from`, where Python has no such name."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


class TypedSection(Section):
    """A section that is one row of a table."""

    type: str
    """The row of the table, or `module:Class` for a class of one's own."""


class EditorSchema(GenerateJsonSchema):
    """JSON schema in which a number may also be written as `500M` or `3e-4`, as the loader allows."""

    def int_schema(self, schema: Any) -> JsonSchemaValue:
        return {"anyOf": [super().int_schema(schema), NUMBER_TEXT]}

    def float_schema(self, schema: Any) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), NUMBER_TEXT]}

    def encode_default(self, default: Any) -> Any:
        return super().encode_default(default) if isinstance(default, BaseModel | tuple) else _plain(default)


NUMBER_TEXT = {"type": "string", "pattern": r"^[-+]?[0-9_.]+([eE][-+]?[0-9]+)?[kKMBGT]?$"}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def json_schema(section: type[Section]) -> JsonSchemaValue:
    """The JSON schema of a section, with every row of every table."""
    return section.model_json_schema(schema_generator=EditorSchema)
