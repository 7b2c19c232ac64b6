//! Compiling what requests ask their output to match: away from the engine thread and from the tasks, once for all that
//! ask for the same.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    sync::{OnceCell, Semaphore, oneshot},
    time::{Instant, timeout_at},
};

use super::{ModelInfo, ModelText};
use crate::{
    error::{Code, Error, Result},
    ids::TokenId,
    params::StructuredOutputs,
    sampling::grammar::{COMPILER_STACK_BYTES, Compiler, Grammar, Vocabulary},
    text::Tokenizer,
};

/// Compiled at the same time; others wait in line, and leave it with their requests.
const COMPILING: usize = 2;
/// Constraints that are remembered, the last used ones.
const CACHED: usize = 64;
/// How long a constraint may take; its limits of work should end it long before.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(20);

/// A constraint and, once somebody has compiled it, its grammar.
type Entry = (StructuredOutputs, Arc<OnceCell<Arc<Grammar>>>);

/// The grammars of one model.
pub(super) struct Grammars {
    tokenizer: Option<Arc<Tokenizer>>,
    vocab_size: usize,
    /// Made for the first request that needs it.
    compiler: Arc<OnceLock<Result<Compiler>>>,
    places: Arc<Semaphore>,
    /// Last used last.
    entries: Mutex<Vec<Entry>>,
}

impl Grammars {
    pub(super) fn new(info: &ModelInfo, text: &ModelText) -> Self {
        Self {
            tokenizer: text.tokenizer.clone(),
            vocab_size: info.vocab_size,
            compiler: Arc::default(),
            places: Arc::new(Semaphore::new(COMPILING)),
            entries: Mutex::default(),
        }
    }

    /// The grammar of a constraint, compiled or remembered. Dropping the future leaves the line.
    ///
    /// # Errors
    /// `InvalidArgument` where the constraint cannot be followed or is too complex, `DeadlineExceeded`.
    pub(super) async fn get(&self, outputs: &StructuredOutputs, deadline: Option<Instant>) -> Result<Arc<Grammar>> {
        let Some(tokenizer) = &self.tokenizer else {
            return Err(Error::invalid(
                "structured_outputs",
                "the model has no tokenizer, so its tokens spell nothing",
            ));
        };
        let limit = Instant::now() + COMPILE_TIMEOUT;
        let compiled = async {
            let cell = self.cell(outputs);
            cell.get_or_try_init(|| self.compile(tokenizer, outputs)).await.cloned()
        };
        match timeout_at(deadline.map_or(limit, |deadline| deadline.min(limit)), compiled).await {
            Ok(compiled) => compiled,
            Err(_) if deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the output's grammar was compiled"))
            }
            Err(_) => {
                let why = format!("takes longer than {} s to compile", COMPILE_TIMEOUT.as_secs());
                Err(Error::invalid(outputs.field(), why))
            }
        }
    }

    /// Where the grammar of a constraint is kept, or will be.
    fn cell(&self, outputs: &StructuredOutputs) -> Arc<OnceCell<Arc<Grammar>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match entries.iter().position(|(known, _)| known == outputs) {
            Some(at) => entries.remove(at),
            None => (outputs.clone(), Arc::default()),
        };
        if entries.len() >= CACHED {
            entries.remove(0);
        }
        let cell = entry.1.clone();
        entries.push(entry);
        cell
    }

    /// On a thread of its own, with the stack that it may need.
    async fn compile(&self, tokenizer: &Arc<Tokenizer>, outputs: &StructuredOutputs) -> Result<Arc<Grammar>> {
        let place = self.places.clone().acquire_owned().await;
        let place = place.map_err(|_| Error::internal("nothing is compiled any more"))?;
        let (compiler, tokenizer) = (self.compiler.clone(), tokenizer.clone());
        let (vocab_size, outputs) = (self.vocab_size, outputs.clone());
        let (answer, compiled) = oneshot::channel();
        thread::Builder::new()
            .name("grammar".into())
            .stack_size(COMPILER_STACK_BYTES)
            .spawn(move || {
                give_way();
                let compiler = compiler.get_or_init(|| Compiler::new(&vocabulary(&tokenizer, vocab_size)));
                let grammar = compiler.as_ref().map_err(Clone::clone).and_then(|compiler| compiler.compile(&outputs));
                // Whoever asked may have gone. The place is free when the work is done, not when its asker goes.
                let _unheard = answer.send(grammar.map(Arc::new));
                drop(place);
            })
            .map_err(|error| Error::internal(format!("cannot start a thread to compile a grammar: {error}")))?;
        compiled.await.map_err(|_| Error::internal("the thread that compiles grammars failed"))?
    }
}

/// Has the system prefer all other threads to this one: those that multiply share the cores with it, and the streams of
/// others wait for the slowest of them.
fn give_way() {
    #[cfg(target_os = "linux")]
    {
        const LEAST: i32 = 19;
        // SAFETY: the call touches no memory. Of Linux, 0 means the thread that calls (setpriority(2), BUGS).
        let _refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LEAST) };
    }
}

/// A tokenizer's vocabulary as a grammar's parser takes it; the model may have more tokens than the tokenizer, which spell nothing.
pub fn vocabulary(tokenizer: &Arc<Tokenizer>, vocab_size: usize) -> Vocabulary {
    let encoder = tokenizer.clone();
    let encode = move |text: &str| encoder.encode_continuation(text).unwrap_or_default();
    let spell = |id: TokenId| (tokenizer.token_bytes(id), tokenizer.is_special(id));
    Vocabulary::new(vocab_size, spell, Box::new(encode))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::thread;

    use super::give_way;

    fn niceness() -> i32 {
        // SAFETY: the call touches no memory.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn a_thread_that_gives_way_does_so_alone() {
        let before = niceness();
        let given = thread::spawn(|| {
            give_way();
            niceness()
        });
        assert_eq!(given.join().unwrap(), 19);
        assert_eq!(niceness(), before);
    }
}
