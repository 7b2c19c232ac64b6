//! [`Pattern`]: the regular expressions that cut a text before its pieces are encoded, in linear time.
//!
//! Nearly all of them are plain but for one look-ahead, `\s+(?!\S)`: a run of spaces less the last one where a word
//! follows. A backtracking engine takes a step for each of those spaces and gives up after a million, so the expression is
//! cut at its alternatives instead: the plain ones go to an automaton, and what the automaton found for `\s+` is
//! shortened by its last character where the look-ahead would have refused it. Whatever has other look-arounds is run by
//! backtracking, and only on short texts.

use regex_automata::{Anchored, Input, meta};

/// Most bytes of text for an expression that needs backtracking.
pub(super) const MAX_BACKTRACKING_TEXT_BYTES: usize = 256 << 10;

/// Most bytes of memory for one automaton: a hostile file could ask for any size.
const MAX_AUTOMATON_BYTES: usize = 16 << 20;

/// Alternatives with possessive quantifiers, and what they match without: nothing that follows could begin with what the
/// quantifier took, so there is nothing to give back.
const POSSESSIVE: &[(&str, &str)] = &[
    (r"[^\r\n\p{L}\p{N}]?+\p{L}++", r"[^\r\n\p{L}\p{N}]?\p{L}+"),
    (r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+"),
    (r"\p{N}{1,3}+", r"\p{N}{1,3}"),
    (r" ?[^\s\p{L}\p{N}]++[\r\n]*+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"),
    (r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n]*"),
    (r" ?[^\s\p{L}\p{N}]++", r" ?[^\s\p{L}\p{N}]+"),
    (r" ?\p{L}++", r" ?\p{L}+"),
    (r" ?\p{N}++", r" ?\p{N}+"),
    (r"\s++$", r"\s+$"),
];

/// Numbers cut into groups of three digits from their end: the two ways in which it is written.
const DIGIT_GROUPS: &[(&str, DigitGroups)] = &[
    (r"(?=(\d{3})+(?!\d))", DigitGroups { zero_width: true }),
    (r"\d{1,3}(?=(?:\d{3})*\b)", DigitGroups { zero_width: false }),
];

/// A compiled expression.
pub(super) enum Pattern {
    Linear(Alternatives),
    Digits(DigitGroups),
    Backtracking(Box<fancy_regex::Regex>),
}

/// An expression without look-arounds but those before spaces.
pub(super) struct Alternatives {
    rules: Vec<Rule>,
    /// `tails[k]` finds what the rules from `k` on match, each as a pattern of its own.
    tails: Vec<Option<meta::Regex>>,
}

/// One or more neighbouring alternatives.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    regex: String,
    /// `(?!\S)` follows, and so many characters must be left.
    before_space: Option<usize>,
}

/// Groups of three digits from the end of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DigitGroups {
    /// Matches the empty places between groups, not the groups; and numbers end where digits end. Otherwise a number is
    /// cut only where a word ends with it.
    zero_width: bool,
}

impl Pattern {
    /// Compiles an expression as the `tokenizers` crate or tiktoken writes it.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn new(expression: &str) -> Result<Self, String> {
        if let Some((_, groups)) = DIGIT_GROUPS.iter().find(|(written, _)| *written == expression) {
            return Ok(Self::Digits(*groups));
        }
        if let Some(rules) = rules_of(expression) {
            return Alternatives::new(rules).map(Self::Linear);
        }
        let regex = fancy_regex::RegexBuilder::new(expression).delegate_size_limit(MAX_AUTOMATON_BYTES).build();
        regex.map(|regex| Self::Backtracking(Box::new(regex))).map_err(|error| error.to_string())
    }

    /// Whether it may only see texts of up to [`MAX_BACKTRACKING_TEXT_BYTES`].
    pub(super) fn backtracks(&self) -> bool {
        matches!(self, Self::Backtracking(_))
    }

    /// Where it matches, in order; none overlap, an empty one counts unless another ended there.
    ///
    /// # Errors
    /// Where backtracking takes more steps than it may.
    pub(super) fn matches(&self, text: &str) -> Result<Vec<(usize, usize)>, String> {
        match self {
            Self::Linear(alternatives) => Ok(alternatives.matches(text)),
            Self::Digits(groups) => Ok(groups.matches(text)),
            Self::Backtracking(regex) if text.len() <= MAX_BACKTRACKING_TEXT_BYTES => regex
                .find_iter(text)
                .map(|found| found.map(|m| (m.start(), m.end())).map_err(|error| error.to_string()))
                .collect(),
            Self::Backtracking(_) => Err(format!(
                "its pattern needs backtracking, which is limited to texts of {MAX_BACKTRACKING_TEXT_BYTES} bytes"
            )),
        }
    }

    /// The matches and what lies between them, the whole text in order.
    ///
    /// # Errors
    /// As [`Pattern::matches`].
    pub(super) fn pieces(&self, text: &str) -> Result<Vec<(usize, usize, bool)>, String> {
        let mut pieces = Vec::new();
        let mut end = 0;
        for (start, next) in self.matches(text)? {
            if end < start {
                pieces.push((end, start, false));
            }
            pieces.push((start, next, true));
            end = next;
        }
        if end < text.len() || text.is_empty() {
            pieces.push((end, text.len(), false));
        }
        Ok(pieces)
    }
}

impl Alternatives {
    fn new(rules: Vec<Rule>) -> Result<Self, String> {
        let config = meta::Config::new().nfa_size_limit(Some(MAX_AUTOMATON_BYTES)).hybrid_cache_capacity(4 << 20);
        let compile = |rules: &[Rule]| {
            let regexes: Vec<&str> = rules.iter().map(|rule| rule.regex.as_str()).collect();
            let built = meta::Builder::new().configure(config.clone()).build_many(&regexes);
            built.map_err(|error| match error.syntax_error() {
                // The last of several lines says what is wrong; those before show where.
                Some(syntax) => syntax.to_string().lines().last().unwrap_or_default().to_owned(),
                None => error.to_string(),
            })
        };
        // What comes behind a rule is asked for only where the rule may refuse what it found.
        let asked = |k: usize| k == 0 || rules[k - 1].before_space.is_some();
        let tails = (0..rules.len()).map(|k| asked(k).then(|| compile(&rules[k..])).transpose());
        Ok(Self { tails: tails.collect::<Result<_, _>>()?, rules })
    }

    fn matches(&self, text: &str) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        let mut at = 0;
        let mut last_end = None;
        while let Some((start, end)) = self.next(text, at) {
            let is_empty = start == end;
            if !is_empty || last_end != Some(end) {
                found.push((start, end));
                last_end = Some(end);
            }
            at = if is_empty { next_char(text, end) } else { end };
            if at > text.len() {
                break;
            }
        }
        found
    }

    /// The first match that begins at `at` or behind it.
    fn next(&self, text: &str, mut at: usize) -> Option<(usize, usize)> {
        while at <= text.len() {
            let mut input = Input::new(text).range(at..);
            let mut first_rule = 0;
            let mut start = at;
            while let Some(found) = self.tails.get(first_rule)?.as_ref()?.find(input.clone()) {
                start = found.start();
                let rule = first_rule + found.pattern().as_usize();
                match self.rules[rule].before_space {
                    None => return Some((start, found.end())),
                    Some(least) => {
                        if let Some(end) = before_space(text, start, found.end(), least) {
                            return Some((start, end));
                        }
                    }
                }
                // The rules behind it have their turn at the same place.
                first_rule = rule + 1;
                input = Input::new(text).range(start..).anchored(Anchored::Yes);
                if first_rule == self.rules.len() {
                    break;
                }
            }
            if first_rule == 0 {
                return None;
            }
            at = next_char(text, start);
        }
        None
    }
}

/// Where a greedy run of spaces from `start` to `end` ends under `(?!\S)`: as it is at the end of the text and before
/// another space, else a character earlier, if `least` are left.
fn before_space(text: &str, start: usize, end: usize, least: usize) -> Option<usize> {
    if text[end..].chars().next().is_none_or(char::is_whitespace) {
        return Some(end);
    }
    let last = text[start..end].chars().next_back()?;
    let shorter = end - last.len_utf8();
    // Only as many as are asked for: a run may be long.
    (text[start..shorter].chars().take(least).count() == least).then_some(shorter)
}

fn next_char(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}

impl DigitGroups {
    fn matches(self, text: &str) -> Vec<(usize, usize)> {
        let is_digit = |c: char| {
            // `\d` is Nd, of which the standard library only knows that it is numeric: ask the class itself for others.
            c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric() && is_decimal(c))
        };
        let mut found = Vec::new();
        let mut run: Vec<usize> = Vec::new();
        let mut close = |run: &mut Vec<usize>, end: usize, word_goes_on: bool| {
            let digits = run.len();
            let cuts = (0..digits).filter(|n| (digits - n).is_multiple_of(3));
            if self.zero_width {
                found.extend(cuts.map(|n| (run[n], run[n])));
            } else if digits > 0 && !word_goes_on {
                let starts: Vec<usize> = std::iter::once(0).chain(cuts.filter(|&n| n > 0)).map(|n| run[n]).collect();
                let ends = starts.iter().skip(1).copied().chain([end]);
                found.extend(starts.iter().copied().zip(ends));
            }
            run.clear();
        };
        for (at, c) in text.char_indices() {
            if is_digit(c) {
                run.push(at);
            } else {
                close(&mut run, at, is_word(c));
            }
        }
        close(&mut run, text.len(), false);
        found
    }
}

/// Whether a character is a decimal digit (general category Nd).
fn is_decimal(c: char) -> bool {
    in_class(r"\d", c)
}

/// Whether a character belongs to a word, as `\b` sees it.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || (!c.is_ascii() && in_class(r"\w", c))
}

fn in_class(class: &'static str, c: char) -> bool {
    use std::{collections::HashMap, sync::LazyLock};
    static CLASSES: LazyLock<HashMap<&str, Option<meta::Regex>>> =
        LazyLock::new(|| [r"\d", r"\w"].map(|class| (class, meta::Regex::new(class).ok())).into());
    let mut buffer = [0; 4];
    let text: &str = c.encode_utf8(&mut buffer);
    CLASSES.get(class).and_then(Option::as_ref).is_some_and(|regex| regex.is_match(text))
}

/// The rules of an expression; none where it needs backtracking.
fn rules_of(expression: &str) -> Option<Vec<Rule>> {
    let mut rules: Vec<Rule> = Vec::new();
    for alternative in alternatives(expression).unwrap_or_else(|| vec![expression]) {
        let plain =
            POSSESSIVE.iter().find(|(written, _)| *written == alternative).map_or(alternative, |(_, same)| same);
        let rule = match plain.strip_suffix(r"(?!\S)") {
            Some(run) => Rule { regex: run.to_owned(), before_space: Some(least_spaces(run)?) },
            None => Rule { regex: plain.to_owned(), before_space: None },
        };
        if needs_backtracking(&rule.regex) {
            return None;
        }
        match rules.last_mut() {
            Some(last) if last.before_space.is_none() && rule.before_space.is_none() => {
                last.regex = format!("{}|{}", last.regex, rule.regex);
            }
            _ => rules.push(rule),
        }
    }
    Some(rules)
}

/// The least count of a run of spaces (`\s+`, `\s{4}`, `\s{1,2}`); none for anything else.
fn least_spaces(run: &str) -> Option<usize> {
    match run.strip_prefix(r"\s")? {
        "+" => Some(1),
        count => {
            let count = count.strip_prefix('{')?.strip_suffix('}')?;
            count.split(',').next()?.parse().ok()
        }
    }
}

/// Look-around, atomic groups, possessive quantifiers and references: whatever an automaton cannot do, or would
/// silently read as something else.
fn needs_backtracking(regex: &str) -> bool {
    let bytes = regex.as_bytes();
    let mut in_class = 0_usize;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at + 1..];
        match byte {
            b'\\' => {
                if rest.first().is_some_and(|c| c.is_ascii_digit() || b"kKGghHRX".contains(c)) {
                    return true;
                }
                // The brace of `\p{L}` is no quantifier.
                let name = matches!(rest, [b'p' | b'P' | b'x' | b'u', b'{', ..]);
                at += if name { rest.iter().position(|&c| c == b'}').map_or(1, |end| end + 1) } else { 1 };
            }
            b'[' => in_class += 1,
            b']' => in_class = in_class.saturating_sub(1),
            _ if in_class > 0 => {}
            b'(' if [&b"?="[..], b"?!", b"?<=", b"?<!", b"?>"].iter().any(|look| rest.starts_with(look)) => {
                return true;
            }
            b'?' | b'*' | b'+' | b'}' if rest.first() == Some(&b'+') => return true,
            _ => {}
        }
        at += 1;
    }
    false
}

/// The alternatives of an expression; none where a flag at its beginning or a parenthesis too many would change what they
/// mean one by one.
fn alternatives(expression: &str) -> Option<Vec<&str>> {
    let (mut groups, mut classes) = (0_usize, 0_usize);
    let (mut found, mut start) = (Vec::new(), 0);
    let mut escaped = false;
    for (at, c) in expression.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => classes += 1,
            ']' if classes > 0 => classes -= 1,
            _ if classes > 0 => {}
            '(' => {
                // `(?i)` changes all that follows it.
                let flags = expression[at + 1..].strip_prefix('?').and_then(|rest| rest.split_once(')'));
                if flags.is_some_and(|(flags, _)| !flags.is_empty() && flags.bytes().all(|b| b.is_ascii_alphabetic())) {
                    return None;
                }
                groups += 1;
            }
            ')' => groups = groups.checked_sub(1)?,
            '|' if groups == 0 => {
                found.push(&expression[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&expression[start..]);
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    /// What an engine that backtracks finds.
    fn backtracked(expression: &str, text: &str) -> Vec<(usize, usize)> {
        let regex = fancy_regex::Regex::new(expression).unwrap();
        regex.find_iter(text).map(|found| found.map(|m| (m.start(), m.end())).unwrap()).collect()
    }

    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
    const SHORT_RUNS: &str = r"\p{L}+|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
    const MIDDLE: &str = r"\s+(?!\S)|a|b+|\s[1-9]|\s";

    #[test]
    fn all_matches_are_those_of_backtracking() {
        let digits = DIGIT_GROUPS.iter().map(|(written, _)| *written);
        let expressions = [GPT2, CL100K, SHORT_RUNS, MIDDLE, r"\s+(?!\S)", "a*", r"(?i)AB|\d", r" ?[^(\s|[.,!?])]+"];
        let mut rng = rand::rngs::SmallRng::seed_from_u64(8);
        for expression in expressions.into_iter().chain(digits) {
            let pattern = Pattern::new(expression).unwrap();
            assert!(!pattern.backtracks(), "{expression}");
            for _ in 0..3000 {
                let letters =
                    [' ', ' ', '\n', '\r', '\u{2003}', 'a', 'b', 'é', '1', '2', '٣', '½', '.', '\'', 's', '_', '🦙'];
                let text: String =
                    (0..rng.random_range(0..16)).map(|_| letters[rng.random_range(0..letters.len())]).collect();
                let found = pattern.matches(&text).unwrap();
                assert_eq!(found, backtracked(expression, &text), "{expression} in {text:?}");
            }
        }
    }

    #[test]
    fn other_look_arounds_backtrack_within_bounds() {
        for expression in [r"a(?=b)", r"(?<!a)b", r"(a)\1", r"(?>a+)b", "a++a", r"x|\S+(?!\S)"] {
            let pattern = Pattern::new(expression).unwrap();
            assert!(pattern.backtracks(), "{expression}");
            assert_eq!(pattern.matches("xabab aab").unwrap(), backtracked(expression, "xabab aab"));
            let error = pattern.matches(&"a".repeat(MAX_BACKTRACKING_TEXT_BYTES + 1)).unwrap_err();
            assert!(error.contains("backtracking"), "{error}");
        }
        let error = Pattern::new(r"(a|b|ab)*(?=c)").unwrap().matches(&"ab".repeat(50)).unwrap_err();
        assert!(error.contains("imit"), "{error}");
    }

    #[test]
    fn a_broken_or_a_huge_expression_is_refused() {
        for expression in ["(a", "[a", r"\p{Nope}", "((a{999}){999}){999}", "(?=("] {
            assert!(Pattern::new(expression).is_err(), "{expression}");
        }
    }

    #[test]
    fn a_megabyte_of_anything_is_cut_into_pieces_that_cover_it() {
        for expression in [GPT2, CL100K, SHORT_RUNS] {
            let pattern = Pattern::new(expression).unwrap();
            for unit in
                [" ", "\n", "\r\n", " \n", "\u{3000}", "a", "A", "1", ".", "'", "\u{301}", "漢", "🦙", "é ", "\0"]
            {
                for end in ["", "x", "."] {
                    let text = unit.repeat((1 << 20) / unit.len()) + end;
                    let pieces = pattern.pieces(&text).unwrap();
                    assert!(pieces.windows(2).all(|pair| pair[0].1 == pair[1].0), "{unit:?} {end}");
                    assert_eq!((pieces[0].0, pieces[pieces.len() - 1].1), (0, text.len()));
                }
            }
        }
    }
}
