//! Settings from a file: flags of `serve` by their names, in TOML. There is no second list of them: what a key may be and
//! what its value must be is what the command line says.
//!
//! A setting of the file is the default of its flag, so variables and the command line win. It is left out where they set
//! something that contradicts it.

use std::{ffi::OsString, path::Path};

use clap::{Arg, ArgAction, ArgMatches, Command, error::ErrorKind, parser::ValueSource};
use toml::{Table, Value};

use super::{
    effective::{SECRET, long_of},
    keys::{one_line, read_text},
    suggest::nearest,
};

/// Bytes of the largest file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// What a file cannot say: where it is itself, and what `--no-…` does, which the other flag can as well.
const NOT_HERE: [&str; 4] = ["config", "print_config", "help", "version"];

/// A setting of a file: its argument's id and the values, as the command line would have them.
#[derive(Debug)]
struct Setting {
    id: String,
    values: Vec<String>,
}

/// What the command line and the variables say, over what the file that they name says. The ids of the settings that are
/// the file's come with it.
///
/// # Errors
/// What is wrong with the command line, or with the file, by the name of the setting.
pub fn matches(command: &Command, arguments: Vec<OsString>) -> Result<(ArgMatches, Vec<String>), clap::Error> {
    let given = command.clone().try_get_matches_from(arguments.clone())?;
    let Some((name, own)) = given.subcommand() else { return Ok((given, Vec::new())) };
    // Subcommands that take no file do not know the argument.
    let Ok(Some(path)) = own.try_get_one::<std::path::PathBuf>("config") else { return Ok((given, Vec::new())) };
    let mut built = command.clone();
    built.build();
    let Some(subcommand) = built.find_subcommand(name) else { return Ok((given, Vec::new())) };
    let settings = read(subcommand, path)?;
    check(subcommand, path, &settings)?;
    let is_given = |id: &str| matches!(own.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
    // Which of two that contradict each other says so is the arguments' own affair.
    let contradict = |one: &Arg, other: &Arg| {
        subcommand.get_arg_conflicts_with(one).iter().any(|named| named.get_id() == other.get_id())
    };
    let holds = |setting: &Setting| {
        let mut others = subcommand.get_arguments().filter(|arg| is_given(arg.get_id().as_str()));
        let own = subcommand.get_arguments().find(|arg| arg.get_id() == setting.id.as_str());
        !is_given(&setting.id)
            && own.is_none_or(|own| !others.any(|other| contradict(own, other) || contradict(other, own)))
    };
    let settings: Vec<Setting> = settings.into_iter().filter(holds).collect();
    let ids = settings.iter().map(|setting| setting.id.clone()).collect();
    let (name, mut command) = (name.to_owned(), command.clone());
    for Setting { id, values } in settings {
        // Those that all subcommands have stand above them.
        let is_global = command.get_arguments().any(|arg| arg.get_id() == id.as_str());
        let set = move |arg: Arg| arg.default_values(values);
        command = match is_global {
            true => command.mut_arg(id, set),
            false => command.mut_subcommand(name.clone(), |subcommand| subcommand.mut_arg(id, set)),
        };
    }
    Ok((command.try_get_matches_from(arguments)?, ids))
}

/// The settings of a file.
fn read(subcommand: &Command, path: &Path) -> Result<Vec<Setting>, clap::Error> {
    let wrong = |why: String| subcommand.clone().error(ErrorKind::InvalidValue, why);
    let named = |why: &dyn std::fmt::Display| wrong(format!("--config {}: {why}", path.display()));
    let text = read_text(path, MAX_FILE_BYTES).map_err(|error| named(&error.violations[0].description))?;
    let table: Table = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        named(&format!("line {line}: {}", one_line(&error)))
    })?;
    let mut settings: Vec<Setting> = Vec::new();
    for (key, value) in table {
        let id = key.replace('_', "-");
        let arg = subcommand.get_arguments().find(|arg| is_setting(arg) && long_of(arg) == id);
        let Some(arg) = arg else { return Err(named(&unknown(subcommand, &key))) };
        if settings.iter().any(|known| known.id == arg.get_id().as_str()) {
            return Err(named(&format!("{key}: is there twice, once with dashes and once with underscores")));
        }
        let values = values(arg, value).map_err(|why| named(&format!("{key}: {why}")))?;
        settings.push(Setting { id: arg.get_id().to_string(), values });
    }
    Ok(settings)
}

fn is_setting(arg: &Arg) -> bool {
    let id = arg.get_id().as_str();
    !id.starts_with("no_") && !NOT_HERE.contains(&id)
}

fn unknown(subcommand: &Command, key: &str) -> String {
    let settings: Vec<_> = subcommand.get_arguments().filter(|arg| is_setting(arg)).map(long_of).collect();
    let best = nearest(&key.replace('_', "-"), settings.iter().map(String::as_str));
    let meant = best.map(|name| format!(": did you mean {name}?")).unwrap_or_default();
    let key: String = key.chars().take(64).collect();
    format!("{key:?} is no setting of {}{meant}", subcommand.get_name())
}

/// A value as the command line would have it.
fn values(arg: &Arg, value: Value) -> Result<Vec<String>, String> {
    let scalar = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(flag) => Ok(flag.to_string()),
        Value::Table(_) => Err("is a table: settings stand at the top of the file".to_owned()),
        Value::Array(_) | Value::Datetime(_) => Err("must be a text, a number or a truth value".to_owned()),
    };
    let is_flag = !arg.get_action().takes_values();
    match value {
        Value::Boolean(flag) => Ok(vec![flag.to_string()]),
        Value::Array(_) | Value::Table(_) if is_flag => Err("must be true or false".to_owned()),
        Value::Array(list) if matches!(arg.get_action(), ArgAction::Append) => list.into_iter().map(scalar).collect(),
        // A list where the flag takes one value is written as JSON there.
        Value::Array(list) => {
            let texts: Result<Vec<String>, String> = list.into_iter().map(scalar).collect();
            Ok(vec![serde_json::Value::from(texts?).to_string()])
        }
        _ if is_flag => Err("must be true or false".to_owned()),
        other => Ok(vec![scalar(other)?]),
    }
}

/// Whether the command line would take it all; what is wrong is said in its words, with the file's name.
fn check(subcommand: &Command, path: &Path, settings: &[Setting]) -> Result<(), clap::Error> {
    let mut tokens = vec![subcommand.get_name().to_owned()];
    for Setting { id, values } in settings {
        let arg = subcommand.get_arguments().find(|arg| arg.get_id() == id.as_str());
        let Some(arg) = arg else { continue };
        let takes_values = arg.get_action().takes_values();
        for value in values {
            match (arg.get_long(), takes_values) {
                (Some(long), true) => tokens.push(format!("--{long}={value}")),
                (Some(long), false) if value == "true" => tokens.push(format!("--{long}")),
                (Some(_), false) => {}
                (None, _) => tokens.extend(["--".to_owned(), value.clone()]),
            }
        }
    }
    // What stands alone must stand last.
    let last = tokens.iter().position(|token| token == "--").map(|at| tokens.drain(at..at + 2).collect::<Vec<_>>());
    tokens.extend(last.unwrap_or_default());
    let alone = subcommand.clone().mut_args(|arg| arg.env(None::<&str>));
    alone.try_get_matches_from(tokens).map(|_| ()).map_err(|error| {
        // The first lines name the setting and what is wrong with its value; the rest is how to call the command.
        let said = error.to_string();
        let said = said.split("\n\nUsage").next().unwrap_or_default();
        let said = said.split("\n\nFor more").next().unwrap_or_default();
        let said = said.strip_prefix("error: ").unwrap_or(said);
        let said = unsaid(subcommand, settings, said);
        subcommand.clone().error(error.kind(), format!("--config {}: {said}", path.display()))
    })
}

/// The same words without the values of settings that are secret: they are printed, and logged where a file is read again.
fn unsaid(subcommand: &Command, settings: &[Setting], said: &str) -> String {
    let is_secret = |setting: &&Setting| {
        let arg = subcommand.get_arguments().find(|arg| arg.get_id() == setting.id.as_str());
        arg.is_some_and(|arg| SECRET.contains(&long_of(arg).as_str()))
    };
    let secrets =
        settings.iter().filter(is_secret).flat_map(|setting| &setting.values).filter(|value| !value.is_empty());
    secrets.fold(said.to_owned(), |said, secret| said.replace(secret.as_str(), "(not shown)"))
}
