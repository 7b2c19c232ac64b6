//! What clients that are out there know of `proto/candlewick/v1` stays as it is: every call, field and value of
//! `tests/fixtures/contract.txt`. What is new is added to it by `CANDLEWICK_WRITE_CONTRACT=1 cargo test --test it contract`.

use std::{collections::BTreeSet, fs, path::PathBuf};

use candlewick::proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};

use crate::place::repository;

const PACKAGE: &str = "candlewick.v1";

fn calls(within: &str, service: &ServiceDescriptorProto, lines: &mut BTreeSet<String>) {
    let side = |streams: bool, name: &str| format!("({}{name})", if streams { "stream " } else { "" });
    for call in &service.method {
        let takes = side(call.client_streaming(), call.input_type());
        let gives = side(call.server_streaming(), call.output_type());
        lines.insert(format!("{within}.{}.{}{takes} returns {gives}", service.name(), call.name()));
    }
}

/// What a field is on the wire and in generated code: its number, type, label and oneof.
fn field(of: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = field.label().as_str_name().trim_start_matches("LABEL_").to_lowercase();
    let label = if field.proto3_optional() { "explicit" } else { &label };
    let kind = match field.type_name() {
        "" => field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        named => named.to_owned(),
    };
    let oneof = field.oneof_index.filter(|_| !field.proto3_optional());
    let oneof = oneof.map(|index| format!(" of {}", of.oneof_decl[index as usize].name())).unwrap_or_default();
    format!("{} = {}: {label} {kind}{oneof}", field.name(), field.number())
}

fn message(within: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{within}.{}", message.name());
    lines.extend(message.field.iter().map(|one| format!("{name}.{}", field(message, one))));
    message.nested_type.iter().for_each(|nested| self::message(&name, nested, lines));
    message.enum_type.iter().for_each(|nested| values(&name, nested, lines));
}

fn values(within: &str, of: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    lines.extend(of.value.iter().map(|value| format!("{within}.{}.{} = {}", of.name(), value.name(), value.number())));
}

/// The contract as it is, a line for everything that a client can know.
fn contract() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for file in FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap().file {
        if file.package() == PACKAGE {
            file.service.iter().for_each(|service| calls(PACKAGE, service, &mut lines));
            file.message_type.iter().for_each(|one| message(PACKAGE, one, &mut lines));
            file.enum_type.iter().for_each(|one| values(PACKAGE, one, &mut lines));
        }
    }
    lines
}

fn fixture() -> PathBuf {
    repository("tests/fixtures/contract.txt")
}

#[test]
fn nothing_of_the_contract_that_clients_know_goes_or_changes_and_what_is_new_is_noted() {
    let now = contract();
    let known: BTreeSet<String> =
        fs::read_to_string(fixture()).unwrap_or_default().lines().map(str::to_owned).collect();
    let gone: Vec<_> = known.difference(&now).collect();
    assert!(gone.is_empty(), "clients that are out there break without these:\n{gone:#?}");
    if std::env::var_os("CANDLEWICK_WRITE_CONTRACT").is_some() {
        fs::write(fixture(), now.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        return;
    }
    let new: Vec<_> = now.difference(&known).collect();
    assert!(new.is_empty(), "add these by `CANDLEWICK_WRITE_CONTRACT=1 cargo test --test it contract`:\n{new:#?}");
}

#[test]
fn a_field_that_changes_its_number_type_label_or_oneof_is_another_line() {
    let all = contract();
    assert!(all.len() > 300, "{}", all.len());
    let one = |start: &str| all.iter().find(|line| line.starts_with(start)).map(String::as_str);
    let field = one("candlewick.v1.SamplingParams.top_p ");
    assert!(field.is_some_and(|line| line.contains(" = ") && line.contains("explicit float")), "{field:?}");
    assert!(one("candlewick.v1.EmbedStreamRequest.item ").is_some_and(|line| line.ends_with(" of request")));
    let call = one("candlewick.v1.Chat.Session(");
    assert!(call.is_some_and(|line| line.matches("stream ").count() == 2), "{call:?}");
}
