"""Random JSON schemas of the keywords that structured output enforces, small enough that most answers come to an end."""

import random

# Each with what Python's re and Rust's regex read alike.
PATTERNS = [
    r"^[A-Z][a-z]{2,5}$", r"^\d{3}-\d{4}$", r"^(a|b){1,4}c$", r"^[^0-9]{1,9}$", r"^#[0-9a-fA-F]{6}$",
    r"^[\w.]{1,8}@[a-z]{2,6}\.(com|org)$", r"^v(0|[1-9]\d?)(\.\d{1,2}){1,2}$", r"^[äöü]{2}$",
]
UNBOUNDED_PATTERNS = [r"^(a|b)*c$", r"^(?:foo|bar)+$", r"x+y", r"^[äöü]{2}", r"\s", r"[^a-z]$", r"é|日"]
FORMATS = ["date", "time", "date-time", "ipv4", "ipv6", "uuid"]
# A model makes these long.
UNBOUNDED_FORMATS = ["email", "hostname", "duration"]
NAMES = ["id", "name", "a b", "über", 'q"uote', "tags", "x/y", "", "~0", "$ref", "properties", "日本", "back\\slash"]
VALUES = ["red", 'gr"een\n', "", 7, -1.5, 0, 10**12, None, True, {"a": [1, "é"]}, [], {}, [[0]], "null", 1e-3]
# Refused, whatever else a schema says.
UNSUPPORTED = [
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
    "dependentRequired", "dependentSchemas", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$anchor", "typo",
]


class Schemas:
    """Schemas of one seed."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.names = []

    def chance(self, percent):
        return self.draw.random() * 100 < percent

    def document(self):
        """A whole schema, a third of them with definitions, some of these recursive."""
        if self.chance(35):
            self.names = self.draw.sample(["node", "point", "a/b", "t~x", "per%cent"], self.draw.randrange(1, 4))
        schema = self.schema(3)
        if not isinstance(schema, dict):
            schema = {"anyOf": [schema]}
        definitions = {}
        for k, name in enumerate(self.names):
            definitions[name] = self.recursive(name) if self.chance(40) else self.bounded(self.names[k + 1:])
        key = self.draw.choice(["$defs", "definitions"])
        if definitions:
            schema = {key: definitions, **schema}
            text_of = lambda name: name.replace("~", "~0").replace("/", "~1").replace("%", "%25")
            replace(schema, {f"#{name}": f"#/{key}/{text_of(name)}" for name in self.names})
        if self.chance(30):
            schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "a document", **schema}
        return schema

    def bounded(self, others):
        """A definition that refers to later ones only."""
        names, self.names = self.names, others
        schema = self.schema(1)
        self.names = names
        return schema if isinstance(schema, dict) else {"allOf": [schema]}

    def recursive(self, name):
        """A list, or a tree, of itself."""
        again = {"$ref": f"#{name}"}
        if self.chance(50):
            properties = {"value": self.leaf(), "next": {"anyOf": [{"type": "null"}, again]}}
        else:
            properties = {"value": self.leaf(), "children": {"type": "array", "items": again, "maxItems": 1}}
        return {"type": "object", "properties": properties, "required": ["value"], "additionalProperties": False}

    def schema(self, depth):
        if depth == 0 or self.chance(25):
            return self.leaf()
        kind = self.draw.randrange(12)
        if kind < 5:
            return self.object(depth - 1)
        if kind < 8:
            return self.array(depth - 1)
        if kind == 8:
            return {"anyOf": [self.schema(depth - 1), self.leaf(), *([self.object(0)] if self.chance(30) else [])]}
        if kind == 9:
            return {"oneOf": [self.string(), self.integer(), {"type": "null"}]}
        if kind == 10:
            one = {"type": "object", "properties": {"a": self.leaf()}, "required": ["a"]}
            two = {"type": "object", "properties": {"b": self.schema(depth - 1)}, "required": ["b"]}
            both = {"allOf": [one, two]}
            if self.chance(95):
                both |= {"properties": {"a": True, "b": {}}, "additionalProperties": False}
            return both
        return self.leaf()

    def leaf(self):
        kind = self.draw.randrange(14)
        if kind < 4:
            return self.string()
        if kind < 6:
            return self.integer()
        if kind < 8:
            return self.number()
        if kind == 8:
            return {"type": self.draw.choice(["boolean", "null"])}
        if kind == 9:
            return {"const": self.draw.choice(VALUES)}
        if kind == 10:
            return {"enum": self.draw.sample(VALUES, self.draw.randrange(1, 6))}
        if kind == 11:
            return {"type": ["string", "null", "integer"], "maxLength": 6, "minimum": 3, "maximum": 40}
        if kind == 12 and self.names:
            return {"$ref": f"#{self.draw.choice(self.names)}"}
        return {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 1, "maximum": 12}]}

    def string(self):
        least = self.draw.randrange(4)
        return {"type": "string"} | self.draw.choice(
            [
                {"maxLength": self.draw.randrange(0, 12)},
                {"minLength": least, "maxLength": least + self.draw.randrange(8)},
                {"pattern": self.draw.choice(PATTERNS)},
                {"pattern": self.draw.choice(UNBOUNDED_PATTERNS), "maxLength": self.draw.randrange(4, 20)},
                {"pattern": "^[^0-9]*$", "minLength": 1, "maxLength": 12},
                {"format": self.draw.choice(FORMATS)},
                {"format": self.draw.choice(UNBOUNDED_FORMATS), "maxLength": self.draw.randrange(9, 40)},
                {"format": "hostname", "minLength": 3},
                {"enum": self.draw.sample(["a", "ab", "b\tc", "ü", '"', "\\"], 3)},
            ]
        )

    def integer(self):
        low = self.draw.randrange(-1000, 1000)
        return {"type": "integer"} | self.draw.choice(
            [
                {"minimum": low, "maximum": low + self.draw.randrange(0, 500)},
                {"exclusiveMinimum": low, "exclusiveMaximum": low + 20},
                {"minimum": 0, "maximum": 1000, "multipleOf": self.draw.choice([2, 5, 7, 25])},
                {"minimum": -9_000_000, "maximum": 9_000_000},
                {"minimum": low + 0.5, "maximum": low + 3.25},
            ]
        )

    def number(self):
        low = self.draw.randrange(-800, 800) / 8
        return {"type": "number"} | self.draw.choice(
            [
                {"minimum": low, "maximum": low + 3.5},
                {"exclusiveMinimum": low, "maximum": low + 100},
                {"minimum": low, "exclusiveMaximum": low + 0.5},
                {"minimum": -4, "maximum": 90, "multipleOf": self.draw.choice([0.5, 0.25, 3])},
                {"minimum": 0.001, "maximum": 0.002},
            ]
        )

    def object(self, depth):
        names = self.draw.sample(NAMES, self.draw.randrange(0, 5))
        schema = {"type": "object", "properties": {name: self.schema(depth) for name in names}}
        counted = self.chance(20)
        # How many names there are can be counted where all that are known must be there.
        required = names if counted else [name for name in names if self.chance(60)]
        if required or self.chance(50):
            schema["required"] = required
        # A model that may go on with names does.
        if counted and self.chance(40):
            schema["patternProperties"] = {r"^p_[a-z]{1,3}$": {"type": "boolean"}, r"^\d$": self.leaf()}
        if counted and self.chance(15):
            # Free names, which a model makes long.
            if self.chance(70):
                schema["additionalProperties"] = {"type": "integer", "minimum": 0, "maximum": 9}
            schema["maxProperties"] = len(required) + 1
        else:
            schema["additionalProperties"] = False
            if counted:
                schema["maxProperties"] = len(required) + self.draw.randrange(3)
        if counted:
            schema["minProperties"] = len(required)
        return schema

    def array(self, depth):
        least = self.draw.randrange(3)
        schema = {"type": "array", "items": self.schema(depth), "minItems": least}
        schema["maxItems"] = least + self.draw.randrange(3)
        if self.chance(25):
            schema["prefixItems"] = [self.leaf(), {"type": "boolean"}]
            if self.chance(40):
                schema["items"] = False
                schema["minItems"], schema["maxItems"] = 0, 2
        return schema

    def spoiled(self):
        """A schema with a keyword that is not enforced at some place, and the keyword."""
        keyword = self.draw.choice(UNSUPPORTED)
        schema = self.document()
        places = list(objects(schema))
        self.draw.choice(places)[keyword] = self.draw.choice([True, {}, 1, []])
        return schema, keyword


def objects(schema):
    """Every schema within a schema that is an object."""
    if not isinstance(schema, dict):
        return
    yield schema
    for keyword, value in schema.items():
        if keyword in ("properties", "patternProperties", "$defs", "definitions"):
            for below in value.values():
                yield from objects(below)
        elif keyword in ("items", "additionalProperties"):
            yield from objects(value)
        elif keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for below in value:
                yield from objects(below)


def replace(schema, references):
    """Makes each `$ref` a pointer."""
    for each in objects(schema):
        if "$ref" in each:
            each["$ref"] = references[each["$ref"]]
