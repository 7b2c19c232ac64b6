//! Server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>), as far as OpenAI's API uses
//! them: the `data` of each event, within bounds.

/// Longest event that is believed.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// Takes bytes as they come and gives the data of whole events.
#[derive(Debug, Default)]
pub(super) struct EventParser {
    /// The line under way.
    line: Vec<u8>,
    /// The lines of data of the event under way.
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return, which ends a line; a line feed after it ends no other.
    after_return: bool,
}

impl EventParser {
    /// Adds the data of each event that `bytes` complete to `events`.
    ///
    /// # Errors
    /// Where an event is longer than a mebibyte.
    pub(super) fn push(&mut self, bytes: &[u8], events: &mut Vec<Vec<u8>>) -> Result<(), String> {
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => self.end_line(events),
                _ if self.line.len() + self.data.len() >= MAX_EVENT_BYTES => {
                    return Err(format!("sent an event of more than {MAX_EVENT_BYTES} bytes"));
                }
                byte => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Vec<u8>>) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            if std::mem::take(&mut self.has_data) {
                events.push(data);
            }
        } else if let Some(value) = line.strip_prefix(b"data:") {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Result<Vec<String>, String> {
        let (mut parser, mut events) = (EventParser::default(), Vec::new());
        for piece in pieces {
            parser.push(piece, &mut events)?;
        }
        Ok(events.into_iter().map(|event| String::from_utf8(event).unwrap()).collect())
    }

    #[test]
    fn events_are_the_same_however_their_bytes_arrive() {
        let text =
            b": hello\r\ndata: a\r\n\r\nevent: x\ndata:b\ndata: c\nid: 4\n\ndata\n\ndata: [DONE]\n\ndata: cut off";
        let expected = ["a", "b\nc", "[DONE]"];
        assert_eq!(read(&[text]).unwrap(), expected);
        let single: Vec<_> = text.chunks(1).collect();
        assert_eq!(read(&single).unwrap(), expected);
    }

    #[test]
    fn an_event_without_end_is_given_up() {
        let piece = [b'x'; 1000];
        let endless: Vec<&[u8]> = std::iter::repeat_n(&piece[..], 1100).collect();
        assert!(read(&endless).unwrap_err().contains("more than"));
        let lines: Vec<&[u8]> = std::iter::repeat_n(&b"data: 0123456789\n"[..], 200_000).collect();
        assert!(read(&lines).unwrap_err().contains("more than"));
    }
}
