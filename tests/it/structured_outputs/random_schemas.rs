//! Whatever is generated under a schema is valid under it, random schemas, random logits, real masks and sampler,
//! on the vocabulary of the model inside the program.
//!
//! A few schemas by default; `CANDLEWICK_RANDOM_SCHEMAS=1000 cargo test --test it random_schemas -- --nocapture` for more.

use candlewick::{engine::vocabulary, params::Constraint, sampling::grammar::Compiler};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::{Map, Value, json};

use super::{Vocabulary, demo, random_text, validity::check};

const SCHEMAS: u64 = 40;
const MAX_TOKENS: usize = 400;

struct Schemas {
    random: SmallRng,
}

impl Schemas {
    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn below(&mut self, n: usize) -> usize {
        self.random.random_range(0..n)
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    fn document(&mut self) -> Value {
        let mut schema = self.schema(3);
        if self.chance(30)
            && let Value::Object(object) = &mut schema
        {
            object.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
            object.insert("title".into(), "a document".into());
        }
        if self.chance(20) {
            let list = json!({"type": "object", "properties": {"value": schema, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["value"], "additionalProperties": false});
            return json!({"$defs": {"node": list}, "$ref": "#/$defs/node"});
        }
        schema
    }

    fn schema(&mut self, depth: usize) -> Value {
        let kinds = if depth == 0 { 7 } else { 12 };
        match self.below(kinds) {
            0 | 1 => self.string(),
            2 => self.integer(),
            3 => self.number(),
            4 => json!({"type": self.pick(&["boolean", "null"])}),
            5 => {
                let values =
                    [json!("red"), json!("gr\"een\n"), json!(7), json!(-1.5), json!(null), json!({"a": [1, "é"]})];
                match self.chance(50) {
                    true => json!({"const": self.pick(&values)}),
                    false => json!({"enum": [self.pick(&values), "ü", false]}),
                }
            }
            6 => json!({"type": ["string", "null"], "maxLength": 5}),
            7 | 8 => self.object(depth - 1),
            9 => self.array(depth - 1),
            10 => json!({"anyOf": [self.schema(depth - 1), self.object(depth - 1)]}),
            _ => match self.chance(50) {
                true => json!({"oneOf": [self.string(), self.integer(), {"type": "null"}]}),
                false => json!({"allOf": [
                    {"type": "object", "properties": {"a": self.schema(0)}, "required": ["a"]},
                    {"type": "object", "properties": {"b": self.schema(depth - 1)}, "required": ["b"]},
                ]}),
            },
        }
    }

    fn string(&mut self) -> Value {
        match self.below(5) {
            0 => json!({"type": "string"}),
            1 => {
                let least = self.below(4);
                json!({"type": "string", "minLength": least, "maxLength": least + self.below(8)})
            }
            2 => {
                json!({"type": "string", "pattern": self.pick(&["^[A-Z][a-z]{2,5}$", "^\\d{3}-\\d{4}$", "^(a|b)*c$", "x+y"])})
            }
            3 => json!({"type": "string", "format": self.pick(&["ipv4", "uuid", "time", "email", "ipv6"])}),
            _ => json!({"type": "string", "minLength": 1, "pattern": "^[^0-9]*$", "maxLength": 12}),
        }
    }

    fn integer(&mut self) -> Value {
        let low = self.random.random_range(-1000..1000);
        match self.below(4) {
            0 => json!({"type": "integer", "minimum": low, "maximum": low + self.random.random_range(0..500)}),
            1 => json!({"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 20}),
            2 => json!({"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": self.pick(&[2, 5, 7, 25])}),
            _ => json!({"type": "integer", "minimum": -9_000_000_i64, "maximum": 9_000_000_i64}),
        }
    }

    fn number(&mut self) -> Value {
        let low = f64::from(self.random.random_range(-100..100)) / 8.0;
        match self.below(3) {
            0 => json!({"type": "number", "minimum": low, "maximum": low + 3.5}),
            1 => json!({"type": "number", "exclusiveMinimum": low, "maximum": low + 100.0}),
            _ => json!({"type": "number"}),
        }
    }

    fn object(&mut self, depth: usize) -> Value {
        let names = ["id", "name", "a b", "über", "q\"uote", "tags", "x/y", "Z", ""];
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for _ in 0..self.below(6) {
            let name = self.pick(&names);
            properties.insert(name.into(), self.schema(depth));
            if self.chance(60) && !required.contains(&name) {
                required.push(name);
            }
        }
        let mut object = json!({"type": "object", "properties": properties, "required": required});
        match self.below(4) {
            0 => object["additionalProperties"] = json!({"type": "integer", "minimum": 0, "maximum": 9}),
            1 => object["patternProperties"] = json!({"^p_[a-z]{1,3}$": {"type": "boolean"}}),
            _ => {}
        }
        if object.get("additionalProperties").is_none() && self.chance(80) {
            object["additionalProperties"] = json!(false);
        }
        object
    }

    fn array(&mut self, depth: usize) -> Value {
        let least = self.below(3);
        let mut array = json!({"type": "array", "items": self.schema(depth), "minItems": least});
        if self.chance(70) {
            array["maxItems"] = json!(least + self.below(4));
        }
        if self.chance(25) {
            array["prefixItems"] = json!([self.schema(0), {"type": "boolean"}]);
        }
        array
    }
}

#[test]
fn what_is_generated_under_random_schemas_is_valid_under_them() {
    let schemas = std::env::var("CANDLEWICK_RANDOM_SCHEMAS").ok().and_then(|n| n.parse().ok()).unwrap_or(SCHEMAS);
    let loaded = demo();
    let vocab = Vocabulary { tokenizer: loaded.text.tokenizer.expect("a tokenizer"), size: loaded.info.vocab_size };
    let compiler = Compiler::new(&vocabulary(&vocab.tokenizer, vocab.size)).expect("a vocabulary");
    let (mut complete, mut cut, mut refused) = (0, 0, Vec::new());
    for seed in 0..schemas {
        let schema = Schemas { random: SmallRng::seed_from_u64(seed) }.document();
        let grammar = match compiler.compile(&Constraint::Json(schema.to_string()).into()) {
            Ok(grammar) => grammar,
            Err(error) => {
                refused.push(format!("{error}"));
                continue;
            }
        };
        let Some(text) = random_text(&vocab.tokenizer, &grammar, vocab.size, seed, MAX_TOKENS) else {
            cut += 1;
            continue;
        };
        let shown = || format!("seed {seed}\n{schema}\n{text:?}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {}", shown()));
        check(&value, &schema).unwrap_or_else(|error| panic!("{error}: {}", shown()));
        complete += 1;
    }
    println!("{schemas} schemas: {complete} texts valid, {cut} cut at {MAX_TOKENS} tokens, {} refused", refused.len());
    refused.sort();
    refused.dedup();
    refused.iter().for_each(|why| println!("refused: {why}"));
    assert!(complete * 10 >= schemas * 8, "{complete} of {schemas} came to an end: too few to show anything");
}
