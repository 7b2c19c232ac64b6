//! `structured_outputs` between the wire of `candlewick.v1` and the engine's type.

use crate::{
    error::{Error, Result},
    params::{Constraint, StructuredOutputs},
    proto::candlewick::v1::{self as wire, structured_outputs::Constraint as WireConstraint},
};

/// What a request says of its output's form; `json_object: false` says nothing.
///
/// # Errors
/// `InvalidArgument` where the message is there but names no constraint.
pub(super) fn from_wire(set: Option<wire::StructuredOutputs>) -> Result<Option<StructuredOutputs>> {
    let Some(set) = set else { return Ok(None) };
    let constraint = match set.constraint {
        Some(WireConstraint::Json(schema)) => Constraint::Json(schema),
        Some(WireConstraint::JsonObject(true)) => Constraint::JsonObject,
        Some(WireConstraint::JsonObject(false)) => return Ok(None),
        Some(WireConstraint::Regex(regex)) => Constraint::Regex(regex),
        Some(WireConstraint::Choice(choice)) => Constraint::Choice(choice.choices),
        Some(WireConstraint::Grammar(grammar)) => Constraint::Grammar(grammar),
        Some(WireConstraint::StructuralTag(tag)) => Constraint::StructuralTag(tag),
        None => {
            let why = "must have one of json, json_object, regex, choice, grammar, structural_tag";
            return Err(Error::invalid("options.sampling.structured_outputs", why));
        }
    };
    Ok(Some(StructuredOutputs {
        constraint,
        whitespace_pattern: set.whitespace_pattern,
        disable_any_whitespace: set.disable_any_whitespace.unwrap_or(false),
    }))
}

/// The same back, for those who ask what is in force.
pub(crate) fn to_wire(outputs: StructuredOutputs) -> wire::StructuredOutputs {
    let constraint = match outputs.constraint {
        Constraint::Json(schema) => WireConstraint::Json(schema),
        Constraint::JsonObject => WireConstraint::JsonObject(true),
        Constraint::Regex(regex) => WireConstraint::Regex(regex),
        Constraint::Choice(choices) => WireConstraint::Choice(wire::Choice { choices }),
        Constraint::Grammar(grammar) => WireConstraint::Grammar(grammar),
        Constraint::StructuralTag(tag) => WireConstraint::StructuralTag(tag),
    };
    wire::StructuredOutputs {
        constraint: Some(constraint),
        whitespace_pattern: outputs.whitespace_pattern,
        disable_any_whitespace: Some(outputs.disable_any_whitespace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_constraint_comes_back_as_it_was_sent() {
        for constraint in [
            Constraint::Json("{}".into()),
            Constraint::JsonObject,
            Constraint::Regex("a+".into()),
            Constraint::Choice(vec!["a".into(), "b".into()]),
            Constraint::Grammar("start: \"a\"".into()),
            Constraint::StructuralTag("{}".into()),
        ] {
            let outputs = StructuredOutputs { whitespace_pattern: Some(" ?".into()), ..constraint.into() };
            assert_eq!(from_wire(Some(to_wire(outputs.clone()))).unwrap(), Some(outputs));
        }
    }

    #[test]
    fn an_empty_message_is_refused_and_a_false_one_is_none() {
        let error = from_wire(Some(wire::StructuredOutputs::default())).unwrap_err();
        assert_eq!(error.violations[0].field, "options.sampling.structured_outputs");
        let no = wire::StructuredOutputs { constraint: Some(WireConstraint::JsonObject(false)), ..Default::default() };
        assert_eq!(from_wire(Some(no)).unwrap(), None);
        assert_eq!(from_wire(None).unwrap(), None);
    }
}
