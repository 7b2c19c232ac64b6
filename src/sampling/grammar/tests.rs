//! What grammars allow and force, on vocabularies small enough to look at every token.

use super::*;
use crate::{
    ids::TokenId,
    params::{Constraint, SamplingParams, StructuredOutputs},
};

const EOS: TokenId = TokenId(2);

/// Bytes of the tokens: a special one, an end, every byte, and words, some of which are spelled twice.
fn tokens() -> Vec<(Vec<u8>, bool)> {
    let mut tokens = vec![(b"<s>".to_vec(), true), (b"<tool>".to_vec(), true), (b"</s>".to_vec(), true)];
    tokens.extend((0..=255_u8).map(|byte| (vec![byte], false)));
    let words = ["a", "tr", "true", "ue", "\"", "{\"", "\":", "null", "nu", "12", " ", "  ", "ab", "abc", "é", "name"];
    tokens.extend(words.iter().map(|word| (word.as_bytes().to_vec(), false)));
    tokens.push((Vec::new(), false));
    tokens
}

/// The token of a text: of two that spell the same, the longer known one.
fn id_of(text: &str) -> TokenId {
    TokenId(tokens().iter().rposition(|(bytes, _)| bytes == text.as_bytes()).unwrap() as u32)
}

fn compiler() -> Compiler {
    let tokens: &'static [(Vec<u8>, bool)] = tokens().leak();
    let encode = |text: &str| text.bytes().map(|byte| TokenId(3 + u32::from(byte))).collect();
    let spell = |id: TokenId| (tokens[id.index()].0.as_slice(), tokens[id.index()].1);
    Compiler::new(&Vocabulary::new(tokens.len(), spell, Box::new(encode))).unwrap()
}

fn grammar(constraint: Constraint) -> Grammar {
    compiler().compile(&constraint.into()).unwrap()
}

fn matcher(constraint: Constraint) -> Matcher {
    Matcher::new(&grammar(constraint), &SamplingParams::default(), &[EOS]).unwrap()
}

fn lark(text: &str) -> Constraint {
    Constraint::Grammar(text.into())
}

/// The texts of the tokens that may come next; `<end>` for the end.
fn allowed(matcher: &mut Matcher) -> Vec<Vec<u8>> {
    let Next::Mask(mask) = matcher.what_next().unwrap() else { return Vec::new() };
    let tokens = tokens();
    let mut texts: Vec<_> = (0..tokens.len())
        .filter(|&id| mask.allows(TokenId(id as u32)))
        .map(|id| if TokenId(id as u32) == EOS { b"<end>".to_vec() } else { tokens[id].0.clone() })
        .collect();
    texts.sort();
    texts
}

fn texts(list: &[&str]) -> Vec<Vec<u8>> {
    let mut list: Vec<_> = list.iter().map(|text| text.as_bytes().to_vec()).collect();
    list.sort();
    list
}

/// Whether all of a text may come, byte by byte with what is forced, and what is left over is nothing.
fn follows(constraint: &Constraint, text: &str) -> bool {
    let mut matcher = matcher(constraint.clone());
    let mut rest = text.as_bytes();
    loop {
        for id in matcher.take_forced(usize::MAX).collect::<Vec<_>>() {
            let Some(after) = rest.strip_prefix(tokens()[id.index()].0.as_slice()) else { return false };
            rest = after;
        }
        match matcher.what_next().unwrap() {
            Next::Complete => return rest.is_empty(),
            Next::Forced => unreachable!("all forced tokens were taken"),
            Next::Mask(mask) => match rest {
                [] => return mask.allows(EOS),
                [byte, after @ ..] => {
                    let id = TokenId(3 + u32::from(*byte));
                    if !mask.allows(id) {
                        return false;
                    }
                    matcher.accept(id).unwrap();
                    rest = after;
                }
            },
        }
    }
}

fn check(constraint: Constraint, good: &[&str], bad: &[&str]) {
    for text in good {
        assert!(follows(&constraint, text), "{constraint:?} must take {text:?}");
    }
    for text in bad {
        assert!(!follows(&constraint, text), "{constraint:?} must not take {text:?}");
    }
}

#[test]
fn a_mask_has_exactly_the_tokens_that_can_go_on() {
    let choice = || Constraint::Choice(["true", "trap", "abcd", "a"].map(String::from).to_vec());
    let mut matcher = matcher(choice());
    // "a" is spelled by two tokens, a byte and a word; no special token and no empty one is ever allowed.
    assert_eq!(allowed(&mut matcher), texts(&["t", "tr", "true", "a", "a", "ab", "abc"]));
    matcher.accept(id_of("ab")).unwrap();
    assert_eq!(matcher.take_forced(9).collect::<Vec<_>>(), [TokenId(3 + 99), TokenId(3 + 100)], "cd");
    assert!(matcher.is_complete() && matches!(matcher.what_next().unwrap(), Next::Complete));

    let mut regex = self::matcher(Constraint::Regex("a+".into()));
    assert_eq!(regex.take_forced(9).count(), 1, "the first of them must come");
    assert_eq!(allowed(&mut regex), texts(&["a", "a", "<end>"]));
}

#[test]
fn a_mask_lets_characters_be_spelled_byte_by_byte() {
    let mut matcher = matcher(Constraint::Regex("[éß]x?".into()));
    let mut starts = texts(&["é"]);
    starts.push(vec![0xc3]);
    starts.sort();
    assert_eq!(allowed(&mut matcher), starts);
    matcher.accept(TokenId(3 + 0xc3)).unwrap();
    assert_eq!(allowed(&mut matcher), [vec![0x9f], vec![0xa9]]);
}

#[test]
fn the_end_is_allowed_where_the_text_is_complete_and_never_with_ignore_eos() {
    let grammar = grammar(Constraint::Regex("[ab]{1,3}".into()));
    let stop = SamplingParams { stop_token_ids: vec![TokenId(1)], ignore_eos: true, ..SamplingParams::default() };
    let mut plain = Matcher::new(&grammar, &SamplingParams::default(), &[EOS]).unwrap();
    let mut ignoring = Matcher::new(&grammar, &stop, &[EOS]).unwrap();
    for n in 0..3 {
        for (matcher, end) in [(&mut plain, EOS), (&mut ignoring, TokenId(1))] {
            let Next::Mask(mask) = matcher.what_next().unwrap() else { panic!("a mask after {n}") };
            assert_eq!([EOS, TokenId(1)].map(|id| mask.allows(id)), [EOS, TokenId(1)].map(|id| n > 0 && id == end));
            matcher.accept(id_of("a")).unwrap();
        }
    }
    assert!(plain.is_complete() && ignoring.is_complete());
}

#[test]
fn what_is_forced_does_not_depend_on_how_much_of_it_can_be_sent() {
    let schema =
        r#"{"type":"object","properties":{"name":{"const":"abc"}},"required":["name"],"additionalProperties":false}"#;
    let outputs = StructuredOutputs { disable_any_whitespace: true, ..Constraint::Json(schema.into()).into() };
    let grammar = compiler().compile(&outputs).unwrap();
    let run = |at_most: usize| {
        let mut matcher = Matcher::new(&grammar, &SamplingParams::default(), &[EOS]).unwrap();
        let mut tokens = Vec::new();
        while !matches!(matcher.what_next().unwrap(), Next::Complete) {
            assert!(matches!(matcher.what_next().unwrap(), Next::Forced), "nothing is left to choose");
            tokens.extend(matcher.take_forced(at_most));
        }
        tokens
    };
    let all = run(usize::MAX);
    let text: Vec<u8> = all.iter().flat_map(|id| tokens()[id.index()].0.clone()).collect();
    assert_eq!(String::from_utf8(text).unwrap(), r#"{"name":"abc"}"#);
    assert!([1, 2, 3].iter().all(|&n| run(n) == all));
}

#[test]
fn a_choice_takes_its_strings_and_nothing_else() {
    let choices = ["yes", "no", "", "a\"b\\n\n/é", "yes, but"].map(String::from).to_vec();
    check(Constraint::Choice(choices), &["yes", "no", "", "a\"b\\n\n/é", "yes, but"], &["ye", "yes,", "n", "yesno"]);
}

#[test]
fn a_grammar_is_taken_in_lark_and_in_ebnf() {
    let expected: (&[&str], &[&str]) = (&["a-a", "b-(a-b)", "(b-b)-a"], &["a", "a-", "(a-b)", "a - b", "A-a"]);
    check(lark("start: term \"-\" term\nterm: \"a\" | \"b\" | \"(\" start \")\""), expected.0, expected.1);
    check(lark("root ::= term \"-\" term # sum\nterm ::= [ab]\n  | \"(\" root \")\""), expected.0, expected.1);
    let repeated = "root ::= a-B{2} (\"x\" | \"\")\na-B ::= [^\\n0-9] .?";
    check(lark(repeated), &["ab", "a1b", "a1b2x", "\u{e9}\u{e9}"], &["1a", "a", "\na"]);
}

#[test]
fn a_special_token_comes_only_where_a_grammar_names_it() {
    let mut matcher = matcher(lark("start: <tool> /a+/"));
    let Next::Mask(mask) = matcher.what_next().unwrap() else {
        assert_eq!(matcher.take_forced(9).next(), Some(TokenId(1)));
        return;
    };
    assert!(mask.allows(TokenId(1)) && !mask.allows(TokenId(0)));
}

#[test]
fn a_structural_tag_is_free_until_its_trigger() {
    let tag = r#"{"type": "structural_tag", "triggers": ["<f="],
        "structures": [{"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"},
                       {"begin": "<f=b>", "schema": {"type": "null"}, "end": ""}]}"#;
    let good = ["", "free text < f= <f", "say <f=a>12</f> and <f=b>null.", "<f=a>1</f><f=a>2</f>", "<<f=b>null\n\n"];
    let bad = ["<f=", "<f=c>", "<f=a>x</f>", "<f=a>1", "<f=b>1", "x<f=a>1</f><f="];
    check(Constraint::StructuralTag(tag.into()), &good, &bad);
}

#[test]
fn white_space_is_as_free_as_asked() {
    let json = Constraint::Json(r#"{"type":"array","items":{"type":"null"},"maxItems":2}"#.into());
    let spaced = "[ null ,\n\tnull ]";
    check(json.clone(), &[spaced, "[null,null]"], &["[null null]", "[null,\n\nnull]", "[  null]"]);
    let takes = |outputs: StructuredOutputs, text: &str| {
        let grammar = compiler().compile(&outputs).unwrap();
        let mut matcher = Matcher::new(&grammar, &SamplingParams::default(), &[EOS]).unwrap();
        text.bytes().all(|byte| {
            let id = TokenId(3 + u32::from(byte));
            match matcher.what_next().unwrap() {
                Next::Forced => matcher.take_forced(1).next() == Some(id),
                Next::Mask(mask) => mask.allows(id) && matcher.accept(id).is_ok(),
                Next::Complete => false,
            }
        })
    };
    let tight = StructuredOutputs { disable_any_whitespace: true, ..json.clone().into() };
    assert!(takes(tight.clone(), "[null,null]") && !takes(tight, "[ null]"));
    let one = StructuredOutputs { whitespace_pattern: Some(" ".into()), ..json.into() };
    assert!(takes(one.clone(), "[ null, null ]") && !takes(one, "[\nnull]"));
}

#[test]
fn a_name_is_spelled_in_one_way() {
    let schema = r#"{"type":"object","properties":{"a":{"type":"null"}},"required":["a"]}"#;
    let good = [r#"{"a": null}"#, r#"{"a": null, "b\n": 1}"#, r#"{"a": null, "b": "\n\"é\\"}"#];
    check(Constraint::Json(schema.into()), &good, &[r#"{"a": null, "\u0061": 1}"#, r#"{"a": null, "b": "\u0001"}"#]);
    check(Constraint::JsonObject, &[r#"{"a": "\t"}"#], &[r#"{"\u0061": 1}"#]);
}

#[test]
fn a_reference_is_a_pointer_with_its_escapes() {
    let schema = r##"{"$defs": {"a/b": {"const": 1}, "t~x": {"const": 2}, "p%q": {"const": 3}}, "anyOf":
        [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/t~0x"}, {"$ref": "#/$defs/p%25q"}, {"$ref": "#/%24defs/a~1b"}]}"##;
    check(Constraint::Json(schema.into()), &["1", "2", "3"], &["4", "null"]);
    let tree = r##"{"$defs": {"a/b": {"type": "array", "items": {"$ref": "#/$defs/a~1b"}}}, "$ref": "#/$defs/a~1b"}"##;
    check(Constraint::Json(tree.into()), &["[[],[[]]]"], &["[1]"]);
}

#[test]
fn a_format_is_followed_to_its_definition() {
    let json = |schema: &str| Constraint::Json(schema.into());
    let date = r#"{"type": "string", "format": "date", "pattern": "^(19|20)"}"#;
    check(json(date), &["\"2024-02-29\"", "\"1999-12-31\""], &["\"2023-02-29\"", "\"1900-02-29\"", "\"1812-01-01\""]);
    check(json(r#"{"type": "string", "format": "time"}"#), &["\"23:59:59Z\""], &["\"23:59:60Z\""]);
    let moment = r#"{"type": "string", "format": "date-time"}"#;
    check(
        json(moment),
        &["\"2024-02-29T12:00:00.5+01:00\""],
        &["\"2023-02-29T12:00:00Z\"", "\"2024-02-29T12:00:60Z\""],
    );
    let name = |labels: usize| format!("\"{}\"", vec!["abcdefg"; labels].join("."));
    check(json(r#"{"type": "string", "format": "hostname"}"#), &[&name(31)], &[&name(32)]);
}

#[test]
fn what_defines_rules_inside_a_literal_is_no_ebnf() {
    check(lark("start: \"x ::= y\" | \"z\""), &["x ::= y", "z"], &["x"]);
}

#[test]
fn what_cannot_be_followed_is_refused_by_field_and_keyword() {
    let compiler = compiler();
    let refused = |constraint: Constraint| {
        let outputs = StructuredOutputs::from(constraint);
        let error = compiler.compile(&outputs).err().unwrap_or_else(|| panic!("taken: {outputs:?}"));
        assert_eq!(error.code, crate::error::Code::InvalidArgument, "{error}");
        assert!(error.violations[0].field.starts_with(outputs.field()), "{error}");
        error.message
    };
    let json = |text: &str| refused(Constraint::Json(text.into()));
    assert!(json(r#"{"type":"array","uniqueItems":true}"#).contains("uniqueItems"));
    assert!(json(r#"{"type":"string","format":"no-such"}"#).contains("no-such"));
    assert!(json(r#"{"type":"string","pattern":"(?=a)b"}"#).contains("look"));
    assert!(json(r##"{"$ref":"#/$defs/none"}"##).contains("none"));
    assert!(json(r#"{"$ref":"http://elsewhere/schema"}"#).contains("elsewhere"));
    json(r#"{"type":"nothing"}"#);
    json("false");
    json(r#"{"type":"integer","minimum":3,"maximum":2}"#);
    json("{");
    refused(Constraint::Regex("(".into()));
    refused(Constraint::Regex("(a)\\1".into()));
    refused(lark("start: nowhere"));
    refused(lark("start: %json {\"not\": {}}"));
    refused(lark("root ::= \"a"));
    for tag in [
        "[]",
        r#"{"structures": [], "triggers": ["a"]}"#,
        r#"{"structures": [{"begin": "b", "schema": {}, "end": ""}], "triggers": ["a"]}"#,
        r#"{"structures": [{"begin": "a", "schema": {"not": {}}, "end": ""}], "triggers": ["a"]}"#,
        r#"{"format": {}, "structures": [], "triggers": []}"#,
    ] {
        refused(Constraint::StructuralTag(tag.into()));
    }
}

#[test]
fn what_would_cost_too_much_is_refused() {
    let compiler = compiler();
    let refused = |constraint: Constraint| {
        // On a thread with the stack that compilers are given.
        let outcome = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILER_STACK_BYTES);
            let compile = || compiler.compile(&constraint.clone().into()).map(drop);
            thread.spawn_scoped(scope, compile).unwrap().join().unwrap()
        });
        let error = outcome.err().unwrap_or_else(|| panic!("taken: {constraint:?}"));
        assert_eq!(error.code, crate::error::Code::InvalidArgument, "{error}");
        assert!(error.message.len() < 1000, "{error}");
    };
    refused(Constraint::Regex("(".repeat(50_000)));
    refused(lark(&format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))));
    refused(Constraint::Json(format!("{}{{}}{}", r#"{"items":"#.repeat(5000), "}".repeat(5000))));
    refused(Constraint::Json(r#"{"type":"string","minLength":100000000,"pattern":"(a|b)*"}"#.into()));
    // Patterns of names, of which every pair is looked at.
    let patterns: Vec<_> = (0..2000).map(|k| format!(r#""^x{k}y+z":{{}}"#)).collect();
    let object = format!(r#"{{"patternProperties":{{{}}}}}"#, patterns.join(","));
    refused(Constraint::Json(object.clone()));
    refused(lark(&format!("start: %json {object}")));
    // A chain of references, which compiling follows link by link.
    let links: Vec<_> = (0..3000).map(|k| format!(r##""d{k}":{{"items":{{"$ref":"#/$defs/d{}"}}}}"##, k + 1)).collect();
    let chain = format!(r##"{{"$ref":"#/$defs/d0","$defs":{{{},"d3000":{{"not":{{}}}}}}}}"##, links.join(","));
    refused(Constraint::Json(chain));
}

#[test]
fn masks_come_from_other_threads_in_any_order_and_can_be_dropped() {
    let grammar = std::sync::Arc::new(grammar(Constraint::Regex("[ab]*".into())));
    let workers = MaskWorkers::new().unwrap();
    let eos: std::sync::Arc<[TokenId]> = [EOS].into();
    let pending: Vec<_> = (0..50).map(|_| workers.start(grammar.clone(), Default::default(), eos.clone())).collect();
    for (k, mask) in pending.into_iter().enumerate().rev() {
        if k % 3 == 0 {
            continue; // Nobody waits for this one.
        }
        let (mut matcher, next) = mask.wait().unwrap();
        assert!(matches!(next.unwrap(), Next::Mask(mask) if mask.allows(id_of("ab")) && mask.allows(EOS)));
        matcher.accept(id_of("ab")).unwrap();
        let (_, next) = workers.next(matcher).wait().unwrap();
        assert!(matches!(next.unwrap(), Next::Mask(mask) if !mask.allows(id_of("abc")) && mask.allows(id_of("a"))));
    }
}
