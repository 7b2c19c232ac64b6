//! The tensors of the Open Inference Protocol, as far as text needs them: single strings, flags and numbers.

use crate::{
    error::{Error, Result},
    proto::inference::{
        ModelInferRequest, model_infer_request::InferInputTensor, model_infer_response::InferOutputTensor,
    },
};

/// A tensor that the model takes or gives: its name, its type on the wire, its shape.
pub(super) type Tensor = (&'static str, &'static str, &'static [i64]);

/// What a request may bring.
pub(super) const INPUTS: &[Tensor] = &[
    ("text_input", "BYTES", &[1]),
    ("stream", "BOOL", &[1]),
    ("sampling_parameters", "BYTES", &[1]),
    ("exclude_input_in_output", "BOOL", &[1]),
    ("return_finish_reason", "BOOL", &[1]),
    ("return_cumulative_logprob", "BOOL", &[1]),
    ("return_num_input_tokens", "BOOL", &[1]),
    ("return_num_output_tokens", "BOOL", &[1]),
];

/// What a response may carry; all but the first where they were asked for.
pub(super) const OUTPUTS: &[Tensor] = &[
    ("text_output", "BYTES", &[-1]),
    ("finish_reason", "BYTES", &[-1]),
    ("cumulative_logprob", "FP32", &[-1]),
    ("num_input_tokens", "UINT32", &[1]),
    ("num_output_tokens", "UINT32", &[-1]),
];

/// The value of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Flag(bool),
}

/// The inputs of a request by their names, in the request's order.
///
/// # Errors
/// `InvalidArgument` with the path of an input that is unknown, of another type or shape, or not where it should be.
pub(super) fn inputs(request: &mut ModelInferRequest) -> Result<Vec<(&'static str, Value)>> {
    let raw = std::mem::take(&mut request.raw_input_contents);
    let inputs = std::mem::take(&mut request.inputs);
    if !raw.is_empty() && raw.len() != inputs.len() {
        let why = format!("has {} entries for {} inputs", raw.len(), inputs.len());
        return Err(Error::invalid("raw_input_contents", why));
    }
    let mut raw = raw.into_iter();
    let mut values: Vec<(&'static str, Value)> = Vec::new();
    for (n, input) in inputs.into_iter().enumerate() {
        let raw = raw.next();
        let invalid = |field: &str, why: String| Error::invalid(format!("inputs[{n}].{field}"), why);
        let Some(&(name, datatype, _)) = INPUTS.iter().find(|(name, ..)| *name == input.name) else {
            let names: Vec<_> = INPUTS.iter().map(|(name, ..)| *name).collect();
            return Err(invalid("name", format!("is none that this model takes, which are {}", names.join(", "))));
        };
        if values.iter().any(|(other, _)| *other == name) {
            return Err(invalid("name", format!("{name} comes twice")));
        }
        if input.datatype != datatype {
            return Err(invalid("datatype", format!("of {name} must be {datatype}")));
        }
        if input.shape.is_empty() || input.shape.iter().any(|&length| length != 1) {
            return Err(invalid("shape", format!("of {name} must be [1]: send one request for each text")));
        }
        let value = match raw {
            Some(raw) => from_raw(datatype, &raw),
            None => from_contents(datatype, input),
        };
        values.push((name, value.map_err(|why| invalid("contents", format!("of {name} {why}")))?));
    }
    Ok(values)
}

fn text(bytes: Vec<u8>) -> Result<Value, &'static str> {
    String::from_utf8(bytes).map(Value::Text).map_err(|_| "is not UTF-8")
}

fn from_raw(datatype: &str, raw: &[u8]) -> Result<Value, &'static str> {
    match (datatype, raw) {
        ("BOOL", [flag]) => Ok(Value::Flag(*flag != 0)),
        ("BOOL", _) => Err("must be one byte"),
        _ => {
            let (length, bytes) = raw.split_first_chunk::<4>().ok_or("must begin with a length of four bytes")?;
            match u32::from_le_bytes(*length) as usize == bytes.len() {
                true => text(bytes.to_vec()),
                false => Err("must be one element, as long as its length says"),
            }
        }
    }
}

fn from_contents(datatype: &str, input: InferInputTensor) -> Result<Value, &'static str> {
    let mut contents = input.contents.unwrap_or_default();
    match (datatype, contents.bool_contents.as_slice(), contents.bytes_contents.len()) {
        ("BOOL", [flag], _) => Ok(Value::Flag(*flag)),
        ("BYTES", _, 1) => text(contents.bytes_contents.swap_remove(0)),
        _ => Err("must be one element, in raw_input_contents or in the contents of its type"),
    }
}

/// One value of an output, as its raw bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Output {
    Text(String),
    Number(u32),
    Float(f32),
}

impl Output {
    /// The tensor and its raw contents.
    pub(super) fn tensor(self, name: &'static str) -> (InferOutputTensor, Vec<u8>) {
        let (datatype, raw) = match self {
            Self::Text(text) => {
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                ("BYTES", [&length.to_le_bytes()[..], text.as_bytes()].concat())
            }
            Self::Number(number) => ("UINT32", number.to_le_bytes().to_vec()),
            Self::Float(number) => ("FP32", number.to_le_bytes().to_vec()),
        };
        let tensor = InferOutputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: vec![1],
            ..InferOutputTensor::default()
        };
        (tensor, raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::inference::InferTensorContents;

    fn input(name: &str, datatype: &str, contents: Option<InferTensorContents>) -> InferInputTensor {
        InferInputTensor {
            name: name.into(),
            datatype: datatype.into(),
            shape: vec![1],
            contents,
            ..Default::default()
        }
    }

    fn request(inputs: Vec<InferInputTensor>, raw: &[&[u8]]) -> ModelInferRequest {
        let raw_input_contents = raw.iter().map(|bytes| bytes.to_vec()).collect();
        ModelInferRequest { inputs, raw_input_contents, ..ModelInferRequest::default() }
    }

    #[test]
    fn raw_contents_and_typed_ones_say_the_same() {
        let expected = vec![("text_input", Value::Text("hé".into())), ("stream", Value::Flag(true))];
        let bare = vec![input("text_input", "BYTES", None), input("stream", "BOOL", None)];
        assert_eq!(inputs(&mut request(bare, &[b"\x03\0\0\0h\xc3\xa9", b"\x01"])).unwrap(), expected);
        let typed = vec![
            input(
                "text_input",
                "BYTES",
                Some(InferTensorContents { bytes_contents: vec!["hé".into()], ..Default::default() }),
            ),
            input("stream", "BOOL", Some(InferTensorContents { bool_contents: vec![true], ..Default::default() })),
        ];
        assert_eq!(inputs(&mut request(typed, &[])).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_with_an_input_is_named_by_its_path() {
        let text = || input("text_input", "BYTES", None);
        let cases: Vec<(ModelInferRequest, &str)> = vec![
            (request(vec![text()], &[b"", b""]), "raw_input_contents"),
            (request(vec![input("prompt", "BYTES", None)], &[]), "inputs[0].name"),
            (request(vec![text(), text()], &[b"\0\0\0\0", b"\0\0\0\0"]), "inputs[1].name"),
            (request(vec![input("stream", "BYTES", None)], &[]), "inputs[0].datatype"),
            (request(vec![InferInputTensor { shape: vec![2], ..text() }], &[]), "inputs[0].shape"),
            (request(vec![InferInputTensor { shape: vec![], ..text() }], &[]), "inputs[0].shape"),
            (request(vec![text()], &[b"\xff\xff\xff\xff"]), "inputs[0].contents"),
            (request(vec![text()], &[b"\x01\0\0\0\xff"]), "inputs[0].contents"),
            (request(vec![text()], &[b"\x01"]), "inputs[0].contents"),
            (request(vec![text()], &[]), "inputs[0].contents"),
            (request(vec![input("stream", "BOOL", None)], &[b"ab"]), "inputs[0].contents"),
        ];
        for (mut request, path) in cases {
            assert_eq!(inputs(&mut request).unwrap_err().violations[0].field, path);
        }
    }

    #[test]
    fn a_text_goes_out_after_its_length() {
        let (tensor, raw) = Output::Text("é".into()).tensor("text_output");
        assert_eq!(
            (tensor.datatype.as_str(), tensor.shape.as_slice(), raw.as_slice()),
            ("BYTES", &[1][..], &b"\x02\0\0\0\xc3\xa9"[..])
        );
    }
}
