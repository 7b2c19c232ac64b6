//! EBNF as GBNF writes it (`root ::= "a" | [b-c]+`) to Lark.
//!
//! The notation: rules `name ::= alternatives` that go on until the next rule begins, `"literals"`, `[classes]`, `.`,
//! groups, `* + ? {m,n}`, comments from `#` to the end of the line; `root` is where a text begins.

use crate::error::{Error, Result};

/// Whether a grammar defines its rules with `::=`, which Lark does not: a line begins with a name, or none, and that. In
/// the middle of a line it may stand in a literal of any grammar.
pub(super) fn is_ebnf(grammar: &str) -> bool {
    let defines = |line: &str| line.trim_start().trim_start_matches(is_part_of_name).trim_start().starts_with("::=");
    grammar.lines().any(defines)
}

/// Whether a character may stand in a rule's name.
fn is_part_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// The same grammar in Lark.
///
/// # Errors
/// `InvalidArgument` for `field`, with the line.
pub(super) fn to_lark(field: &str, grammar: &str) -> Result<String> {
    let tokens = tokenize(field, grammar)?;
    let mut lark = String::new();
    let mut has_root = false;
    for (k, (line, token)) in tokens.iter().enumerate() {
        let defines = matches!(tokens.get(k + 1), Some((_, Token::Defines)));
        match token {
            Token::Name(name) if defines => {
                has_root |= name == "root";
                lark += &format!("\n{}:", rule(name));
            }
            Token::Name(name) => lark += &format!(" {}", rule(name)),
            Token::Defines if k > 0 && matches!(tokens[k - 1].1, Token::Name(_)) => {}
            Token::Defines => return Err(Error::invalid(field, format!("line {line}: ::= without a name before it"))),
            Token::Literal(text) if text == "\"\"" => lark += " (\"\")?",
            Token::Literal(text) => lark += &format!(" {text}"),
            Token::Class(class) => lark += &format!(" /{class}/"),
            Token::Suffix(suffix) => lark += suffix,
            Token::Punctuation(c) => lark += &format!(" {c}"),
        }
    }
    if !has_root {
        return Err(Error::invalid(field, "defines no rule \"root\""));
    }
    lark.push('\n');
    Ok(lark)
}

/// A rule's name in Lark, where only lower case names a rule; no two names become one.
fn rule(name: &str) -> String {
    if name == "root" {
        return "start".into();
    }
    let spelled = name.chars().map(|c| match c {
        'a'..='y' | '0'..='9' | '_' => c.to_string(),
        'z' => "zz".into(),
        '-' => "zh".into(),
        upper => format!("zu{}", upper.to_ascii_lowercase()),
    });
    format!("r_{}", spelled.collect::<String>())
}

enum Token {
    Name(String),
    Defines,
    /// With its quotes.
    Literal(String),
    /// A regular expression for one character.
    Class(String),
    Suffix(String),
    Punctuation(char),
}

/// The tokens, each with its line.
fn tokenize(field: &str, grammar: &str) -> Result<Vec<(usize, Token)>> {
    let mut tokens = Vec::new();
    for (k, text) in grammar.lines().enumerate() {
        let line = k + 1;
        let refuse = |why: String| Err(Error::invalid(field, format!("line {line}: {why}")));
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let (token, len) = match first {
                '#' => break,
                ':' if rest.starts_with("::=") => (Token::Defines, 3),
                '"' => match quoted_end(rest, '"') {
                    Some(end) => (Token::Literal(rest[..end].to_owned()), end),
                    None => return refuse("a literal does not end".into()),
                },
                '[' => match quoted_end(rest, ']') {
                    Some(end) => (Token::Class(rest[..end].replace('/', "\\/")), end),
                    None => return refuse("a class does not end".into()),
                },
                '.' => (Token::Class("(.|\\n)".into()), 1),
                '*' | '+' | '?' => (Token::Suffix(first.into()), 1),
                '{' => match rest.find('}') {
                    Some(end) => (Token::Suffix(rest[..=end].to_owned()), end + 1),
                    None => return refuse("a number of repetitions does not end".into()),
                },
                '(' | ')' | '|' => (Token::Punctuation(first), 1),
                c if c.is_ascii_alphanumeric() || c == '_' => {
                    let len = rest.find(|c| !is_part_of_name(c)).unwrap_or(rest.len());
                    (Token::Name(rest[..len].to_owned()), len)
                }
                other => return refuse(format!("{other:?} is not expected here")),
            };
            tokens.push((line, token));
            rest = rest[len..].trim_start();
        }
    }
    Ok(tokens)
}

/// Where what the first character opens is closed, past the closing character.
fn quoted_end(text: &str, close: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().skip(1).find_map(|(at, c)| {
        let closes = c == close && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_larks() {
        let grammar = "root ::= a-b \"x\" | [0-9/]+ # digits\n  | (A)?\na-b ::= . {2,3}\nA ::= \"\"";
        let lark = to_lark("f", grammar).unwrap();
        assert_eq!(lark, "\nstart: r_azhb \"x\" | /[0-9\\/]/+ | ( r_zua )?\nr_azhb: /(.|\\n)/{2,3}\nr_zua: (\"\")?\n");
        assert!(is_ebnf(grammar) && !is_ebnf("start: \"a\""));
        assert!(is_ebnf("# a list\n  root  ::= \"a\"") && is_ebnf("root\n ::= \"a\""));
        assert!(!is_ebnf("start: \"a ::= b\" // x ::= y"));
    }

    #[test]
    fn names_stay_different() {
        let names = ["a-b", "a_b", "aB", "ab", "azhb", "AB", "zu"];
        let ruled: std::collections::HashSet<_> = names.iter().map(|name| rule(name)).collect();
        assert_eq!(ruled.len(), names.len());
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_line() {
        for (grammar, why) in [
            ("root ::= \"a\nx ::= y", "line 1: a literal"),
            ("root ::= a\n [b", "line 2: a class"),
            ("root ::= %", "line 1: '%'"),
            ("::= a", "line 1: ::= without"),
            ("a ::= \"b\"", "no rule \"root\""),
        ] {
            let message = to_lark("f", grammar).unwrap_err().message;
            assert!(message.contains(why), "{grammar}: {message}");
        }
    }
}
