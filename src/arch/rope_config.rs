//! Rotary positions out of a config.json: `rope_parameters` (newer, perhaps one for each type of layer), or `rope_theta`
//! and `rope_scaling` (older).

use crate::{
    arch::{Architecture, config::limits, fields::Fields},
    error::Result,
    layers::{
        attention::QueryGrowth,
        rope::{LongRope, RopeConfig, RopeScaling, RopeStyle, Yarn},
    },
};

/// A model's rotary positions.
pub(super) struct Ropes {
    /// Of all layers, or of those that see everything.
    pub(super) rope: RopeConfig,
    /// Of those with a window, where they have their own.
    pub(super) local: Option<RopeConfig>,
}

pub(super) fn ropes(fields: &Fields<'_>, row: &Architecture, head_dim: usize) -> Result<Ropes> {
    let newer = fields.object("rope_parameters")?;
    let typed = |kind: &str| newer.as_ref().map(|newer| newer.object(kind)).transpose().map(Option::flatten);
    if let Some(full) = typed("full_attention")? {
        let local = typed("sliding_attention")?;
        let local = local.map(|local| rope(fields, Some(&local), row, head_dim)).transpose()?;
        return Ok(Ropes { rope: rope(fields, Some(&full), row, head_dim)?, local });
    }
    let rope = rope(fields, newer.as_ref(), row, head_dim)?;
    let local = fields.positive("rope_local_base_freq")?;
    let local = local.map(|theta| RopeConfig { theta, scaling: RopeScaling::Default, ..rope.clone() });
    Ok(Ropes { rope, local })
}

fn rope(fields: &Fields<'_>, newer: Option<&Fields<'_>>, row: &Architecture, head_dim: usize) -> Result<RopeConfig> {
    let older = fields.object("rope_scaling")?;
    let theta = newer.map(|newer| newer.positive("rope_theta")).transpose()?.flatten();
    let theta = theta.or(fields.positive("rope_theta")?).unwrap_or(10_000.0);
    let share = |f: &Fields<'_>| f.number("partial_rotary_factor", |x| x > 0.0 && x <= 1.0, "above 0, at most 1");
    let share = match newer.map(share).transpose()?.flatten() {
        Some(share) => share,
        None => share(fields)?.unwrap_or(row.partial_rotary_factor),
    };
    let rotary_dim = ((head_dim as f64 * share) as usize) & !1;
    if rotary_dim == 0 {
        let why = format!("is {share}: no number of a head of {head_dim} turns");
        return Err(fields.error("partial_rotary_factor", why));
    }
    let scaling = match newer.or(older.as_ref()) {
        Some(object) => scaling(fields, object, rotary_dim)?,
        None => RopeScaling::Default,
    };
    let style = match fields.flag("rope_interleave")? {
        Some(false) => RopeStyle::Halves,
        _ => row.rope_style,
    };
    Ok(RopeConfig { theta, rotary_dim, scaling, style })
}

/// How queries grow with their positions: Ministral 3 alone has it, where every file must say it.
pub(super) fn query_growth(fields: &Fields<'_>) -> Result<Option<QueryGrowth>> {
    if fields.text("model_type")? != Some("ministral3") {
        return Ok(None);
    }
    let newer = fields.object("rope_parameters")?.ok_or_else(|| fields.missing("rope_parameters"))?;
    Ok(Some(QueryGrowth {
        beta: required(&newer, "llama_4_scaling_beta")?,
        original_max_position_embeddings: newer.required_size(ORIGINAL, limits::POSITIONS)?,
    }))
}

/// A kind of scaling, read from the whole file, its own object, and how many numbers of a head turn.
type Reader = fn(&Fields<'_>, &Fields<'_>, usize) -> Result<RopeScaling>;

const KINDS: &[(&str, Reader)] = &[
    ("default", |_, _, _| Ok(RopeScaling::Default)),
    ("linear", |_, own, _| Ok(RopeScaling::Linear { factor: required(own, "factor")? })),
    ("dynamic", dynamic),
    ("llama3", llama3),
    ("yarn", yarn),
    ("longrope", longrope),
    // What Phi-3 called it first.
    ("su", longrope),
];

fn scaling(root: &Fields<'_>, own: &Fields<'_>, rotary_dim: usize) -> Result<RopeScaling> {
    let field = if own.value("rope_type").is_some() { "rope_type" } else { "type" };
    let name = own.text(field)?.unwrap_or("default");
    match KINDS.iter().find(|kind| kind.0 == name) {
        Some((_, read)) => read(root, own, rotary_dim),
        None => {
            let known = KINDS.iter().map(|kind| kind.0).collect::<Vec<_>>().join(", ");
            Err(own.error(field, format!("is {name:?}; supported are {known}")))
        }
    }
}

fn required(own: &Fields<'_>, name: &str) -> Result<f64> {
    own.positive(name)?.ok_or_else(|| own.missing(name))
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// The length of the first training, which some files have beside the object and some leave to the longest context.
fn original(root: &Fields<'_>, own: &Fields<'_>) -> Result<usize> {
    match own.size(ORIGINAL, limits::POSITIONS)?.or(root.size(ORIGINAL, limits::POSITIONS)?) {
        Some(original) => Ok(original),
        None => root.required_size("max_position_embeddings", limits::POSITIONS),
    }
}

fn dynamic(root: &Fields<'_>, own: &Fields<'_>, rotary_dim: usize) -> Result<RopeScaling> {
    if rotary_dim <= 2 {
        return Err(own.error("rope_type", "is dynamic, which takes more than one turning pair"));
    }
    Ok(RopeScaling::Dynamic {
        factor: required(own, "factor")?,
        original_max_position_embeddings: root.required_size("max_position_embeddings", limits::POSITIONS)?,
    })
}

fn llama3(_: &Fields<'_>, own: &Fields<'_>, _: usize) -> Result<RopeScaling> {
    let (low_freq_factor, high_freq_factor) = (required(own, "low_freq_factor")?, required(own, "high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        let why = format!("is {high_freq_factor}, must be above low_freq_factor {low_freq_factor}");
        return Err(own.error("high_freq_factor", why));
    }
    Ok(RopeScaling::Llama3 {
        factor: required(own, "factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: own.required_size(ORIGINAL, limits::POSITIONS)?,
    })
}

fn yarn(root: &Fields<'_>, own: &Fields<'_>, _: usize) -> Result<RopeScaling> {
    let original_max_position_embeddings = original(root, own)?;
    let longest = root.required_size("max_position_embeddings", limits::POSITIONS)?;
    let factor = own.positive("factor")?.unwrap_or(longest as f64 / original_max_position_embeddings as f64);
    let mscales = own.positive("mscale")?.zip(own.positive("mscale_all_dim")?);
    let by_mscales = mscales.map(|(m, all)| Yarn::attention_factor(factor, m) / Yarn::attention_factor(factor, all));
    let attention_factor = own.positive("attention_factor")?.or(by_mscales);
    Ok(RopeScaling::Yarn(Yarn {
        factor,
        original_max_position_embeddings,
        beta_fast: own.positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: own.positive("beta_slow")?.unwrap_or(1.0),
        truncate: own.flag("truncate")?.unwrap_or(true),
        attention_factor: attention_factor.unwrap_or(Yarn::attention_factor(factor, 1.0)),
    }))
}

fn longrope(root: &Fields<'_>, own: &Fields<'_>, rotary_dim: usize) -> Result<RopeScaling> {
    let original = original(root, own)?;
    let longest = root.required_size("max_position_embeddings", limits::POSITIONS)?;
    let divisors = |name: &str| {
        let divisors = own.numbers(name, rotary_dim / 2)?.ok_or_else(|| own.missing(name))?;
        if divisors.len() != rotary_dim / 2 || divisors.iter().any(|&divisor| divisor <= 0.0) {
            let why = format!("must be {} numbers above 0, one a turning pair", rotary_dim / 2);
            return Err(own.error(name, why));
        }
        Ok(divisors.into_iter().map(|divisor| divisor as f32).collect::<Vec<_>>())
    };
    let (short, long) = (divisors("short_factor")?, divisors("long_factor")?);
    // A file may say the stretch itself, or leave it to the two lengths.
    let stretch = match root.size(ORIGINAL, limits::POSITIONS)?.or(own.size(ORIGINAL, limits::POSITIONS)?) {
        Some(_) => longest as f64 / original as f64,
        None => own.positive("factor")?.unwrap_or(1.0),
    };
    let by_stretch = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() };
    Ok(RopeScaling::LongRope(LongRope {
        short,
        long,
        original_max_position_embeddings: original,
        max_model_len: longest,
        attention_factor: own.positive("attention_factor")?.unwrap_or(by_stretch),
    }))
}
