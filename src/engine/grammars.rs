//! Compiling what requests ask their output to match: away from the engine thread and from the tasks, once for all of a
//! tenant's that ask for the same.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    sync::{OnceCell, Semaphore, oneshot},
    time::{Instant, timeout, timeout_at},
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
/// How long a constraint may take once it is its turn; its limits of work should end it long before, wherever others leave
/// its thread any time at all.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(60);

/// Whose a constraint is, and what it says: what one tenant has had compiled, another cannot tell by the time that it takes.
type Key = (Option<Arc<str>>, StructuredOutputs);
/// A constraint and, once somebody has compiled it, its grammar.
type Entry = (Key, Arc<OnceCell<Arc<Grammar>>>);

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

    /// The grammar of a tenant's constraint, compiled or remembered. Dropping the future leaves the line.
    ///
    /// # Errors
    /// `InvalidArgument` where the constraint cannot be followed or is too complex, `DeadlineExceeded`, `ResourceExhausted`
    /// where the machine has no time for it.
    pub(super) async fn get(
        &self,
        tenant: Option<&Arc<str>>,
        outputs: &StructuredOutputs,
        deadline: Option<Instant>,
    ) -> Result<Arc<Grammar>> {
        let Some(tokenizer) = &self.tokenizer else {
            return Err(Error::invalid(
                "structured_outputs",
                "the model has no tokenizer, so its tokens spell nothing",
            ));
        };
        let compiled = async {
            let cell = self.cell((tenant.cloned(), outputs.clone()));
            cell.get_or_try_init(|| self.compile(tokenizer, outputs)).await.cloned()
        };
        let Some(deadline) = deadline else { return compiled.await };
        timeout_at(deadline, compiled).await.unwrap_or_else(|_| {
            Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the output's grammar was compiled"))
        })
    }

    /// Where the grammar of a constraint is kept, or will be.
    fn cell(&self, key: Key) -> Arc<OnceCell<Arc<Grammar>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match entries.iter().position(|(known, _)| *known == key) {
            Some(at) => entries.remove(at),
            None => (key, Arc::default()),
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
        let (vocab_size, field, outputs) = (self.vocab_size, outputs.field(), outputs.clone());
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
        let compiled = timeout(COMPILE_TIMEOUT, compiled).await.map_err(|_| {
            let why = format!("{field} was not compiled within {} s: try again later", COMPILE_TIMEOUT.as_secs());
            Error::new(Code::ResourceExhausted, why)
        })?;
        compiled.map_err(|_| Error::internal("the thread that compiles grammars failed"))?
    }
}

/// Has the system prefer all other threads to this one: those that multiply share the cores with it, and the streams of
/// others wait for the slowest of them.
fn give_way() {
    #[cfg(target_os = "linux")]
    {
        const NICENESS: i32 = 19;
        // SAFETY: the call touches no memory. Of Linux, 0 means the thread that calls (setpriority(2), BUGS).
        let _refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    }
}

/// A tokenizer's vocabulary as a grammar's parser takes it; the model may have more tokens than the tokenizer, which spell nothing.
pub fn vocabulary(tokenizer: &Arc<Tokenizer>, vocab_size: usize) -> Vocabulary {
    let encoder = tokenizer.clone();
    let encode = move |text: &str| encoder.encode_continuation(text).unwrap_or_default();
    let spell = |id: TokenId| (tokenizer.token_bytes(id), tokenizer.is_special(id));
    Vocabulary::new(vocab_size, spell, Box::new(encode))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::{
        params::Constraint,
        text::{GgufVocab, TokenType},
    };

    fn tokenizer() -> Arc<Tokenizer> {
        let mut vocab = GgufVocab { model: "llama".into(), ..GgufVocab::default() };
        let bytes = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), TokenType::Byte));
        for (token, kind) in [("<unk>".to_owned(), TokenType::Unknown)].into_iter().chain(bytes) {
            vocab.tokens.push(token);
            vocab.token_types.push(kind);
            vocab.scores.push(0.0);
        }
        Arc::new(Tokenizer::from_gguf(vocab).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_compilation_that_gets_no_time_is_given_up_and_its_place_comes_back() {
        let tokenizer = tokenizer();
        let grammars = Grammars {
            tokenizer: Some(tokenizer.clone()),
            vocab_size: 257,
            compiler: Arc::default(),
            places: Arc::new(Semaphore::new(1)),
            entries: Mutex::default(),
        };
        // Whoever compiles waits for the first to have made the compiler.
        let (entered, gate) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let first = thread::spawn({
            let (compiler, entered, gate) = (grammars.compiler.clone(), entered.clone(), gate.clone());
            move || {
                let made = compiler.get_or_init(|| {
                    entered.wait();
                    gate.wait();
                    Compiler::new(&vocabulary(&tokenizer, 257))
                });
                made.as_ref().map(|_| ()).map_err(Clone::clone)
            }
        });
        entered.wait();
        let constraint = Constraint::Regex("a+".into());
        let outputs = StructuredOutputs { constraint, whitespace_pattern: None, disable_any_whitespace: false };
        let soon = Instant::now() + Duration::from_secs(1);
        let late = grammars.get(None, &outputs, Some(soon)).await.err().unwrap();
        assert_eq!(late.code, Code::DeadlineExceeded);
        // The place is still taken by the one before, whose asker has gone.
        assert_eq!(grammars.places.available_permits(), 0);
        grammars.places.add_permits(1);
        let error = grammars.get(None, &outputs, None).await.err().unwrap();
        assert_eq!(error.code, Code::ResourceExhausted);
        assert!(error.message.starts_with("structured_outputs.regex was not compiled"), "{}", error.message);
        gate.wait();
        first.join().unwrap().unwrap();
        tokio::time::resume();
        let own = grammars.get(None, &outputs, None).await.unwrap();
        let again = grammars.get(None, &outputs, None).await.unwrap();
        let anothers = grammars.get(Some(&Arc::from("another")), &outputs, None).await.unwrap();
        assert!(Arc::ptr_eq(&own, &again) && !Arc::ptr_eq(&own, &anothers), "tenants share no grammars");
    }

    #[cfg(target_os = "linux")]
    fn niceness() -> i32 {
        // SAFETY: the call touches no memory.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[cfg(target_os = "linux")]
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
