//! What is written differently in a template's source before it is compiled, because minijinja has no word for it: training
//! marks, sums with texts that are marked safe, loops through nothing.

use minijinja::{Error, ErrorKind, Value};

/// Functions that take the place of what is rewritten: [`safe_sum`] and [`iterable`].
pub(super) const SAFE_SUM: &str = "candlewick_safe_sum";
pub(super) const ITERABLE: &str = "candlewick_iterable";

/// The source as minijinja is to have it.
pub(super) fn rewritten(source: &str) -> String {
    let source = with_tags(source, generation_tag);
    if source.contains("raw") && source.contains("endraw") {
        return source; // What looks like a tag may be text.
    }
    without_safe_sums(&with_tags(&source, with_checked_loop))
}

/// The source with other tags, where `write` has another for one.
fn with_tags(source: &str, write: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        out.push_str(before);
        match write(tag) {
            Some(written) => out.push_str(&written),
            None => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

/// Hugging Face marks the answers with `{% generation %}…{% endgeneration %}`, which matters in training only; a block
/// that always holds takes its place.
fn generation_tag(tag: &str) -> Option<String> {
    let word = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
    match word {
        "generation" => Some(tag.replace(word, "if true")),
        "endgeneration" => Some(tag.replace(word, "endif")),
        _ => None,
    }
}

/// In Jinja a text that went through `safe` is of a kind of its own: what is added to it is escaped as in HTML, though
/// nothing else is in a chat template. Models were trained on that, so `{{ 'a'|safe + b }}` becomes a call of
/// [`safe_sum`]; sums that stand beside other operators stay as they are.
fn without_safe_sums(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{{") {
        let (before, expression) = rest.split_at(start);
        out.push_str(before);
        // A template's text has no closing braces in strings but where they are part of the text that it shows; then
        // the parts do not add up to terms, and all stays as it is.
        let end = expression.find("}}").map_or(expression.len(), |end| end + 2);
        let (expression, after) = expression.split_at(end);
        let inner = expression.trim_start_matches("{{").trim_end_matches("}}");
        let bare = inner.trim_start_matches(['-', '+']).trim_end_matches('-');
        match terms(bare).filter(|terms| terms.len() > 1 && terms.iter().any(|term| is_safe(term))) {
            Some(terms) => out.push_str(&expression.replace(bare, &format!(" {SAFE_SUM}({}) ", terms.join(", ")))),
            None => out.push_str(expression),
        }
        rest = after;
    }
    out + rest
}

/// Whether a term ends with the filter `safe`.
fn is_safe(term: &str) -> bool {
    term.rsplit_once('|').is_some_and(|(_, filter)| filter.trim() == "safe")
}

/// What stands between the plus signs of an expression that is nothing but a sum.
fn terms(expression: &str) -> Option<Vec<&str>> {
    const OPERATORS: [&str; 7] = ["if", "else", "and", "or", "not", "in", "is"];
    let (mut terms, mut from) = (Vec::new(), 0);
    for (at, part) in outermost(expression)? {
        match part {
            "+" => {
                terms.push(expression[from..at].trim());
                from = at + 1;
            }
            "~" | "-" | "*" | "/" | "%" | "<" | ">" | "=" | "!" | "," => return None,
            word if OPERATORS.contains(&word) => return None,
            _ => {}
        }
    }
    terms.push(expression[from..].trim());
    (!terms.iter().any(|term| term.is_empty())).then_some(terms)
}

/// Words and signs outside strings and brackets, and where they stand; none where these are not closed.
fn outermost(expression: &str) -> Option<Vec<(usize, &str)>> {
    let (mut parts, mut depth, mut quote, mut escaped, mut word) = (Vec::new(), 0_usize, None, false, None);
    for (at, c) in expression.char_indices().chain([(expression.len(), ' ')]) {
        if let Some(end) = quote {
            quote = Some(end).filter(|&end| c != end || escaped);
            escaped = c == '\\' && !escaped;
            continue;
        }
        if c.is_alphanumeric() || c == '_' {
            word.get_or_insert(at);
            continue;
        }
        if let Some(start) = word.take().filter(|_| depth == 0) {
            parts.push((start, &expression[start..at]));
        }
        match c {
            '"' | '\'' => (quote, escaped) = (Some(c), false),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            c if depth == 0 && !c.is_whitespace() => parts.push((at, &expression[at..at + c.len_utf8()])),
            _ => {}
        }
    }
    (depth == 0 && quote.is_none()).then_some(parts)
}

/// Python goes through nothing but what can be gone through; minijinja takes none for an empty list. So what a loop goes
/// through is looked at first, by [`iterable`].
fn with_checked_loop(tag: &str) -> Option<String> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let inner = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
    let parts = outermost(inner)?;
    if parts.first()?.1 != "for" {
        return None;
    }
    let (start, _) = *parts.iter().find(|(_, part)| *part == "in")?;
    let start = start + "in".len();
    let mut behind = parts.iter().filter(|(at, part)| *at > start && ["if", "recursive"].contains(part));
    let end = behind.next().map_or(inner.len(), |(at, _)| *at);
    let checked = format!("{} {ITERABLE}(({})) {}", &inner[..start], inner[start..end].trim(), &inner[end..]);
    Some(tag.replace(inner, &checked))
}

/// What a loop goes through, unless it is none.
pub(super) fn iterable(value: Value) -> Result<Value, Error> {
    match value.is_none() {
        true => Err(Error::new(ErrorKind::InvalidOperation, "'NoneType' object is not iterable")),
        false => Ok(value),
    }
}

/// The sum of texts from left to right: beside a safe one the other is escaped, and both are safe then.
pub(super) fn safe_sum(terms: minijinja::value::Rest<Value>) -> Result<Value, Error> {
    let wrong = |value: &Value| {
        let why = format!("can only concatenate str (not {:?}) to str", value.kind().to_string());
        Error::new(ErrorKind::InvalidOperation, why)
    };
    let (mut sum, mut safe) = (String::new(), false);
    for (k, term) in terms.0.iter().enumerate() {
        let text = term.as_str().ok_or_else(|| wrong(term))?;
        match (safe, term.is_safe()) {
            (false, true) if k > 0 => sum = escaped(&sum) + text,
            (true, false) => sum += &escaped(text),
            _ => sum += text,
        }
        safe |= term.is_safe();
    }
    Ok(if safe { Value::from_safe_string(sum) } else { Value::from(sum) })
}

/// As Python's markupsafe escapes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_with_safe_texts_and_nothing_else_become_calls() {
        let sum = format!("{{{{- {SAFE_SUM}('a + '|safe, t[\"b\"] | tojson()) -}}}}");
        assert_eq!(without_safe_sums("x {{- 'a + '|safe + t[\"b\"] | tojson() -}} y"), format!("x {sum} y"));
        for source in [
            "{{ 'a' + b }}",
            "{{ a | safe }}",
            "{{ '<' ~ (a | tojson | safe) ~ '>' }}",
            "{{ a|safe + b if c else d }}",
            "{{ a|safe + b == c }}",
            "{% set x = a|safe + b %}",
            "{{ f(a|safe + b) }}",
            "{{ '}}' + a|safe }}",
            "{{ a|safe + ",
            "{{ a|safe + 'it\\'s }}",
        ] {
            assert_eq!(without_safe_sums(source), source);
        }
    }

    #[test]
    fn what_a_loop_goes_through_is_looked_at() {
        let source = "{%- for a, b in f(x, 'in if') if a in b recursive -%}{% endfor %}{% if a in b %}{% endif %}";
        let checked = format!(
            "{{%- for a, b in {ITERABLE}((f(x, 'in if'))) if a in b recursive -%}}{{% endfor %}}{{% if a in b %}}{{% endif %}}"
        );
        assert_eq!(rewritten(source), checked);
        assert_eq!(rewritten("{% raw %}{% for a in b %}{% endraw %}"), "{% raw %}{% for a in b %}{% endraw %}");
        let render = |source: &str| {
            let mut environment = minijinja::Environment::new();
            environment.add_function(ITERABLE, iterable);
            environment.render_str(
                &rewritten(source),
                minijinja::context! { none => (), list => [1, 2], map => minijinja::context! { k => 3 } },
            )
        };
        assert_eq!(render("{% for x in list if x > 1 %}{{ x }}{{ loop.last }}{% endfor %}").unwrap(), "2True");
        assert_eq!(render("{% for k, v in map | items if v %}{{ k }}{% endfor %}").unwrap(), "k");
        assert_eq!(render("{% for x in 1, 2 %}{{ x }}{% endfor %}{% for x in nowhere %}{% endfor %}").unwrap(), "12");
        let error = render("{% for x in none %}{% endfor %}").unwrap_err();
        assert!(error.to_string().contains("'NoneType' object is not iterable"), "{error}");
    }

    #[test]
    fn what_is_added_to_a_safe_text_is_escaped() {
        let render = |source: &str| {
            let mut environment = minijinja::Environment::new();
            environment.add_function(SAFE_SUM, safe_sum);
            environment.render_str(&without_safe_sums(source), minijinja::context! { q => "<'\"&>", n => 1 })
        };
        // As Jinja2 3.1 renders them.
        for (source, expected) in [
            ("{{ '<'|safe + q + '>' }}", "<&lt;&#39;&#34;&amp;&gt;&gt;"),
            ("{{ q + '<'|safe + '>'|safe }}", "&lt;&#39;&#34;&amp;&gt;<>"),
            ("{{ '<'|safe + '<'|safe }}", "<<"),
            ("{{ '<' + q }}", "<<'\"&>"),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
        assert!(render("{{ '<'|safe + n }}").is_err());
    }
}
