//! [`Marks`]: finds the first of some fixed texts in a stream of characters, holding back no more than could begin one.

/// What a character brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// No mark is whole.
    Nothing,
    /// The mark of this number is whole.
    Mark(usize),
}

/// The marks, and what may be the start of one. None may be the start of another.
pub(super) struct Marks {
    marks: &'static [&'static str],
    held: String,
}

impl Marks {
    pub(super) fn new(marks: &'static [&'static str]) -> Self {
        Self { marks, held: String::new() }
    }

    /// Takes a character; gives a mark that is whole now, and before it the text that is certain to be none.
    pub(super) fn push(&mut self, c: char) -> (Seen, String) {
        self.held.push(c);
        let mut text = String::new();
        loop {
            if let Some(k) = self.marks.iter().position(|&mark| mark == self.held) {
                self.held.clear();
                return (Seen::Mark(k), text);
            }
            if self.held.is_empty() || self.marks.iter().any(|mark| mark.starts_with(&self.held)) {
                return (Seen::Nothing, text);
            }
            text.push(self.held.remove(0));
        }
    }

    /// Whether a mark may have begun.
    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// What was held back, which is none after all.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All text, with `{k}` where a mark was.
    fn run(text: &str) -> String {
        let mut marks = Marks::new(&["<a>", "<<b"]);
        let mut out = String::new();
        for c in text.chars() {
            let (seen, text) = marks.push(c);
            out += &text;
            if let Seen::Mark(k) = seen {
                out += &format!("{{{k}}}");
            }
            assert!(marks.held.len() < 3);
        }
        out + &marks.finish()
    }

    #[test]
    fn marks_are_found_and_nothing_else_is_lost() {
        for (text, want) in [
            ("x<a>y", "x{0}y"),
            ("<<a>", "<{0}"),
            ("<<<b<", "<{1}<"),
            ("<a<a>", "<a{0}"),
            ("é<", "é<"),
            ("", ""),
            ("<<", "<<"),
        ] {
            assert_eq!(run(text), want, "{text}");
        }
    }
}
