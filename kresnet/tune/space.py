"""What a search may change: fields of the recipe, each with its choices or its range.

In YAML, a line for each field:

    lr: {float: [1.0e-5, 1.0e-3], log: true}
    train_from: {int: [1, 4]}
    augment: {choice: [none, light, trivial]}
    color: {float: [0.0, 0.4], step: 0.1, when: {augment: light}}

`step` is a difference, or with `log` a factor. A field with `when` is only set where another field
of the space has that value, or one of these values; elsewhere it is as in the planner's recipe.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kresnet.errors import ConfigError, ResourceError
from kresnet.train.recipe import Recipe, uncuttable
from kresnet.zoo.download import TAGS
from kresnet.zoo.variants import variant_config

if TYPE_CHECKING:
    import keras_tuner

FIXED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("data", "val", "test", "group_by", "keep_split", "exclude", "seed", "max_bad"),
        "all trials share the images and their split",
    ),
    **dict.fromkeys(
        ("budget_s", "cache"), "it changes how long a training takes, not what it would learn"
    ),
    "target_precision": "it is about the finished model's answers",
    "weights": "they are those of the variant, which can be searched in",
}
"""Fields of the recipe that no search may change, and why."""

_LOWER: Final = 0.1
_HIGHER: Final = 10.0  # the default space: from a tenth of the planned rate to ten times of it
_DECAYS: Final = (0.3, 0.5, 0.7, 0.9)


class Entry(BaseModel):
    """What one field may be: exactly one of `choice`, `float` and `int`.

    Attributes:
        choice: The values to choose from.
        floats: `float` in YAML: the lowest and the highest value, both included.
        ints: `int` in YAML: the lowest and the highest value, both included.
        log: Search in the logarithm of the value.
        step: Difference, with `log` factor, from one value to the next; None is any value.
        when: The field that this one depends on, and the value or values with which it is set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    choice: Annotated[tuple[Any, ...] | None, Field(min_length=1)] = None
    floats: Annotated[tuple[float, float] | None, Field(alias="float")] = None
    ints: Annotated[tuple[int, int] | None, Field(alias="int")] = None
    log: bool = False
    step: Annotated[float | None, Field(gt=0)] = None
    when: dict[str, Any] = Field(default_factory=dict)

    @property
    def range(self) -> tuple[float, float] | None:
        """The lowest and the highest value; None for choices."""
        return self.floats or self.ints


@dataclass(frozen=True, slots=True)
class Space:
    """Validated entries, a parent always before what depends on it.

    Attributes:
        entries: For each field of the recipe that is searched, what it may be.
    """

    entries: Mapping[str, Entry]

    @classmethod
    def default(cls, recipe: Recipe) -> Space:
        """Return a space around a planned recipe, of what is worth a search in fine-tuning.

        That is rates, decay, how much of the network learns, and how training images are shown.
        """
        pretrained = recipe.weights is not None
        decay = recipe.weight_decay or 1e-4
        fields: dict[str, Any] = {
            "lr": {"float": [_LOWER * recipe.lr, _HIGHER * recipe.lr], "log": True},
            "weight_decay": {"float": [_LOWER * decay, _HIGHER * decay], "log": True},
            "min_area": {"float": [min(0.1, recipe.min_area), 1.0]},
            "augment": {"choice": ["none", "light", "trivial"]},
            "color": {"float": [0.0, max(0.4, recipe.color)], "when": {"augment": "light"}},
            "label_smoothing": {"float": [0.0, max(0.2, recipe.label_smoothing)]},
        }
        if pretrained:
            last = len(variant_config(recipe.variant).depths)
            fields["layer_decay"] = {"choice": sorted({*_DECAYS, recipe.layer_decay})}
            fields["train_from"] = {"int": [1, max(last, recipe.train_from)]}
        return cls.of(fields)

    @classmethod
    def head(cls, recipe: Recipe) -> Space:
        """Return the space of a head on features that stay as they are."""
        fields: dict[str, Any] = {
            "probe_strength": {"float": [1e-5, 1e2], "log": True},
            "probe_smoothing": {"float": [0.0, max(0.3, recipe.probe_smoothing)]},
            "probe_views": {
                "choice": ["center", "mirror", "crops"] if recipe.flip else ["center", "crops"]
            },
        }
        return cls.of(fields)

    @classmethod
    def load(cls, path: str | Path) -> Space:
        """Read a space from a YAML file; see the first lines of this module.

        Raises:
            ResourceError: The file cannot be read.
            ConfigError: It is no space; the message names the field and the fix.
        """
        try:
            fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ResourceError(f"A space must be a readable file. Received: {error}.") from None
        except yaml.YAMLError as error:
            said = " ".join(str(error).split())
            raise ConfigError(f"A space must be a YAML file. Received: {said}.") from None
        return cls.of(fields)

    @classmethod
    def of(cls, fields: Any) -> Space:
        """Return the space of fields that a person has written.

        Raises:
            ConfigError: A field is unknown, or has values that no recipe allows.
        """
        if not isinstance(fields, Mapping) or not fields:
            raise ConfigError(
                "A space must hold lines as `lr: {float: [1.0e-5, 1.0e-3], log: true}`. "
                f"Received: {fields!r}."
            )
        entries = {str(name): _entry(str(name), entry) for name, entry in fields.items()}
        return cls({name: entries[name] for name in _ordered(entries)})

    def as_dict(self) -> dict[str, Any]:
        """Return what `of` reads, as JSON types."""
        return {
            name: entry.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            for name, entry in self.entries.items()
        }

    def check(self, recipe: Recipe, *, algorithm: str, kind: str = "train") -> None:
        """Refuse what cannot be searched around a recipe.

        Raises:
            ConfigError: The message names the field.
        """
        whole = [name for name in self.entries if not name.startswith("probe_")]
        if kind == "head" and whole:
            raise ConfigError(
                "A search for a head alone has the fields that begin with probe_. Received: "
                f"{whole[0]!r}. Leave it out, or leave --only out."
            )
        if "epochs" in self.entries and algorithm == "hyperband":
            raise ConfigError(
                "Hyperband decides on the epochs itself. Received: `epochs` in the space. Leave it "
                "out, or choose another --algorithm."
            )
        self._check_stages(recipe)
        self._check_cut(recipe)
        if "variant" not in self.entries or recipe.weights is None or recipe.weights in TAGS:
            return
        raise ConfigError(
            "`variant` can be searched where each variant has its own weights. Received: "
            f"weights={recipe.weights!r}. Use --weights imagenet or none."
        )

    def _check_cut(self, recipe: Recipe) -> None:
        """Refuse what a recipe that keeps what frozen stages say cannot be tried with.

        Raises:
            ConfigError: It is tried.
        """
        if recipe.cut_cache == "none":
            return
        fields = recipe.model_dump()
        for name, entry in self.entries.items():
            for value in entry.choice or entry.range or ():
                if obstacles := uncuttable(fields | {name: value}):
                    raise ConfigError(
                        "What frozen stages say can be kept where they say the same in each "
                        f"epoch. Received: {obstacles[0]} in the space, and "
                        f"cut_cache={recipe.cut_cache!r}. Leave one out."
                    )

    def _check_stages(self, recipe: Recipe) -> None:
        """Refuse to train from a stage that a network does not have.

        Raises:
            ConfigError: It is tried.
        """
        entry, variants = self.entries.get("train_from"), self.entries.get("variant")
        if entry is None:
            return
        highest = max(entry.choice or entry.range or ())
        for name in (variants and variants.choice) or (recipe.variant,):
            last = len(variant_config(name).depths)
            if highest > last:
                raise ConfigError(
                    "`train_from` must be a stage of the network. Received: up to "
                    f"{highest} in the space, and {name} has {last} stages. Lower it."
                )

    def hyperparameters(self, recipe: Recipe | None = None) -> keras_tuner.HyperParameters:
        """Return the space as keras_tuner's; defaults are those of a recipe where it allows them.

        Values that are neither all words, all integers nor all floats are JSON texts there;
        `overrides` turns them back.
        """
        import keras_tuner

        hp = keras_tuner.HyperParameters()
        for name, entry in self.entries.items():
            given = None if recipe is None else getattr(recipe, name)
            default = _encoded(entry, given) if _allows(entry, given) else None
            with contextlib.ExitStack() as scope:
                for parent, values in entry.when.items():
                    known = [_encoded(self.entries[parent], value) for value in values]
                    scope.enter_context(hp.conditional_scope(parent, known))
                _declare(hp, name, entry, default)
        return hp

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the recipe that a trial sets; those that are inactive are left out.

        Args:
            values: A trial's values as keras_tuner has them; names that are none of ours, as
                "tuner/epochs", are passed over.
        """
        found: dict[str, Any] = {}
        for name, entry in self.entries.items():
            if name in values and self._is_active(entry, found):
                found[name] = _decoded(entry, values[name])
        return found

    def values_of(self, recipe: Recipe) -> dict[str, Any] | None:
        """Return a recipe as a point of the space, as keras_tuner has it; None if it lies outside.

        A step is not looked at: what lies between two is between two.
        """
        found: dict[str, Any] = {}
        for name, entry in self.entries.items():
            if not self._is_active(entry, {n: getattr(recipe, n) for n in self.entries}):
                continue
            value = getattr(recipe, name)
            if not _allows(entry, value):
                return None
            found[name] = _encoded(entry, value)
        return found

    def _is_active(self, entry: Entry, fields: Mapping[str, Any]) -> bool:
        """Tell whether all that an entry depends on has a value with which it is set."""
        return all(
            parent in fields
            and self._is_active(self.entries[parent], fields)
            and fields[parent] in values
            for parent, values in entry.when.items()
        )


# ---------------------------------------------------------------- one entry


def _declare(hp: Any, name: str, entry: Entry, default: Any) -> None:
    sampling = "log" if entry.log else "linear"
    if entry.choice is not None:
        values = [_encoded(entry, value) for value in entry.choice]
        ordered = not isinstance(values[0], str)
        hp.Choice(name, values, ordered=ordered, default=default)
    elif entry.floats is not None:
        hp.Float(name, *entry.floats, step=entry.step, sampling=sampling, default=default)
    elif entry.ints is not None:
        step = None if entry.step is None else int(entry.step)
        hp.Int(name, *entry.ints, step=step, sampling=sampling, default=default)


def _is_plain(entry: Entry) -> bool:
    """Tell whether keras_tuner can hold the choices as they are."""
    kinds = {type(value) for value in entry.choice or ()}
    return kinds in ({str}, {int}, {float})


def _encoded(entry: Entry, value: Any) -> Any:
    if entry.choice is None:
        return value
    if _is_plain(entry):
        return type(entry.choice[0])(value)
    return json.dumps(value)


def _decoded(entry: Entry, value: Any) -> Any:
    if entry.choice is None:
        return int(value) if entry.ints is not None else float(value)
    if _is_plain(entry):
        return value
    found = json.loads(value)
    return tuple(found) if isinstance(found, list) else found


def _allows(entry: Entry, value: Any) -> bool:
    if entry.choice is not None:
        return value in entry.choice
    low, high = entry.range or (0, 0)
    return isinstance(value, int | float) and low <= value <= high


# ---------------------------------------------------------------- what a person has written


def _entry(name: str, fields: Any) -> Entry:
    """Return one validated entry.

    Raises:
        ConfigError: The field is unknown or fixed, or a value is none that a recipe allows.
    """
    if name not in Recipe.model_fields:
        near = difflib.get_close_matches(name, Recipe.model_fields, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "The fields are those of recipe.yaml."
        raise ConfigError(f"A space has fields of the recipe. Received: {name!r}. {hint}")
    if name in FIXED:
        raise ConfigError(
            f"`{name}` cannot be searched: {FIXED[name]}. Received: {name!r} in the space. "
            "Leave it out."
        )
    try:
        entry = Entry.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(_wrong_entry(name, fields, error)) from None
    kinds = [kind for kind in (entry.choice, entry.floats, entry.ints) if kind is not None]
    if len(kinds) != 1:
        raise ConfigError(
            f"`{name}` must have one of choice, float and int. Received: {fields!r}. Write it as "
            f"{name}: {{choice: [A, B]}} or {name}: {{float: [LOW, HIGH]}}."
        )
    _check_range(name, entry)
    known = tuple(_known(name, value) for value in entry.choice or ())
    when = {
        parent: tuple(
            _known(parent, one) for one in (values if isinstance(values, list) else [values])
        )
        for parent, values in entry.when.items()
    }
    for value in entry.range or ():
        _known(name, value)
    return entry.model_copy(
        update={"choice": known if entry.choice is not None else None, "when": when}
    )


def _check_range(name: str, entry: Entry) -> None:
    if entry.range is None:
        if entry.log or entry.step is not None:
            raise ConfigError(
                f"`{name}`: choices have neither log nor step. Received: {entry.choice}."
            )
        return
    low, high = entry.range
    if not low < high or not math.isfinite(high - low):
        raise ConfigError(
            f"`{name}` must have the lower value first. Received: [{low:g}, {high:g}]."
        )
    if entry.log and low <= 0:
        raise ConfigError(
            f"`{name}` with log must begin above 0. Received: {low:g}. Raise it or leave log out."
        )
    if entry.log and entry.step is not None and entry.step <= 1:
        raise ConfigError(
            f"`{name}`: with log, the step is a factor above 1. Received: step={entry.step:g}."
        )
    if entry.ints is not None and entry.step is not None and entry.step != int(entry.step):
        raise ConfigError(f"`{name}`: the step must be whole. Received: step={entry.step:g}.")


def _known(name: str, value: Any) -> Any:
    """Return a value as the recipe has it.

    Raises:
        ConfigError: It allows no such value, or has no such field.
    """
    if name not in Recipe.model_fields:
        raise ConfigError(
            f"`when` must name a field of the space. Received: {name!r}, which no recipe has."
        )
    field = Recipe.model_fields[name]
    annotated: Any = Annotated
    kind = annotated[(field.annotation, *field.metadata, Field())]
    try:
        found = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ConfigError(
            f"`{name}` in the space must be what a recipe allows: "
            f"{error.errors()[0]['msg'].lower()}. Received: {value!r}."
        ) from None
    if name == "variant":
        variant_config(found)
    return found


def _wrong_entry(name: str, fields: Any, error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ("choice", "float", "int", "log", "step", "when")
        near = difflib.get_close_matches(where, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
        return f"`{name}` has no such setting. Received: {where!r}. {hint}"
    return (
        f"`{name}` is wrong: {where or 'it'}: {first['msg'].lower()}. Received: {fields!r}. "
        f"Write it as {name}: {{choice: [A, B]}} or {name}: {{float: [LOW, HIGH]}}."
    )


def _ordered(entries: Mapping[str, Entry]) -> list[str]:
    """Return the names, parents first.

    Raises:
        ConfigError: Something depends on what is not in the space, or on itself.
    """
    done: list[str] = []
    left = list(entries)
    while left:
        ready = [name for name in left if all(p in done for p in entries[name].when)]
        if not ready:
            name = left[0]
            parents = ", ".join(map(repr, entries[name].when))
            raise ConfigError(
                "`when` must name a field of the space that does not depend on it in turn. "
                f"Received: {name!r} when {parents}. Add that field, or leave `when` out."
            )
        done += ready
        left = [name for name in left if name not in done]
    return done
