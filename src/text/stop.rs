//! [`StopMatcher`]: ends a stream of text at a stop string, and never lets the start of one out.

/// What a push gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that can no longer be part of a stop string.
    pub emit: String,
    /// The stop string, by its index, that was found; nothing comes after it.
    pub matched: Option<usize>,
}

/// Looks for stop strings in text that comes in pieces, however it is cut.
///
/// The match that *ends* first counts (generation stops as soon as a stop string is complete); of those that end
/// together the longest, because it begins first; of equal strings the first given. Text is held back while it could be the
/// start of a stop string: at most the longest one less a byte.
#[derive(Debug)]
pub struct StopMatcher {
    /// Each with its failure table: `failure[n]` is the length of the longest proper suffix of the first `n` bytes that
    /// is also their prefix (Knuth, Morris and Pratt, 1977).
    stops: Vec<(Vec<u8>, Vec<usize>)>,
    /// How many bytes of each stop string the text so far ends with.
    states: Vec<usize>,
    include_stop: bool,
    held: String,
    done: bool,
}

impl StopMatcher {
    /// Looks for these strings; empty ones never match. With `include_stop` the one that is found stays in the text.
    #[must_use]
    pub fn new(stops: &[String], include_stop: bool) -> Self {
        let stops: Vec<_> =
            stops.iter().map(|stop| (stop.as_bytes().to_vec(), failure_table(stop.as_bytes()))).collect();
        Self { states: vec![0; stops.len()], stops, include_stop, held: String::new(), done: false }
    }

    /// Takes the next piece of text. After a match there is nothing more.
    pub fn push(&mut self, text: String) -> StopStep {
        if self.done {
            return StopStep::default();
        }
        if self.stops.is_empty() {
            return StopStep { emit: text, matched: None };
        }
        let held_before = self.held.len();
        self.held.push_str(&text);
        for (n, byte) in text.bytes().enumerate() {
            let end = held_before + n + 1;
            if let Some(stop) = self.advance(byte) {
                self.done = true;
                let start = end - self.stops[stop].0.len();
                self.held.truncate(if self.include_stop { end } else { start });
                return StopStep { emit: std::mem::take(&mut self.held), matched: Some(stop) };
            }
        }
        // A state counts bytes from the start of a stop string, so the cut lies before a character.
        let hold = self.states.iter().copied().max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        StopStep { emit: std::mem::replace(&mut self.held, rest), matched: None }
    }

    /// The end of the text: what was held back after all.
    pub fn finish(&mut self) -> String {
        self.done = true;
        std::mem::take(&mut self.held)
    }

    /// Feeds one byte to every stop string; the longest that it completes.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        let mut found: Option<usize> = None;
        for (k, ((stop, failure), state)) in self.stops.iter().zip(&mut self.states).enumerate() {
            if stop.is_empty() {
                continue;
            }
            while *state > 0 && stop[*state] != byte {
                *state = failure[*state];
            }
            *state += usize::from(stop[*state] == byte);
            if *state == stop.len() {
                *state = failure[*state];
                if found.is_none_or(|best| self.stops[best].0.len() < stop.len()) {
                    found = Some(k);
                }
            }
        }
        found
    }
}

/// `table[n]` for every prefix length `n`, 0 and 1 included.
fn failure_table(stop: &[u8]) -> Vec<usize> {
    let mut table = vec![0; stop.len() + 1];
    let mut state = 0;
    for n in 1..stop.len() {
        while state > 0 && stop[state] != stop[n] {
            state = table[state];
        }
        state += usize::from(stop[state] == stop[n]);
        table[n + 1] = state;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    fn run(stops: &[&str], include_stop: bool, pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops, include_stop);
        let (mut texts, mut matched) = (Vec::new(), None);
        for piece in pieces {
            let step = matcher.push((*piece).to_owned());
            matched = matched.or(step.matched);
            texts.push(step.emit);
        }
        texts.push(matcher.finish());
        (texts, matched)
    }

    #[test]
    fn the_start_of_a_stop_string_is_held_until_it_is_certain() {
        let (texts, matched) = run(&["END"], false, &["aE", "N", "x", "EN", "D", "b"]);
        assert_eq!((texts, matched), (["a", "", "ENx", "", "", "", ""].map(String::from).to_vec(), Some(0)));
        let (texts, matched) = run(&["END"], false, &["aEN"]);
        assert_eq!((texts, matched), (["a", "EN"].map(String::from).to_vec(), None));
    }

    #[test]
    fn the_stop_string_stays_when_asked_for() {
        let (texts, matched) = run(&["END"], true, &["aE", "NDb"]);
        assert_eq!((texts, matched), (["a", "END", ""].map(String::from).to_vec(), Some(0)));
    }

    #[test]
    fn the_first_to_end_wins_and_then_the_longest() {
        assert_eq!(run(&["abcd", "bc"], false, &["xabcd"]).1, Some(1));
        assert_eq!(run(&["c", "bc", "bc"], false, &["abc"]), (vec!["a".into(), String::new()], Some(1)));
        assert_eq!(run(&["", "\u{fffd}"], false, &["a\u{fffd}"]).1, Some(1));
    }

    #[test]
    fn any_cut_gives_what_a_search_of_the_whole_gives() {
        let mut rng = rand::rngs::SmallRng::seed_from_u64(3);
        let alphabet = ['a', 'b', 'é', '🦙'];
        let mut matches = 0;
        for _ in 0..20_000 {
            let mut word = |longest: usize| -> String {
                (0..rng.random_range(0..=longest)).map(|_| alphabet[rng.random_range(0..alphabet.len())]).collect()
            };
            let stops: Vec<String> = (0..3).map(|_| word(4)).collect();
            let text = word(24);
            let include_stop = rng.random_range(0..2) == 0;

            let mut best: Option<(usize, usize, usize)> = None;
            for (k, stop) in stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
                if let Some(start) = text.find(stop.as_str()) {
                    let found = (start + stop.len(), start, k);
                    best = best.map_or(Some(found), |b| Some(b.min(found)));
                }
            }
            let expected =
                best.map_or(text.as_str(), |(end, start, _)| &text[..if include_stop { end } else { start }]);

            let mut matcher = StopMatcher::new(&stops, include_stop);
            let (mut out, mut matched, mut at) = (String::new(), None, 0);
            while at < text.len() && matched.is_none() {
                let mut end = (at + rng.random_range(1..6)).min(text.len());
                while !text.is_char_boundary(end) {
                    end += 1;
                }
                let step = matcher.push(text[at..end].to_owned());
                out += &step.emit;
                matched = step.matched;
                at = end;
                assert!(expected.starts_with(&out), "{out:?} leaked, wanted {expected:?}");
                let longest = stops.iter().map(String::len).max().unwrap_or(0);
                assert!(matched.is_some() || matcher.held.len() < longest.max(1));
            }
            out += &matcher.finish();
            assert_eq!((out.as_str(), matched), (expected, best.map(|b| b.2)), "{stops:?} in {text:?}");
            matches += usize::from(matched.is_some());
        }
        assert!((1000..19_000).contains(&matches), "{matches} matches");
    }
}
