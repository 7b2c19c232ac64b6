//! Where a model runs: from `--device` to a device, and the memory that it has.

use candle_core::Device;

use crate::{
    config::{DeviceKind, MachineFacts},
    error::{Error, Result},
    kernels::device::{memory, open_cuda, open_metal},
};

/// The device that was asked for.
///
/// # Errors
/// `FailedPrecondition` that says what is missing: a feature of the build, a library, a driver, a card. `auto` finds the CPU
/// everywhere.
pub(super) fn open(kind: DeviceKind) -> Result<Device> {
    let asked = |name: &str, error: Error| error.context(format_args!("--device {name}"));
    match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda(ordinal) => open_cuda(ordinal).map_err(|error| asked(&format!("cuda:{ordinal}"), error)),
        DeviceKind::Metal => open_metal().map_err(|error| asked("metal", error)),
        DeviceKind::Auto => {
            // Whoever built the program for a card wants to know why it is not used; others never hoped for one.
            let found = if cfg!(feature = "cuda") {
                open_cuda(0)
            } else if cfg!(feature = "metal") {
                open_metal()
            } else {
                return Ok(Device::Cpu);
            };
            Ok(found.unwrap_or_else(|error| {
                tracing::warn!("computing on the CPU: {error}");
                Device::Cpu
            }))
        }
    }
}

/// The memory that a model may take there: `share` of a card's own, else the machine's.
///
/// # Errors
/// `FailedPrecondition` where the driver does not say.
pub(super) fn memory_for(device: &Device, share: f64, machine: MachineFacts) -> Result<MachineFacts> {
    let of_card = memory(device)?;
    Ok(of_card.map_or(machine, |(free, total)| MachineFacts::of_card(free, total, share)))
}

#[cfg(all(test, not(any(feature = "cuda", feature = "metal"))))]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_build_without_cards_computes_on_the_cpu_unless_it_is_told_otherwise() {
        for kind in [DeviceKind::Auto, DeviceKind::Cpu] {
            let device = open(kind).unwrap();
            assert!(device.is_cpu());
            assert_eq!(memory_for(&device, 0.5, MachineFacts::default()).unwrap(), MachineFacts::default());
        }
        for (kind, says) in [(DeviceKind::Cuda(1), "--device cuda:1: "), (DeviceKind::Metal, "--device metal: ")] {
            let error = open(kind).unwrap_err();
            assert_eq!(error.code, Code::FailedPrecondition);
            assert!(error.message.starts_with(says) && error.message.contains("--features"), "{error}");
        }
    }
}
