//! JSON read one character at a time: a string as it decodes, and a value of any kind as it was written.

/// What a character of a string brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StringStep {
    /// Nothing yet.
    More,
    /// A character of the text.
    Char(char),
    /// The closing quote.
    End,
    /// This is no JSON string.
    Bad,
}

/// Decodes a string, from behind its opening quote. Line breaks inside are taken as they are: models write them.
#[derive(Default)]
pub(super) struct JsonString {
    escaped: bool,
    /// Hexadecimal digits that are still to come, and their value so far.
    hex: Option<(u8, u32)>,
    /// The first half of a surrogate pair.
    high: Option<u32>,
}

impl JsonString {
    pub(super) fn push(&mut self, c: char) -> StringStep {
        if let Some((left, value)) = self.hex {
            let Some(digit) = c.to_digit(16) else { return StringStep::Bad };
            let value = value * 16 + digit;
            self.hex = (left > 1).then_some((left - 1, value));
            return if left > 1 { StringStep::More } else { self.unit(value) };
        }
        if self.escaped {
            self.escaped = false;
            let plain = match c {
                'u' => {
                    self.hex = Some((4, 0));
                    return StringStep::More;
                }
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'b' => '\u{8}',
                'f' => '\u{c}',
                '"' | '\\' | '/' => c,
                _ => return StringStep::Bad,
            };
            return StringStep::Char(plain);
        }
        match c {
            '\\' => {
                self.escaped = true;
                StringStep::More
            }
            '"' => StringStep::End,
            c => StringStep::Char(c),
        }
    }

    /// A unit of UTF-16; half a pair without the other is U+FFFD.
    fn unit(&mut self, unit: u32) -> StringStep {
        if let Some(high) = self.high.take() {
            let joined = 0x10000 + ((high - 0xd800) << 10) + unit.wrapping_sub(0xdc00);
            let fits = (0xdc00..0xe000).contains(&unit);
            return StringStep::Char(char::from_u32(joined).filter(|_| fits).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        if (0xd800..0xdc00).contains(&unit) {
            self.high = Some(unit);
            return StringStep::More;
        }
        StringStep::Char(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
    }
}

/// Adds `c` as it stands in a JSON string.
pub(super) fn escape(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
        c => out.push(c),
    }
}

/// `text` as a JSON string, quotes and all.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    text.chars().for_each(|c| escape(c, &mut out));
    out.push('"');
    out
}

/// What a character of a value brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueStep {
    /// The value goes on.
    More,
    /// It ends with this character.
    End,
    /// It ended before this character, which is not part of it.
    EndBefore,
    /// This is no JSON.
    Bad,
}

/// Deepest nesting that is followed.
const MAX_DEPTH: usize = 128;

/// Follows a value of any kind to its end, and hands it on as it was written, less what JSON does not allow in strings:
/// line breaks and other control characters are escaped.
#[derive(Default)]
pub(super) struct JsonValue {
    /// The brackets that are open, as those that close them.
    open: Vec<char>,
    in_string: bool,
    escaped: bool,
    begun: bool,
}

impl JsonValue {
    /// Takes a character and adds to `out` what is to be handed on for it.
    pub(super) fn push(&mut self, c: char, out: &mut String) -> ValueStep {
        if self.in_string {
            return self.in_string(c, out);
        }
        let outermost = self.open.is_empty();
        match c {
            '{' | '[' if !outermost || !self.begun => {
                if self.open.len() == MAX_DEPTH {
                    return ValueStep::Bad;
                }
                self.open.push(if c == '{' { '}' } else { ']' });
            }
            '}' | ']' if !outermost => {
                if self.open.pop() != Some(c) {
                    return ValueStep::Bad;
                }
                out.push(c);
                return if self.open.is_empty() { ValueStep::End } else { ValueStep::More };
            }
            '"' if !outermost || !self.begun => self.in_string = true,
            c if outermost && self.begun && (c.is_whitespace() || ",}]".contains(c)) => return ValueStep::EndBefore,
            c if c.is_ascii_alphanumeric() || "+-.".contains(c) => {}
            c if !outermost && (c.is_whitespace() || ",:".contains(c)) => {}
            _ => return ValueStep::Bad,
        }
        self.begun = true;
        out.push(c);
        ValueStep::More
    }

    fn in_string(&mut self, c: char, out: &mut String) -> ValueStep {
        if self.escaped {
            self.escaped = false;
            out.push(c);
            return ValueStep::More;
        }
        match c {
            '\\' => self.escaped = true,
            '"' => {
                self.in_string = false;
                out.push(c);
                return if self.open.is_empty() { ValueStep::End } else { ValueStep::More };
            }
            c if c.is_control() => {
                escape(c, out);
                return ValueStep::More;
            }
            _ => {}
        }
        out.push(c);
        ValueStep::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_decode_as_json_says() {
        for text in ["", "a\"b\\c/", "\n\t\r\u{8}\u{c}", "é🦙", "\u{1}"] {
            let json = serde_json::to_string(text).unwrap();
            let mut string = JsonString::default();
            let mut out = String::new();
            let mut ended = false;
            for c in json[1..].chars() {
                match string.push(c) {
                    StringStep::Char(c) => out.push(c),
                    StringStep::End => ended = true,
                    step => assert_eq!(step, StringStep::More),
                }
            }
            assert!(ended);
            assert_eq!(out, text);
            assert_eq!(serde_json::from_str::<String>(&quoted(text)).unwrap(), text);
        }
        let mut pair = JsonString::default();
        let steps: Vec<_> = r"\ud83e\udd99\ud83eX".chars().map(|c| pair.push(c)).collect();
        assert!(steps.contains(&StringStep::Char('🦙')));
    }

    #[test]
    fn values_end_where_they_end() {
        for (text, want, rest) in [
            (r#"{"a": [1, "}"]} x"#, r#"{"a": [1, "}"]}"#, " x"),
            ("12, 3", "12", ", 3"),
            (r#""a\"b" }"#, r#""a\"b""#, " }"),
            ("null}", "null", "}"),
            ("{\"a\": \"x\ny\"}", "{\"a\": \"x\\ny\"}", ""),
        ] {
            let mut value = JsonValue::default();
            let mut out = String::new();
            let mut left = text;
            for (at, c) in text.char_indices() {
                match value.push(c, &mut out) {
                    ValueStep::More => continue,
                    ValueStep::End => left = &text[at + c.len_utf8()..],
                    ValueStep::EndBefore => left = &text[at..],
                    ValueStep::Bad => panic!("{text}"),
                }
                break;
            }
            assert_eq!((out.as_str(), left), (want, rest), "{text}");
        }
    }

    #[test]
    fn what_is_no_value_is_said_at_once() {
        for text in ["]", "{]", "}", ",", "{<", &"[".repeat(MAX_DEPTH + 1)] {
            let mut value = JsonValue::default();
            let last = text.chars().map(|c| value.push(c, &mut String::new())).last();
            assert_eq!(last, Some(ValueStep::Bad), "{text}");
        }
    }
}
