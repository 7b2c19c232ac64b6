//! The configuration in force: each setting of a subcommand, its value, and where that came from.

use std::fmt::Write as _;

use clap::{Arg, ArgMatches, Command, parser::ValueSource};
use serde_json::{Value, json};

/// Settings whose values are not shown.
pub(super) const SECRET: [&str; 1] = ["api-key"];
/// What is said on the command line and is no setting.
const NO_SETTINGS: [&str; 4] = ["config", "print_config", "help", "version"];
/// Column of the remarks.
const REMARKS: usize = 48;

/// Where a value came from. Later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// `--config`.
    File,
    /// A variable.
    Environment,
    /// A flag.
    CommandLine,
}

impl Source {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::CommandLine => "command line",
        }
    }
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The flag, without its dashes.
    pub name: String,
    /// As the command line would have them; none where it is not set.
    pub values: Vec<String>,
    /// Where they came from.
    pub source: Source,
    /// The flag's variable.
    variable: String,
    is_list: bool,
}

/// All settings, in the order of the help.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// The settings.
    pub entries: Vec<Entry>,
}

/// The name of a setting: its flag's, or its own where it has none.
pub(super) fn long_of(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().as_str().replace('_', "-"), str::to_owned)
}

impl Effective {
    /// That of the subcommand which was called; `from_file` are the ids that a file has set.
    #[must_use]
    pub fn of(command: &Command, matches: &ArgMatches, from_file: &[String]) -> Self {
        let mut command = command.clone();
        command.build();
        let Some((name, own)) = matches.subcommand() else { return Self::default() };
        let Some(subcommand) = command.find_subcommand(name) else { return Self::default() };
        let settings = subcommand.get_arguments().filter(|arg| {
            let id = arg.get_id().as_str();
            !NO_SETTINGS.contains(&id) && !id.starts_with("no_")
        });
        let entry = |arg: &Arg| {
            let id = arg.get_id().as_str();
            let raw = own.try_get_raw(id).ok().flatten().into_iter().flatten();
            let source = match own.value_source(id) {
                Some(ValueSource::CommandLine) => Source::CommandLine,
                Some(ValueSource::EnvVariable) => Source::Environment,
                _ if from_file.iter().any(|set| set == id) => Source::File,
                _ => Source::Default,
            };
            Entry {
                name: long_of(arg),
                values: raw.map(|value| value.to_string_lossy().into_owned()).collect(),
                source,
                variable: arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
                is_list: matches!(arg.get_action(), clap::ArgAction::Append),
            }
        };
        Self { entries: settings.map(entry).collect() }
    }

    /// As a TOML file that `--config` takes, with a remark on each line. Secrets are left out of it.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for entry in &self.entries {
            let source = entry.source.name();
            let said = match entry.source {
                Source::Environment => format!("{source} {}", entry.variable),
                _ => source.to_owned(),
            };
            let setting = match entry.values.len() {
                0 => format!("# {} =", entry.name),
                number if SECRET.contains(&entry.name.as_str()) => {
                    format!("# {} = ({number} not shown)", entry.name)
                }
                _ => format!("{} = {}", entry.name, entry.value()),
            };
            // Formatting into a String cannot fail.
            let _ = writeln!(out, "{setting:REMARKS$} # {said}");
        }
        out
    }

    /// As one JSON object: each setting with its value, null where there is none, and where that came from. Secrets are null
    /// too, and say that they are.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let setting = |entry: &Entry| {
            let is_secret = SECRET.contains(&entry.name.as_str());
            let value = match entry.values.is_empty() || is_secret {
                true => Value::Null,
                false => serde_json::to_value(entry.value()).unwrap_or_default(),
            };
            let mut setting = json!({"value": value, "source": entry.source.name()});
            if entry.source == Source::Environment {
                setting["variable"] = entry.variable.as_str().into();
            }
            if is_secret {
                setting["secret"] = true.into();
            }
            (entry.name.clone(), setting)
        };
        Value::Object(self.entries.iter().map(setting).collect())
    }

    /// Names of the settings whose values differ from those of `other`.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<&str> {
        let same = |entry: &&Entry| {
            let theirs = other.entries.iter().find(|theirs| theirs.name == entry.name);
            theirs.is_some_and(|theirs| theirs.values == entry.values)
        };
        self.entries.iter().filter(|entry| !same(entry)).map(|entry| entry.name.as_str()).collect()
    }
}

impl Entry {
    fn value(&self) -> toml::Value {
        match self.values.as_slice() {
            [one] if !self.is_list => scalar(one),
            _ => self.values.clone().into(),
        }
    }
}

/// The simplest value that reads as the same text.
fn scalar(text: &str) -> toml::Value {
    let list = || serde_json::from_str::<Vec<String>>(text).ok().map(toml::Value::from);
    let number = || text.parse::<i64>().ok().filter(|number| number.to_string() == text).map(toml::Value::from);
    let flag = || text.parse::<bool>().ok().map(toml::Value::from);
    number().or_else(flag).or_else(list).unwrap_or_else(|| text.into())
}
