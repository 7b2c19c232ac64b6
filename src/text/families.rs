//! How each family of models cuts a text before byte-level BPE.
//!
//! GGUF names its pre-tokenizer (`tokenizer.ggml.pre`) instead of writing it down, and tiktoken files leave it out, so the
//! patterns stand here. Each is that of the family's own `tokenizer.json` or published encoding, which the name stands for.

/// How a family cuts text, and what else its name says.
pub(super) struct Family {
    /// Applied one after another, each to the pieces that the one before left; every match is a piece of its own.
    pub(super) patterns: &'static [&'static str],
    /// A piece that is a token is taken whole, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Begins with the begin token where the file does not say.
    pub(super) add_bos: bool,
    /// Ends with the separator where the file does not say.
    pub(super) add_sep: bool,
    /// Tokens are written as text with `▁` for a space, and bytes as `<0x0A>`, instead of byte by byte.
    pub(super) plain_text: bool,
}

pub(super) use super::tokenizer_split::GPT2;

pub(super) const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const KIMI_K2: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words up to the punctuation of many scripts.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

const DIGIT: &str = r"\p{N}";
const THREE_DIGITS: &str = r"\p{N}{1,3}";
const LINE_END: &str = r"[\r\n]";
const CJK_WORDS: &str = r"[一-龥ࠀ-一가-퟿]+";
const KANA_AND_HAN: &str = r"[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK3_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// The letters that have a case: `\p{Lu}\p{Ll}\p{Lt}` of the Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee,
/// Glagolitic, Coptic, Deseret, Osage, Hungarian runic, Warang Citi and Adlam scripts, as DeepSeek LLM lists them.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_MARKS: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";

const PLAIN: Family =
    Family { patterns: &[GPT2], ignore_merges: false, add_bos: false, add_sep: false, plain_text: false };

const fn cut_by(patterns: &'static [&'static str]) -> Family {
    Family { patterns, ..PLAIN }
}

const fn whole_words(patterns: &'static [&'static str], add_bos: bool) -> Family {
    Family { patterns, ignore_merges: true, add_bos, ..PLAIN }
}

/// What `tokenizer.ggml.pre` stands for; the first row is GPT-2's own.
static FAMILIES: &[(&[&str], Family)] = &[
    (
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        PLAIN,
    ),
    (&["jina-v1-en", "jina-v2-code", "roberta-bpe"], Family { add_sep: true, ..PLAIN }),
    (
        &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
        whole_words(&[LLAMA3], true),
    ),
    (&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], cut_by(&[LLAMA3])),
    (
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "megrez", "grok-2", "solar-open"],
        cut_by(&[QWEN2]),
    ),
    (&["qwen35"], cut_by(&[QWEN35])),
    (&["tekken"], whole_words(&[TEKKEN], true)),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], cut_by(&[GPT4O])),
    (&["granite-embed-multi-97m"], whole_words(&[GPT4O], false)),
    (&["tiny_aya", "cohere2moe"], cut_by(&[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O])),
    (&["kimi-k2"], cut_by(&[KIMI_K2])),
    (
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "minerva", "mellum2"],
        cut_by(&[DIGIT, GPT2]),
    ),
    (&["deepseek-v3", "hunyuan-dense", "joyai-llm"], cut_by(&[THREE_DIGITS, KANA_AND_HAN, DEEPSEEK3_WORDS])),
    (&["deepseek-llm"], cut_by(&[LINE_END, DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", CJK_WORDS, r"\p{N}+"])),
    (&["deepseek-coder"], cut_by(&[LINE_END, r"\s?\p{L}+", r"\s?\p{P}+", CJK_WORDS, DIGIT])),
    (&["falcon"], cut_by(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"])),
    (&["poro-chat", "bloom", "gpt3-finnish"], cut_by(&[BLOOM])),
    (&["viking"], cut_by(&[BLOOM, DIGIT])),
    (&["superbpe"], cut_by(&[r"\p{N}+", r"(?=(\d{3})+(?!\d))"])),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], cut_by(&[BAILING])),
    (&["seed-coder"], cut_by(&[SEED_CODER])),
    (&["exaone-moe"], cut_by(&[EXAONE_MOE])),
    (&["jais-2"], cut_by(&[JAIS2])),
    (&["minicpm5"], whole_words(&[THREE_DIGITS, MINICPM5], false)),
    (
        &["youtu"],
        whole_words(&[r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", YOUTU_WORDS], false),
    ),
    (
        &["chameleon"],
        Family {
            patterns: &[
                r"<sentinel:[0-9]+>",
                r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                DIGIT,
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ],
            add_bos: true,
            ..PLAIN
        },
    ),
    (
        &["afmoe"],
        cut_by(&[
            r"(?=(\d{3})+(?!\d))",
            r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{0E00}-\x{0E7F}\x{0E80}-\x{0EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+",
            DEEPSEEK3_WORDS,
        ]),
    ),
    (
        &["gemma4", "granite-embed-multi-311m", "sarvam-moe"],
        Family { patterns: &[r"[^\n]+|[\n]+"], plain_text: true, ..PLAIN },
    ),
];

/// GPT-4o's words, with digits one by one.
const YOUTU_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Without a name, or with the name `default`, files are cut as llama.cpp did before there were names.
static DEFAULT: Family = cut_by(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]);

/// The family of that name; none for a name we do not know.
pub(super) fn family(name: &str) -> Option<&'static Family> {
    if name == "default" {
        return Some(&DEFAULT);
    }
    FAMILIES.iter().find(|(names, _)| names.contains(&name)).map(|(_, family)| family)
}

/// What a file is read as whose name we do not know.
pub(super) fn gpt2_family() -> &'static Family {
    &FAMILIES[0].1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::pattern::Pattern;

    fn pieces(name: &str, text: &str) -> Vec<String> {
        let mut pieces = vec![text.to_owned()];
        for expression in family(name).unwrap().patterns {
            let pattern = Pattern::new(expression).unwrap();
            let cut = |piece: String| -> Vec<String> {
                pattern
                    .pieces(&piece)
                    .unwrap()
                    .into_iter()
                    .map(|(start, end, _)| piece[start..end].to_owned())
                    .collect()
            };
            pieces = pieces.into_iter().flat_map(cut).filter(|piece| !piece.is_empty()).collect();
        }
        pieces
    }

    #[test]
    fn every_pattern_runs_in_linear_time_and_keeps_the_text() {
        let text = "It's 1234567 été!  \n\t漢字ひらがな 한국어 ไทย e\u{301}🦙🏽 x_y ½ '\r\n  ";
        for name in FAMILIES.iter().flat_map(|(names, _)| *names).chain([&"default"]) {
            for expression in family(name).unwrap().patterns {
                assert!(!Pattern::new(expression).unwrap().backtracks(), "{name}: {expression}");
            }
            assert_eq!(pieces(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn each_family_cuts_in_its_own_way() {
        for (name, text, expected) in [
            ("gpt-2", "I've 1234  x", &["I", "'ve", " 1234", " ", " x"][..]),
            ("llama-bpe", "I'VE 1234  x", &["I", "'VE", " ", "123", "4", " ", " x"]),
            ("qwen2", "a 12\n\nb", &["a", " ", "1", "2", "\n\n", "b"]),
            ("starcoder", "x 12", &["x", " ", "1", "2"]),
            ("deepseek-llm", "Hi 12 漢\n", &["Hi", " ", "12", " ", "漢", "\n"]),
            ("deepseek-coder", "a.b 12", &["a", ".", "b", " ", "1", "2"]),
            ("deepseek-v3", "a_b 1234漢字", &["a", "_b", " ", "123", "4", "漢字"]),
            ("falcon", "a, 12345", &["a", ",", " ", "123", "45"]),
            ("bloom", "Ah, non! Si", &["Ah", ",", " non", "!", " Si"]),
            ("viking", "a 12", &["a", " ", "1", "2"]),
            ("tekken", "helloWorld 12", &["hello", "World", " ", "1", "2"]),
            ("gpt-4o", "HelloWorld's 1234", &["Hello", "World's", " ", "123", "4"]),
            ("tiny_aya", "x 1234567", &["x", " ", "1", "234", "567"]),
            ("superbpe", "a b 12345", &["a b ", "12", "345"]),
            ("kimi-k2", "a漢字b", &["a", "漢字", "b"]),
            ("bailingmoe", "a\n\nb", &["a", "\n\n", "b"]),
            ("seed-coder", "!!\n1", &["!!", "\n", "1"]),
            ("exaone-moe", "ab cd, x", &["ab cd", ",", " x"]),
            ("jais-2", "a      b", &["a", "    ", " ", " b"]),
            ("gemma4", "a b\n\nc", &["a b", "\n\n", "c"]),
        ] {
            assert_eq!(pieces(name, text), expected, "{name}");
        }
    }
}
