//! The adapters that requests may name as their model, loaded and unloaded while the engine runs.
//!
//! Unloading takes the name away at once: new requests for it are refused, those under way go on with the weights that
//! they hold. Until the last of them has ended the adapter still counts against `--max-loras`, so that memory has a bound.
//! What only a life of the engine holds that was given up counts no more: its thread may hang for ever.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak},
};

use super::block_manager::Salt;
use crate::{
    arch::{Model, peft::load_adapter},
    config::LoraArgs,
    error::{Code, Error, Result},
    layers::lora::Adapter,
};

/// Bytes an adapter's name, as of any name that clients give.
const NAME_BYTES: usize = 256;

/// The adapters of one model; none may be loaded where it was made by `default`. Cheap to clone.
#[derive(Clone, Default)]
pub struct Adapters {
    inner: Option<Arc<Inner>>,
}

struct Inner {
    model: Arc<dyn Model>,
    max_loras: usize,
    max_rank: usize,
    may_change: bool,
    table: Mutex<Table>,
    /// Held while one is loaded.
    loading: Mutex<()>,
}

#[derive(Default)]
struct Table {
    loaded: BTreeMap<String, (Arc<Adapter>, String)>,
    /// Without a name, and held by sequences alone.
    leaving: Vec<Weak<Adapter>>,
    /// Adapters loaded so far, of which each has a number of its own.
    count: u64,
}

impl fmt::Debug for Adapters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

impl PartialEq for Adapters {
    fn eq(&self, other: &Self) -> bool {
        match (&self.inner, &other.inner) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

impl Adapters {
    /// Those of a model, none loaded yet.
    #[must_use]
    pub fn new(model: Arc<dyn Model>, args: &LoraArgs) -> Self {
        if !args.enabled() {
            return Self::default();
        }
        let inner = Inner {
            model,
            max_loras: args.max_loras,
            max_rank: args.max_lora_rank,
            may_change: args.allow_runtime_lora_updating,
            table: Mutex::default(),
            loading: Mutex::default(),
        };
        Self { inner: Some(Arc::new(inner)) }
    }

    /// How many may be loaded; none where adapters are not served.
    #[must_use]
    pub fn max_loras(&self) -> Option<usize> {
        self.inner.as_ref().map(|inner| inner.max_loras)
    }

    /// Whether clients may load and unload them.
    ///
    /// # Errors
    /// `FailedPrecondition` that names the flag, where they may not.
    pub fn may_change(&self) -> Result<()> {
        match self.inner.as_ref().is_some_and(|inner| inner.may_change) {
            true => Ok(()),
            false => {
                let why = "adapters are not loaded at run time here: start the server with --enable-lora and \
                           --allow-runtime-lora-updating";
                Err(Error::new(Code::FailedPrecondition, why))
            }
        }
    }

    /// Loads the adapter in `directory`, to be called `name`; reads files.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that cannot be or is taken, `ResourceExhausted` where there are `--max-loras` or another
    /// is being loaded, `FailedPrecondition` that names the file and the field or tensor at fault.
    pub fn load(&self, name: &str, directory: &Path, base: &str) -> Result<()> {
        let Some(inner) = &self.inner else {
            return Err(Error::new(Code::FailedPrecondition, "adapters are not served: start with --enable-lora"));
        };
        if name.is_empty() || name.len() > NAME_BYTES || name.chars().any(char::is_control) {
            let why = format!("must have 1 to {NAME_BYTES} bytes and no control characters");
            return Err(Error::invalid("lora_name", why));
        }
        let _alone = match inner.loading.try_lock() {
            Ok(alone) => alone,
            // It holds nothing that a panic could have left half done.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(Code::ResourceExhausted, "another adapter is being loaded: try again later"));
            }
        };
        let id = {
            let mut table = inner.table();
            if name == base || table.loaded.contains_key(name) {
                let why = format!("{name:?} is loaded already: unload it first, or choose another name");
                return Err(Error::invalid("lora_name", why));
            }
            table.leaving.retain(|adapter| adapter.strong_count() > 0);
            let (loaded, leaving) = (table.loaded.len(), table.leaving.len());
            if loaded + leaving >= inner.max_loras {
                let why = format!(
                    "{loaded} adapters are loaded and {leaving} more are still in use, --max-loras {} are allowed",
                    inner.max_loras
                );
                return Err(Error::new(Code::ResourceExhausted, why));
            }
            table.count += 1;
            table.count
        };
        let (linears, device) = inner.model.adaptable();
        let adapter = load_adapter(directory, (id, name), linears, inner.max_rank, device)?;
        tracing::info!("adapter {name:?} of {} takes {} bytes", directory.display(), adapter.bytes());
        let root = directory.display().to_string();
        inner.table().loaded.insert(name.to_owned(), (Arc::new(adapter), root));
        Ok(())
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    pub fn unload(&self, name: &str) -> Result<()> {
        let missing = || Error::new(Code::NotFound, format!("no adapter {:?} is loaded", cut(name)));
        let mut table = self.inner.as_ref().ok_or_else(missing)?.table();
        let (adapter, _) = table.loaded.remove(name).ok_or_else(missing)?;
        let leaving = Arc::downgrade(&adapter);
        drop(adapter);
        table.leaving.retain(|adapter| adapter.strong_count() > 0);
        if leaving.strong_count() > 0 {
            table.leaving.push(leaving);
        }
        Ok(())
    }

    /// Counts nothing any more that sequences hold by now: they were those of a life that was given up.
    pub(super) fn forget_holders(&self) {
        let Some(inner) = &self.inner else { return };
        let mut table = inner.table();
        table.leaving.clear();
        // Another count of holders for the same weights.
        table.loaded.values_mut().for_each(|(adapter, _)| *adapter = Arc::new(Adapter::clone(adapter)));
    }

    /// The adapter of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Adapter>> {
        Some(self.inner.as_ref()?.table().loaded.get(name)?.0.clone())
    }

    /// Names, and the directories that they were loaded from, in the order of the names.
    #[must_use]
    pub fn list(&self) -> Vec<(String, String)> {
        let Some(inner) = &self.inner else { return Vec::new() };
        inner.table().loaded.iter().map(|(name, (_, root))| (name.clone(), root.clone())).collect()
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change is one insertion or removal.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cut(name: &str) -> String {
    name.chars().take(80).collect()
}

/// The salt under which blocks of a request are cached: whoever shares a salt shares an adapter too. No salt that a
/// client gives can be another's with an adapter.
#[must_use]
pub(super) fn salt_with(adapter: Option<&Adapter>, salt: Option<Salt>) -> Option<Salt> {
    let words = salt.as_ref().map(Salt::words).unwrap_or_default();
    match adapter {
        None if words.starts_with('\0') => Some(Salt::untold(format!("\0base\0{words}"))),
        None => salt,
        Some(adapter) => Some(Salt::untold(format!("\0lora{}\0{words}", adapter.id()))),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn no_salt_that_a_client_gives_is_anothers_with_an_adapter() {
        let adapter = |id| Adapter::new(id, "a".into(), Vec::new(), &Device::Cpu).expect("is empty");
        let (one, two) = (adapter(1), adapter(2));
        let given = [None, Some("x"), Some("\0lora1\0"), Some("\0lora1\0x"), Some("\0base\0\0lora1\0"), Some("\0")];
        let mut seen = std::collections::HashSet::new();
        for adapter in [None, Some(&one), Some(&two)] {
            for salt in given {
                assert!(seen.insert(salt_with(adapter, salt.map(Salt::untold))), "{adapter:?} {salt:?}");
            }
        }
        let told = Some(Salt::told("x"));
        assert_eq!(salt_with(None, told.clone()), told);
    }
}
