//! What a line of `candlewick chat` asks for: something to say, or a command.

use crate::config::suggest::nearest;

/// What can be commanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Reset,
    System,
    Set,
    Settings,
    Retry,
    Undo,
    Show,
    Save,
    Load,
    Model,
    Quit,
}

/// Names, what stands after them, what they do. The first name of a command is the one that is listed.
pub(super) const COMMANDS: [(Command, &str, &str, &str); 14] = [
    (Command::Help, "/help", "", "this list"),
    (Command::Reset, "/reset", "", "forget the conversation"),
    (Command::Reset, "/clear", "", ""),
    (Command::System, "/system", "TEXT", "begin anew with these instructions, or with none"),
    (Command::Set, "/set", "NAME VALUE", "change a flag of `candlewick chat --help`, such as: /set temperature 0.2"),
    (Command::Settings, "/settings", "", "what was set here"),
    (Command::Retry, "/retry", "", "another answer to the same"),
    (Command::Undo, "/undo", "", "take back what was said last, and its answer"),
    (Command::Show, "/show", "", "the conversation so far"),
    (Command::Save, "/save", "FILE", "write the conversation as JSON"),
    (Command::Load, "/load", "FILE", "go on with a conversation that was saved"),
    (Command::Model, "/model", "", "who answers"),
    (Command::Quit, "/quit", "", "leave (Ctrl-D does too)"),
    (Command::Quit, "/exit", "", ""),
];

const KEYS: &str = "\
\\ at the end   goes on in the next line; \"\"\" begins and ends a text of many lines
Ctrl-C         ends the answer under way";

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input<'a> {
    Nothing,
    Say(&'a str),
    /// A command and what stands after it.
    Command(Command, &'a str),
    /// No command, and the one that it may have been.
    Unknown(&'a str, Option<&'static str>),
}

impl<'a> Input<'a> {
    pub(super) fn of(line: &'a str) -> Self {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        // A path or a date is said, not commanded.
        let commands = word.strip_prefix('/').is_some_and(|name| name.bytes().all(|b| b.is_ascii_alphabetic()));
        if line.is_empty() {
            return Self::Nothing;
        }
        if !commands {
            return Self::Say(line);
        }
        let found = COMMANDS.iter().find(|row| row.1 == word);
        match found {
            Some(&(command, _, wants, _)) if rest.trim().is_empty() || !wants.is_empty() => {
                Self::Command(command, rest.trim())
            }
            _ => Self::Unknown(word, nearest(word, COMMANDS.iter().map(|row| row.1))),
        }
    }
}

/// What `/help` says.
pub(super) fn help() -> String {
    let listed = COMMANDS.iter().filter(|row| !row.3.is_empty());
    let rows = listed.map(|(_, name, wants, does)| format!("{:<24} {does}\n", format!("{name} {wants}")));
    rows.chain([KEYS.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_only_where_they_look_like_one() {
        for (line, input) in [
            ("", Input::Nothing),
            ("  \n", Input::Nothing),
            (" /help ", Input::Command(Command::Help, "")),
            ("/reset", Input::Command(Command::Reset, "")),
            ("/clear", Input::Command(Command::Reset, "")),
            ("/exit", Input::Command(Command::Quit, "")),
            ("/system Be  brief.\n", Input::Command(Command::System, "Be  brief.")),
            ("/set temperature 0.5", Input::Command(Command::Set, "temperature 0.5")),
            ("/frobnicate", Input::Unknown("/frobnicate", None)),
            ("/rest", Input::Unknown("/rest", Some("/reset"))),
            ("/quit it", Input::Unknown("/quit", Some("/quit"))),
            ("/etc/hosts", Input::Say("/etc/hosts")),
            ("1/2", Input::Say("1/2")),
            ("hello /quit\n", Input::Say("hello /quit")),
        ] {
            assert_eq!(Input::of(line), input, "{line:?}");
        }
    }

    #[test]
    fn help_lists_each_command_once() {
        let help = help();
        for (_, name, _, does) in COMMANDS.iter().filter(|row| !row.3.is_empty()) {
            assert_eq!(help.lines().filter(|line| line.split(' ').next() == Some(name)).count(), 1, "{name}");
            assert!(help.contains(does));
        }
    }
}
