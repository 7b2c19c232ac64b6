//! `docs/grpc-reference.md` is what the protos say. To write it anew: `CANDLEWICK_WRITE_REFERENCE=1 cargo test --test it reference`.

use std::{collections::HashMap, fmt::Write, fs};

use candlewick::proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto, field_descriptor_proto::Type,
};

use crate::place::repository;

const PACKAGE: &str = "candlewick.v1";
const HEAD: &str = "# gRPC: every call, message and field\n\nMade from `proto/candlewick/v1/`, whose comments these are; \
    a test holds this page to it. [gRPC](grpc.md) has the calls from\nseveral languages, [streams and sessions](sessions.md) \
    what goes on in them.\n";

/// Where descriptors keep their parts, by field numbers of `descriptor.proto`.
const MESSAGE: i32 = 4;
const ENUM: i32 = 5;
const SERVICE: i32 = 6;
const MEMBER: i32 = 2;
const NESTED: i32 = 3;
const NESTED_ENUM: i32 = 4;

/// A file's comments, by where they stand.
struct Comments(HashMap<Vec<i32>, String>);

impl Comments {
    fn of(file: &FileDescriptorProto) -> Self {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let leading = locations.filter_map(|at| Some((at.path.clone(), at.leading_comments.clone()?)));
        Self(leading.collect())
    }

    /// On one line, as a table takes it.
    fn at(&self, path: &[i32]) -> String {
        let text = self.0.get(path).map(String::as_str).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;")
    }
}

fn number(index: usize) -> i32 {
    i32::try_from(index).unwrap()
}

/// Of another message or enum of the package, a link to it.
fn named(full: &str) -> String {
    match full.strip_prefix(&format!(".{PACKAGE}.")) {
        Some(name) => format!("[`{name}`](#{})", name.to_lowercase().replace('.', "")),
        None => format!("`{}`", full.trim_start_matches('.')),
    }
}

fn kind(field: &FieldDescriptorProto, of: &DescriptorProto) -> String {
    let plain = match field.r#type() {
        Type::Message | Type::Enum => named(field.type_name()),
        scalar => format!("`{}`", scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase()),
    };
    let entry = of.nested_type.iter().find(|nested| field.type_name().ends_with(&format!(".{}", nested.name())));
    match entry.filter(|entry| entry.options.as_ref().is_some_and(|options| options.map_entry())) {
        Some(entry) => format!("map of {} to {}", kind(&entry.field[0], entry), kind(&entry.field[1], entry)),
        None if field.label() == prost_types::field_descriptor_proto::Label::Repeated => format!("{plain}, repeated"),
        None if field.proto3_optional() => format!("{plain}, optional"),
        None => plain,
    }
}

fn service(page: &mut String, service: &ServiceDescriptorProto, at: &[i32], comments: &Comments) {
    writeln!(page, "\n## {}\n\n{}\n", service.name(), comments.at(at)).unwrap();
    writeln!(page, "| Call | Takes | Gives | |\n|---|---|---|---|").unwrap();
    for (k, method) in service.method.iter().enumerate() {
        let side = |streams: bool, name: &str| format!("{}{}", if streams { "stream of " } else { "" }, named(name));
        let about = comments.at(&[at, &[MEMBER, number(k)]].concat());
        let (takes, gives) = (
            side(method.client_streaming(), method.input_type()),
            side(method.server_streaming(), method.output_type()),
        );
        writeln!(page, "| `{}` | {takes} | {gives} | {about} |", method.name()).unwrap();
    }
}

fn message(page: &mut String, message: &DescriptorProto, within: &str, at: &[i32], comments: &Comments) {
    let name = format!("{within}{}", message.name());
    writeln!(page, "\n### {name}\n").unwrap();
    let about = comments.at(at);
    if !about.is_empty() {
        writeln!(page, "{about}\n").unwrap();
    }
    if !message.field.is_empty() {
        writeln!(page, "| Field | Type | |\n|---|---|---|").unwrap();
    }
    for (k, field) in message.field.iter().enumerate() {
        let mut about = comments.at(&[at, &[MEMBER, number(k)]].concat());
        if let Some(oneof) = field.oneof_index.filter(|_| !field.proto3_optional()) {
            about = format!("One of `{}`. {about}", message.oneof_decl[usize::try_from(oneof).unwrap()].name());
        }
        let (number, kind) = (field.number(), kind(field, message));
        writeln!(page, "| `{}` = {number} | {kind} | {} |", field.name(), about.trim()).unwrap();
    }
    for (k, nested) in message.nested_type.iter().enumerate() {
        if !nested.options.as_ref().is_some_and(|options| options.map_entry()) {
            self::message(page, nested, &format!("{name}."), &[at, &[NESTED, number(k)]].concat(), comments);
        }
    }
    for (k, nested) in message.enum_type.iter().enumerate() {
        values(page, nested, &format!("{name}."), &[at, &[NESTED_ENUM, number(k)]].concat(), comments);
    }
}

fn values(page: &mut String, values: &EnumDescriptorProto, within: &str, at: &[i32], comments: &Comments) {
    writeln!(page, "\n### {within}{}\n", values.name()).unwrap();
    let about = comments.at(at);
    if !about.is_empty() {
        writeln!(page, "{about}\n").unwrap();
    }
    writeln!(page, "| Value | |\n|---|---|").unwrap();
    for (k, value) in values.value.iter().enumerate() {
        let about = comments.at(&[at, &[MEMBER, number(k)]].concat());
        writeln!(page, "| `{}` = {} | {about} |", value.name(), value.number()).unwrap();
    }
}

fn page() -> String {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let mut files: Vec<_> = set.file.iter().filter(|file| file.package() == PACKAGE).collect();
    files.sort_by_key(|file| file.name().to_owned());
    let mut page = HEAD.to_owned();
    for file in &files {
        let comments = Comments::of(file);
        for (k, each) in file.service.iter().enumerate() {
            service(&mut page, each, &[SERVICE, number(k)], &comments);
        }
    }
    page += "\n## Messages\n";
    for file in &files {
        let comments = Comments::of(file);
        for (k, each) in file.message_type.iter().enumerate() {
            message(&mut page, each, "", &[MESSAGE, number(k)], &comments);
        }
        for (k, each) in file.enum_type.iter().enumerate() {
            values(&mut page, each, "", &[ENUM, number(k)], &comments);
        }
    }
    page
}

#[test]
fn the_reference_is_what_the_protos_say() {
    let (path, page) = (repository("docs/grpc-reference.md"), page());
    if std::env::var_os("CANDLEWICK_WRITE_REFERENCE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    for part in ["## Generation\n", "| `GenerateStream` | ", "### SamplingParams\n", "`top_k` = "] {
        assert!(page.contains(part), "{part}");
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    assert!(known == page, "{} is of other protos: this test's file says how to write it anew", path.display());
}
