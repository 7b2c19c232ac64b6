//! JSON as Python's `json.dumps` writes it, for the `tojson` filter of chat templates.
//!
//! Models were trained on that exact text: a space after `:` and `,` on one line, indented lines without trailing
//! spaces, characters outside ASCII and `<`, `>`, `&` as they are. Jinja's own `tojson` escapes for HTML.

use std::io;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Deepest indentation that a template may ask for, in spaces a level.
const MAX_INDENT: usize = 64;

/// The `tojson` filter: `value | tojson(indent=…, separators=…, sort_keys=…, ensure_ascii=…)`.
pub(super) fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let wrong = |what: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
    if value.is_undefined() {
        return Err(wrong("the value is undefined".to_owned()));
    }
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|value| !value.is_none() && !value.is_undefined()) {
        None => None,
        Some(value) => match (value.as_str(), value.as_usize()) {
            (Some(text), _) if text.len() <= MAX_INDENT => Some(text.to_owned()),
            (_, Some(spaces)) if spaces <= MAX_INDENT => Some(" ".repeat(spaces)),
            _ => return Err(wrong(format!("indent is {value}, must be at most {MAX_INDENT} spaces"))),
        },
    };
    let (mut item, mut key) =
        if indent.is_some() { (",".to_owned(), ": ".to_owned()) } else { (", ".to_owned(), ": ".to_owned()) };
    if let Some(separators) = options.get::<Option<Value>>("separators")?.filter(|value| value.kind() == ValueKind::Seq)
    {
        let texts: Vec<String> = separators.try_iter()?.map(|value| value.to_string()).collect();
        match <[String; 2]>::try_from(texts) {
            Ok(two) => [item, key] = two,
            Err(texts) => return Err(wrong(format!("separators has {} entries, must have 2", texts.len()))),
        }
    }
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    options.assert_all_used()?;

    let mut json = serde_json::to_value(value).map_err(|error| wrong(error.to_string()))?;
    if sort_keys {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    let formatter =
        Python { indent: indent.as_deref(), item: &item, key: &key, ensure_ascii, level: 0, has_value: false };
    json.serialize(&mut Serializer::with_formatter(&mut bytes, formatter)).map_err(|error| wrong(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| wrong(error.to_string()))
}

struct Python<'a> {
    /// Of one level; all on one line without.
    indent: Option<&'a str>,
    item: &'a str,
    key: &'a str,
    ensure_ascii: bool,
    level: usize,
    /// The list or object that is being written has an entry: its end goes on a line of its own.
    has_value: bool,
}

impl Python<'_> {
    fn new_line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        out.write_all(b"\n")?;
        (0..self.level).try_for_each(|_| out.write_all(indent.as_bytes()))
    }

    fn begin<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level += 1;
        self.has_value = false;
        out.write_all(bracket)
    }

    fn end<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if self.has_value {
            self.new_line(out)?;
        }
        self.has_value = true;
        out.write_all(bracket)
    }

    fn entry<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.new_line(out)
    }
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.entry(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.entry(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ensure_ascii {
            return out.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if c.is_ascii() {
                out.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context, value::Serde};

    fn render(filter: &str) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", super::tojson);
        let value: serde_json::Value = serde_json::from_str(
            r#"{"b": ["é<&>'", {}, []], "a": {"x": null, "y": [1, 2.5, true]}, "t": "\n\u001f\"\\"}"#,
        )
        .unwrap();
        environment.render_str(&format!("{{{{ value | {filter} }}}}"), context! { value => Serde(value) }).unwrap()
    }

    // The expected texts are what Python 3's json.dumps gives.
    #[test]
    fn one_line_is_spaced_as_python_spaces_it() {
        let text = r#"{"b": ["é<&>'", {}, []], "a": {"x": null, "y": [1, 2.5, true]}, "t": "\n\u001f\"\\"}"#;
        assert_eq!(render("tojson"), text);
        assert_eq!(render("tojson(ensure_ascii=false)"), text);
        let text = r#"{"a":{"x":null,"y":[1,2.5,true]},"b":["\u00e9<&>'",{},[]],"t":"\n\u001f\"\\"}"#;
        assert_eq!(render("tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true)"), text);
    }

    #[test]
    fn lines_are_indented_as_python_indents_them() {
        let text = "{\n  \"b\": [\n    \"é<&>'\",\n    {},\n    []\n  ],\n  \"a\": {\n    \"x\": null,\n    \"y\": [\n      1,\n      2.5,\n      true\n    ]\n  },\n  \"t\": \"\\n\\u001f\\\"\\\\\"\n}";
        assert_eq!(render("tojson(indent=2)"), text);
        assert_eq!(render("tojson(2)"), text);
    }
}
