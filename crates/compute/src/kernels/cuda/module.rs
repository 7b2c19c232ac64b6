//! The kernels of one operation, inside the program as a fatbin, and their launch.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use candle_core::{
    CudaDevice,
    cuda_backend::cudarc::{
        driver::{
            CudaContext, CudaFunction, CudaModule, DriverError, LaunchConfig, PushKernelArg, sys::CUfunction_attribute,
        },
        nvrtc::Ptx,
    },
};

use super::launch::{Arg, Call, Launch};
use crate::error::{Error, Result};

/// Dynamic shared memory that a kernel has without asking.
const SHARED_BYTES: u32 = 48 << 10;

/// The kernels of one `.cu`.
pub(crate) struct Module {
    name: &'static str,
    image: &'static [u8],
    loaded: RwLock<Loaded>,
}

/// What the driver has of it. Cards are few, kernels a few dozen.
struct Loaded {
    /// By card.
    modules: BTreeMap<usize, Arc<CudaModule>>,
    /// By card and name, with the most shared memory that was asked for.
    functions: BTreeMap<(usize, &'static str), (CudaFunction, u32)>,
}

/// The [`Module`] of `kernels/<operation>/<operation>.cu`.
macro_rules! module {
    ($operation:literal) => {
        $crate::kernels::cuda::Module::of(
            $operation,
            include_bytes!(concat!(env!("OUT_DIR"), "/", $operation, ".fatbin")),
        )
    };
}
pub(crate) use module;

impl Module {
    /// See [`module`]: of an image for all cards that this program knows.
    pub(crate) const fn of(name: &'static str, image: &'static [u8]) -> Self {
        let loaded = Loaded { modules: BTreeMap::new(), functions: BTreeMap::new() };
        Self { name, image, loaded: RwLock::new(loaded) }
    }

    /// Queues a launch behind all that was queued on the card before.
    ///
    /// # Errors
    /// `Internal` where the driver refuses: no such kernel, or more threads or shared memory than the card has.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, in number, type and order; its addresses must cover what it reads and writes,
    /// until all that was queued so far has run.
    pub(crate) unsafe fn launch<const N: usize>(&self, card: &CudaDevice, call: &Call<N>) -> Result<()> {
        let Launch { grid, block, shared_bytes } = call.launch;
        let function = self.function(card, call.kernel, shared_bytes)?;
        let stream = card.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        for arg in &call.args {
            match arg {
                Arg::Ptr(value) | Arg::U64(value) => builder.arg(value),
                Arg::U32(value) => builder.arg(value),
                Arg::F32(value) => builder.arg(value),
            };
        }
        let config = LaunchConfig { grid_dim: grid.into(), block_dim: block.into(), shared_mem_bytes: shared_bytes };
        // SAFETY: the caller's promise.
        unsafe { builder.launch(config) }.map_err(|error| self.error(call.kernel, error))?;
        Ok(())
    }

    fn function(&self, card: &CudaDevice, kernel: &'static str, shared_bytes: u32) -> Result<CudaFunction> {
        let stream = card.cuda_stream();
        let key = (stream.context().ordinal(), kernel);
        // What is remembered is whole or not there, so a lock that a panic left behind is as good as any.
        let known = self.loaded.read().unwrap_or_else(PoisonError::into_inner).functions.get(&key).cloned();
        match known {
            Some((function, most)) if shared_bytes <= most => Ok(function),
            _ => self.find(stream.context(), key, shared_bytes),
        }
    }

    fn find(&self, context: &Arc<CudaContext>, key: (usize, &'static str), shared_bytes: u32) -> Result<CudaFunction> {
        let (ordinal, kernel) = key;
        let error = |error| self.error(kernel, error);
        if self.image.is_empty() {
            return Err(Error::internal(format!("{kernel}: this program was built without CUDA's compiler")));
        }
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        let module = match loaded.modules.get(&ordinal) {
            Some(module) => Arc::clone(module),
            None => context.load_module(Ptx::from_binary(self.image.to_vec())).map_err(error)?,
        };
        let function = module.load_function(kernel).map_err(error)?;
        if shared_bytes > SHARED_BYTES {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared_bytes as i32).map_err(error)?;
        }
        loaded.modules.insert(ordinal, module);
        loaded.functions.insert(key, (function.clone(), shared_bytes.max(SHARED_BYTES)));
        Ok(function)
    }

    fn error(&self, kernel: &str, error: DriverError) -> Error {
        Error::internal(format!("{kernel} of {}.cu: {error}", self.name))
    }
}
